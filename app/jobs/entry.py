"""A job inside the queue: its snapshot, with what only the queue needs to know."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.gallery.pictures import PictureFile
from app.jobs.job import Job, JobState
from app.jobs.turns import Claim
from pipelines.errors import StudioError
from pipelines.progress import Progress

MAX_INTERRUPTIONS = 2
"""So often a job goes on by itself after it was ended in its middle, without a picture between."""


@dataclass
class Entry:
    """`position` is its place among the jobs of its priority, `started` when it first ran.

    `painted` counts the pictures that were finished, those that were deleted since included, of
    `total` that were asked for.
    """

    job: Job
    position: float
    total: int = 1
    painted: int = 0
    client: str = ""
    # For how long nobody may ask for the job before it is stopped; None where it is never.
    grace: float | None = None
    asked: float = field(default_factory=time.monotonic)
    # Its owner is the caller of one call, who never comes back to look.
    passing: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    # Who asked, for a runner that has to tell: the visitor's event is a variable of this context.
    context: contextvars.Context | None = None
    started: float | None = None
    interruptions: int = 0
    # It was ended in its middle, and goes on before all others.
    resumed: bool = False
    # It has run before: something may be finished that was not told any more.
    again: bool = False
    # When its progress was written the last time.
    written: float = 0.0
    _began: float = 0.0

    @property
    def claim(self) -> Claim:
        """Whose turn it takes."""
        return Claim(owner=self.job.owner, client=self.client)

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Its place in the queue, but for the turns."""
        return not self.resumed, -self.job.priority, self.position

    def is_unwanted(self) -> bool:
        """True where it was stopped, or nobody has asked for it for longer than its grace."""
        gone = self.grace is not None and time.monotonic() - self.asked > self.grace
        return self.stop.is_set() or gone

    def ask(self) -> None:
        """Somebody looks at it."""
        self.asked = time.monotonic()

    def begin(self) -> None:
        """It runs from now on."""
        self._began, self.again = time.monotonic(), self.started is not None
        self.started = self.started or time.time()
        self.resumed = False
        self.job = replace(self.job, state=JobState.RUNNING, error=None, progress=None)

    def seconds(self) -> float:
        """How long it has run this time."""
        return time.monotonic() - self._began

    def stop_now(self) -> None:
        """Stops it: at once where it waits, else at its next step."""
        self.stop.set()
        if self.job.state is JobState.WAITING:
            self.end(JobState.STOPPED)

    def end(self, state: JobState, error: StudioError | None = None) -> None:
        """It has ended."""
        seconds = self.seconds() if self.job.state is JobState.RUNNING else self.job.seconds
        self.job = replace(
            self.job, state=state, error=error, seconds=seconds, ended=time.time(), progress=None
        )

    def wait_again(self) -> None:
        """It waits as a new one does; what is finished stays."""
        self.stop = threading.Event()
        self.interruptions, self.position = 0, time.time()
        self.ask()
        self.job = replace(self.job, state=JobState.WAITING, error=None, ended=None, progress=None)

    def interrupted(self) -> bool:
        """It was ended in its middle once more; whether it may go on by itself."""
        self.interruptions += 1
        self.again = True
        return self.interruptions <= MAX_INTERRUPTIONS

    def take(self, picture: PictureFile) -> None:
        """A picture was finished."""
        self.painted += 1
        # It gets on: the next death is a new story.
        self.interruptions = 0
        self.job = replace(self.job, pictures=(*self.job.pictures, picture))

    def give(self, result: Any) -> None:
        """What it has made, as it is told from now on; it is there after a death as well."""
        if result != self.job.result:
            # It gets on, as with a picture.
            self.interruptions = 0
        self.job = replace(self.job, result=result)

    def never_asked(self, pictures: Sequence[PictureFile]) -> None:
        """One picture was deleted: it counts as never asked for; `pictures` are left."""
        fewer = {"count": max(1, self.job.request.count - 1)}
        payload = self.job.request.model_copy(update=fewer)
        self.job = replace(self.job, pictures=tuple(pictures), payload=payload)

    def tell(self, progress: Progress) -> None:
        """Keeps the last preview of the same picture, so that it stays while decoding."""
        before = self.job.progress
        if progress.preview is None and before is not None and before.picture == progress.picture:
            progress = replace(progress, preview=before.preview)
        self.job = replace(self.job, progress=progress)
