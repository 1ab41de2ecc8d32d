"""Jobs as rows of the database and back. What is read may come from anywhere, and is checked."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from app.jobs.entry import MAX_INTERRUPTIONS, Entry
from app.jobs.job import ACTIVE, JOB_ID, PAINT, Job, JobState
from app.jobs.kinds import Kind
from pipelines.errors import StudioError, printable
from pipelines.processes.wire import error_fields, error_of

MAX_PRIORITY = 9
UNREADABLE = "What this job was to do cannot be read any more."
MAX_TEXT = 300_000
_MAX_NAME, _MAX_ERROR = 200, 600
# More of those that have ended are read when somebody asks for them.
_LOADED_ENDED = 20
_TOLD = ("stage", "done", "total", "picture", "pictures", "seconds_left")


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """A job as it lies in the database. `payload`, `progress` and `result` are JSON.

    `started` is when it began to run the last time; `interruptions` counts how often in a row it
    was ended in the middle, `resumed` says that it goes on before all others.
    """

    id: str
    kind: str
    owner: str
    client: str
    payload: str
    state: str
    priority: int
    position: float
    created: float
    started: float | None
    ended: float | None
    progress: str
    result: str
    error: str | None
    grace: float | None
    passing: bool
    interruptions: int
    resumed: bool


COLUMNS = tuple(field.name for field in fields(JobRow))


def row_of(entry: Entry, kind: Kind, *, closing: bool = False) -> JobRow:
    """`entry` as it should be found by the next studio.

    Where it was asked to stop it is stopped, though its last step may not be over. Where the studio
    is `closing`, what runs and can go on waits for the next one.
    """
    job, progress = entry.job, entry.job.progress
    state, resumed = job.state, entry.resumed
    if job.active and entry.stop.is_set():
        state = JobState.STOPPED
    elif closing and state is JobState.RUNNING and kind.resumes:
        state, resumed = JobState.WAITING, True
    told: dict[str, object] = {}
    if progress is not None:
        told = {name: getattr(progress, name) for name in _TOLD}
    # What a list shows is there without its kind.
    beside = {"seconds": job.seconds, "title": kind.title(job.payload)}
    if job.error is not None:
        beside["error"] = error_fields(job.error)
    return JobRow(
        id=job.id,
        kind=job.kind,
        owner=job.owner,
        client=entry.client,
        payload=json.dumps(kind.write(job.payload)),
        state=state,
        priority=job.priority,
        position=entry.position,
        created=job.created,
        started=entry.started,
        ended=None if state in ACTIVE else job.ended or time.time(),
        progress=json.dumps(told),
        result=json.dumps(kind.keep(entry) | beside),
        error=storable(str(job.error)) if job.error is not None else None,
        grace=entry.grace,
        passing=entry.passing,
        interruptions=entry.interruptions,
        resumed=resumed,
    )


def entry_of(row: JobRow, kinds: Mapping[str, Kind]) -> Entry | None:
    """The job of a row; None where the row is no job, or nothing is left of what it made."""
    try:
        return _entry_of(row, kinds[row.kind])
    except (
        StudioError,
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ):
        return None


def _entry_of(row: JobRow, kind: Kind) -> Entry | None:
    # A job's number names its folder: anything else may lead anywhere.
    if not JOB_ID.fullmatch(row.id):
        raise ValueError(row.id[:_MAX_NAME])
    for text in (row.owner, row.client):
        if len(text) > _MAX_NAME:
            raise ValueError(text[:_MAX_NAME])
    numbers = [row.position, row.created, row.started, row.ended, row.grace]
    if not all(math.isfinite(n) for n in numbers if n is not None):
        raise ValueError(row.id)
    payload, kept = kind.read(json_of(row.payload)), json_of(row.result)
    if not isinstance(kept, dict):
        raise ValueError(row.id)
    job = Job(
        id=row.id,
        owner=row.owner,
        kind=row.kind,
        payload=payload,
        state=JobState(row.state),
        priority=clamped(row.priority),
        error=_error(row.error, kept.get("error")),
        created=row.created,
        ended=row.ended,
        seconds=_seconds(kept.get("seconds", 0.0)),
    )
    entry = Entry(
        job=job,
        position=row.position,
        total=kind.total(payload),
        client=row.client,
        grace=row.grace,
        passing=row.passing,
        started=row.started,
        interruptions=int(max(0, min(MAX_INTERRUPTIONS + 1, row.interruptions))),
        resumed=row.resumed,
    )
    return kind.restore(entry, kept)


def clamped(priority: float) -> int:
    """A priority as it may be."""
    return int(max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)))


def _error(text: str | None, fields: object) -> StudioError | None:
    """Why a job failed, with class and field where they are known."""
    if not text:
        return None
    if not isinstance(fields, dict):
        return StudioError(printable(text, _MAX_ERROR))
    said = {name: printable(str(value), _MAX_ERROR) for name, value in fields.items()}
    return error_of(said)


def _seconds(value: object) -> float:
    seconds = float(value) if isinstance(value, int | float) else 0.0
    if not math.isfinite(seconds):
        raise ValueError(seconds)
    return seconds


def go_on(entry: Entry, kind: Kind) -> bool:
    """What becomes of a job of a studio that is gone; whether it waits for its turn."""
    was_running = entry.job.state is JobState.RUNNING
    if not entry.job.active:
        return False
    said, way_out = kind.interrupted
    if not was_running:
        said = "The studio was restarted while it waited"
    if entry.passing or (not kind.resumes and (was_running or kind.paints)):
        # Nobody can come back for what a call of the API has asked for, and a painting that does
        # not go on needs the visitor who has asked for it.
        _interrupt(entry, said, way_out)
        return False
    if was_running:
        if not entry.interrupted():
            times = entry.interruptions - 1
            _interrupt(entry, f"{said.rstrip('.')} more than {times} times", way_out)
            return False
        entry.resumed = True
    entry.job = replace(entry.job, state=JobState.WAITING)
    return True


def _interrupt(entry: Entry, said: str, way_out: str) -> None:
    none = "; none was finished" if entry.job.kind == PAINT and not entry.job.pictures else ""
    error = StudioError(f"{said.rstrip('.')}{none}.", way_out)
    entry.job = replace(entry.job, ended=time.time(), state=JobState.INTERRUPTED, error=error)


def worth_loading(found: Sequence[JobRow]) -> list[JobRow]:
    """What a new studio has to know at once: what has not ended, and the last that has."""
    active = [row for row in found if row.state in ACTIVE]
    ended = [row for row in found if row.state not in ACTIVE and not row.passing]
    ended.sort(key=lambda row: row.ended or 0.0)
    return [*ended[-_LOADED_ENDED:], *active]


def learned(before: float | None, seconds: float) -> float:
    """How long something takes, after it took `seconds` once more: the last times count most."""
    return seconds if before is None else 0.7 * before + 0.3 * seconds


def sound(rows: Iterator[tuple[Any, ...]]) -> Iterator[JobRow]:
    """The rows whose columns are of their kinds: anybody may have written them."""
    for values in rows:
        row = dict(zip(COLUMNS, values, strict=True))
        texts = ("id", "kind", "owner", "client", "payload", "state", "progress", "result")
        numbers = ("priority", "position", "created", "interruptions")
        if not all(isinstance(row[name], str) and len(row[name]) <= MAX_TEXT for name in texts):
            continue
        if not all(isinstance(row[name], int | float) for name in numbers):
            continue
        if not all(isinstance(row[n], int | float | None) for n in ("started", "ended", "grace")):
            continue
        if not isinstance(row["error"], str | None):
            continue
        flags = {name: bool(row[name]) for name in ("passing", "resumed")}
        yield JobRow(**row | flags)


def storable(text: str) -> str:
    """`text` as a database can hold it: half characters, as of a command line that is no UTF-8,
    become question marks."""
    return text.encode("utf-8", "replace").decode()


def json_of(text: str) -> Any:
    """What a column holds; None where that is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
