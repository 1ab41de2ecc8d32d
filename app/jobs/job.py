"""A job as everybody sees it: one snapshot for every kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.gallery.pictures import PictureFile
from pipelines.errors import StudioError
from pipelines.progress import Progress
from pipelines.request import GenerationRequest

PAINT = "paint"
JOB_ID = re.compile("[0-9a-f]{32}")
"""What the number of every job looks like."""
COMPUTER = "computer"
"""The owner of jobs that only people at the computer ask for, whatever their browsers call them.
Shorter than any name by which a browser may call itself, so that no visitor can be it."""


class JobState(StrEnum):
    """Where a job is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """It ended with the studio, and does not go on by itself."""


ACTIVE = (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A snapshot of a job.

    `payload` says what is to be done; of a painting it is the `request`. `title` says it to people,
    on one line. `result` is what the kind tells of its work beside pictures, while it runs and
    afterwards. `stopping` means that it was asked to stop and still runs.

    `place` counts from 1 among those that wait for the same lane, None where it does not wait;
    `ahead` counts those before it there, the running one included. A higher `priority` comes first.
    `created`, `started` and `ended` are seconds since 1970. `seconds` is the time that it has run
    so far, `seconds_left` an estimate of when it will have ended, None while nothing is known.
    `error` says why it failed or was interrupted: a sentence, and a way out.
    """

    id: str
    owner: str
    payload: Any
    kind: str = PAINT
    title: str = ""
    state: JobState = JobState.WAITING
    stopping: bool = False
    priority: int = 0
    place: int | None = None
    ahead: int = 0
    progress: Progress | None = None
    pictures: tuple[PictureFile, ...] = ()
    result: Any = None
    error: StudioError | None = None
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in ACTIVE

    @property
    def fraction(self) -> float | None:
        """How much of it is done, 0 to 1; None while that is unknown, and where it does not run."""
        running = self.state is JobState.RUNNING and self.progress is not None
        return self.progress.fraction if running and self.progress is not None else None

    @property
    def preview(self) -> bytes | None:
        """A small JPEG of what is being painted, or None."""
        return self.progress.preview if self.progress is not None else None

    @property
    def may_stop(self) -> bool:
        """Whether it can be stopped."""
        return self.active and not self.stopping

    @property
    def may_retry(self) -> bool:
        """Whether it can wait once more, for what is not done yet."""
        return not self.active and self.state is not JobState.DONE

    @property
    def may_move(self) -> bool:
        """Whether it can get another place, or another priority."""
        return self.state is JobState.WAITING

    @property
    def request(self) -> GenerationRequest:
        """What a painting paints."""
        request: GenerationRequest = self.payload
        return request
