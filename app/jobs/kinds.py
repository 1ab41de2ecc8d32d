"""Kinds of jobs: a table. A new kind is one row; the queue and the database know no other names.

The rows that the studio has stand in `app.jobs.table`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from app.gallery.pictures import PictureFile
from app.jobs.entry import Entry
from app.jobs.turns import MAX_WAITING_EACH
from pipelines.errors import StudioError
from pipelines.progress import Report, ShouldStop

MAX_NUMBER = 2**53
"""The largest whole number that is the same everywhere, in JSON and as a float."""
log = logging.getLogger(__name__)


class Lane(StrEnum):
    """What a job occupies: of each lane one job runs at a time, and the lanes run side by side."""

    DEVICE = "device"
    NETWORK = "network"
    DISK = "disk"


@dataclass(frozen=True, kw_only=True)
class JobControl:
    """What the function of a kind has of the job that it runs.

    `keep` takes in a finished picture, `give` what the job has made so far: the job shows it from
    now on, and goes on after it should it be ended in its middle. `upcoming` gives the payloads of
    the jobs of the same kind that wait behind it.
    """

    entry: Entry
    report: Report
    keep: Callable[[PictureFile], None]
    give: Callable[[Any], None]
    should_stop: ShouldStop
    upcoming: Callable[[], Sequence[Any]]


def nothing_kept(entry: Entry) -> dict[str, Any]:
    """Of a kind whose result is told by its end alone."""
    return {}


def as_it_is(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    """Of a kind that keeps nothing of its result."""
    return entry


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A row of the table.

    `run` does a job, and returns whether all was done that was asked for; it returns False soon
    after `should_stop()` became true, and raises StudioError. `title` says a payload to people on
    one line.

    A kind of the lane DEVICE has the device for itself while it runs: the painter gives it up
    before and takes it back after, but for a kind that `paints`, which needs the painter.

    With `resumes` a job that was ended in its middle goes on by itself; `recover` then takes in
    what was finished and not told any more, but for the pictures of those names. Without, it is
    interrupted, and `interrupted` says so and what to do.

    `write` and `read` turn the payload into JSON and back, `keep` and `restore` what was made. What
    is read may come from anywhere: `read` raises StudioError for what is no payload, `restore` what
    damaged JSON raises, and returns None for a job of which nothing is left. `copied` is the
    payload of a job that is queued once more. `timing` names what its time depends on, "" where it
    cannot be told; `units` how many times that is left to do, None where that is not known.

    `most_each` is how many jobs of this kind one owner may have waiting or running; where that is
    one, a new job takes the place of those that have ended. `for_all` tells whether a payload is
    about what others own: its owner asks for it anew only while they may. A `fleeting`
    kind answers a question: it is not kept in the database, nor listed once it has ended.
    `forgotten` hears of a job that leaves the list.
    """

    name: str
    lane: Lane
    resumes: bool
    run: Callable[[JobControl], bool]
    write: Callable[[Any], dict[str, Any]]
    read: Callable[[Any], Any]
    title: Callable[[Any], str]
    interrupted: tuple[str, str] = ("The studio was restarted before it was done.", "Retry it.")
    paints: bool = False
    keep: Callable[[Entry], dict[str, Any]] = nothing_kept
    restore: Callable[[Entry, Mapping[str, Any]], Entry | None] = as_it_is
    total: Callable[[Any], int] = lambda payload: 1
    copied: Callable[[Entry], Any] = lambda entry: entry.job.payload
    recover: Callable[[Entry, Collection[str]], None] = lambda entry, known: None
    timing: Callable[[Any], str] = lambda payload: ""
    units: Callable[[Entry], float | None] = lambda entry: 1
    most_each: int = MAX_WAITING_EACH
    for_all: Callable[[Any], bool] = lambda payload: False
    fleeting: bool = False
    forgotten: Callable[[Entry], None] = lambda entry: None

    @property
    def takes_device(self) -> bool:
        """Whether the painter gives the device up while a job of this kind runs."""
        return self.lane is Lane.DEVICE and not self.paints


def count_of(value: Any) -> int | None:
    """A number of bytes or things that JSON holds; None where it is none, or larger than any."""
    counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
    return value if counts else None


def announce(changed: Callable[[], None]) -> None:
    """Calls `changed`. What a job has made stays made, though the list of it cannot be read."""
    try:
        changed()
    except (OSError, StudioError):
        log.exception("the list of models could not be read after a job")


def with_result(entry: Entry, result: Any) -> Entry:
    """`entry` with what its job has made."""
    entry.job = replace(entry.job, result=result)
    return entry
