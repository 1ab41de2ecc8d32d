"""Which note of a job was closed last, so that an older one does not come back in its place."""

from __future__ import annotations

import time

from app.jobs.job import Job
from app.jobs.queue import JobQueue


class ClosedNote:
    """Of one tab, under a `name` of its own; the next studio knows of it too."""

    def __init__(self, queue: JobQueue, name: str) -> None:
        self._queue, self._name = queue, f"closed {name}"
        self._at = _moment(queue.noted(self._name))

    def close(self, job: Job) -> None:
        """The note of `job` is not shown any more, nor are those of the jobs before it."""
        self._at = job.created
        self._queue.note(self._name, repr(job.created))

    def hides(self, job: Job) -> bool:
        """Whether the note of a job that has ended was closed, or that of a later one."""
        return job.created <= self._at


def _moment(text: str) -> float:
    """Seconds since 1970; 0 where that is no moment of the past."""
    try:
        moment = float(text)
    except ValueError:
        return 0.0
    return moment if 0 <= moment <= time.time() else 0.0
