"""Kinds of jobs: a table. A new kind is one row; the queue and the database know no other names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.gallery.pictures import PictureFile
from app.jobs.entry import Entry
from pipelines.progress import Report, ShouldStop


class Lane(StrEnum):
    """What a job occupies: of each lane one job runs at a time, and the lanes run side by side."""

    DEVICE = "device"
    NETWORK = "network"
    DISK = "disk"


@dataclass(frozen=True, kw_only=True)
class JobControl:
    """What the function of a kind has of the job that it runs.

    `upcoming` gives the payloads of the jobs of the same kind that wait behind it.
    """

    entry: Entry
    report: Report
    keep: Callable[[PictureFile], None]
    should_stop: ShouldStop
    upcoming: Callable[[], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A row of the table.

    `run` does a job; it returns early after `should_stop()` became true, and raises StudioError.
    `is_done` says whether all was done that was asked for. With `resumes` a job that was ended in
    its middle goes on by itself; `recover` then takes in what was finished and not told any more,
    but for the pictures of those names.
    `write` and `read` turn the payload into JSON and back; what is read may come from anywhere, and
    `read` raises StudioError for what is no payload. `timing` names what its time depends on, and
    `units` how many times that is left to do.
    """

    name: str
    lane: Lane
    resumes: bool
    run: Callable[[JobControl], None]
    write: Callable[[Any], dict[str, Any]]
    read: Callable[[Any], Any]
    is_done: Callable[[Entry], bool] = lambda entry: not entry.stop.is_set()
    recover: Callable[[Entry, Collection[str]], None] = lambda entry, known: None
    timing: Callable[[Any], str] = lambda payload: ""
    units: Callable[[Entry], int] = lambda entry: 1
