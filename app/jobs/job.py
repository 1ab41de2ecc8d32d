"""A job as everybody sees it: a snapshot of its state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.gallery.pictures import PictureFile
from pipelines.progress import Progress
from pipelines.request import GenerationRequest

PAINT = "paint"


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

    `payload` says what is to be done; of a painting it is the `request`. `ahead` counts the jobs
    before it in the queue; a higher `priority` comes first. `created` and `ended` are seconds since
    1970. `seconds` is the time that it has run so far, `seconds_left` an estimate of when it will
    have ended, None while nothing is known. `error` is one sentence where it failed.
    """

    id: str
    owner: str
    payload: Any
    kind: str = PAINT
    state: JobState = JobState.WAITING
    priority: int = 0
    ahead: int = 0
    progress: Progress | None = None
    pictures: tuple[PictureFile, ...] = ()
    error: str | None = None
    created: float = 0.0
    ended: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in ACTIVE

    @property
    def request(self) -> GenerationRequest:
        """What a painting paints."""
        request: GenerationRequest = self.payload
        return request
