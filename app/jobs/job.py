"""A job as everybody sees it: a snapshot of its state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from app.gallery.pictures import PictureFile
from pipelines.progress import Progress
from pipelines.request import GenerationRequest


class JobState(StrEnum):
    """Where a job is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A snapshot of a job. `ahead` counts the jobs before it in the queue.

    `seconds` is the painting time so far; `error` one sentence when the state is FAILED.
    """

    id: str
    owner: str
    request: GenerationRequest
    state: JobState = JobState.WAITING
    ahead: int = 0
    progress: Progress | None = None
    pictures: tuple[PictureFile, ...] = ()
    error: str | None = None
    started: float | None = None
    seconds: float = 0.0

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in (JobState.WAITING, JobState.RUNNING)
