"""What can be asked of one job by name: from the page, and from another process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from app.jobs.entry import Entry
from app.jobs.job import JobState
from app.jobs.joblist import JobList
from app.jobs.rows import MAX_PRIORITY
from pipelines.errors import RequestError, printable

PLACES = ("up", "down", "first", "last")
PRIORITIES = {"low": -1, "normal": 0, "high": 1}
_LEAST = 4
# Between two places there is always another one.
_STEP = 0.001


def find(entries: Sequence[Entry], job_id: str, owner: str | None) -> Entry:
    """The job whose number begins so, of an `owner` if one is given. Raises RequestError."""
    mine = [entry for entry in entries if owner in (None, entry.job.owner)]
    found = [entry for entry in mine if entry.job.id.startswith(job_id)]
    if len(job_id) < _LEAST or not found:
        raise RequestError("job", f"There is no job “{printable(job_id, 40)}”.", "See the list.")
    if len(found) > 1:
        words = f"{len(found)} jobs begin with “{printable(job_id, 40)}”."
        raise RequestError("job", words, "Write more of its number.")
    return found[0]


def act(jobs: JobList, entry: Entry, verb: str, value: str) -> str:
    """Stops, retries or moves a job, or changes its priority; says what was done. Lock held.

    Raises RequestError.
    """
    changed = [entry]
    match verb:
        case "stop" if entry.job.active:
            jobs.stop(entry)
            said = "is stopped"
        case "retry":
            said = retry(entry)
        case "move":
            # Others make room.
            changed = jobs.in_turn()
            said = move(entry, changed, value)
        case "priority" if entry.job.may_move:
            said = prioritise(entry, value)
        case _:
            refuse(entry, verb)
    for one in changed:
        jobs.mark(one)
    return said


def retry(entry: Entry) -> str:
    """Lets a job that has ended wait again; what it has finished stays. Raises RequestError."""
    if entry.job.active:
        refuse(entry, "retry")
    if entry.job.state is JobState.DONE:
        raise RequestError("job", "This job is done.", "Duplicate it.")
    entry.wait_again()
    return "waits again"


def move(entry: Entry, turn: Sequence[Entry], place: str) -> str:
    """Gives a job that waits another place among those of its owner. Raises RequestError.

    Between owners the turns decide, and the priority.
    """
    if place not in PLACES:
        words = f"“{printable(place, 40)}” is no place; it is one of {', '.join(PLACES)}."
        raise RequestError("place", words)
    if entry not in turn:
        refuse(entry, "move")
    near = [one for one in turn if one.job.owner == entry.job.owner and _alike(one, entry)]
    now = near.index(entry)
    where = {"up": now - 1, "down": now + 1, "first": 0, "last": len(near) - 1}[place]
    where = max(0, min(len(near) - 1, where))
    near.remove(entry)
    near.insert(where, entry)
    positions = sorted(one.position for one in near)
    for index, one in enumerate(near):
        one.position = max(positions[index], near[index - 1].position + _STEP if index else 0.0)
    return f"is at place {where + 1} of {len(near)}"


def _alike(one: Entry, other: Entry) -> bool:
    return one.rank[:2] == other.rank[:2] and one.job.kind == other.job.kind


def prioritise(entry: Entry, value: str) -> str:
    """Lets a job come before all others of a lower priority. Raises RequestError."""
    number = PRIORITIES.get(value)
    if number is None and re.fullmatch(r"-?\d", value):
        number = int(value)
    if number is None or abs(number) > MAX_PRIORITY:
        words = f"“{printable(value, 40)}” is no priority; it is one of {', '.join(PRIORITIES)}."
        raise RequestError("priority", words)
    entry.job = replace(entry.job, priority=number)
    return f"has the priority {value}"


def refuse(entry: Entry, verb: str) -> NoReturn:
    """Says why nothing can be done. Raises RequestError."""
    states = {JobState.WAITING: "waits", JobState.RUNNING: "runs"}
    state = states.get(entry.job.state, f"has ended ({entry.job.state})")
    raise RequestError(
        "job", f"Job {entry.job.id[:8]} {state}: “{printable(verb, 40)}” is not for it."
    )
