"""Exports as the Gallery asks for them and shows them: one for each person at a time.

What is exported lies in the cache until its owner closes the note or exports again; the pictures
themselves stay where they are.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.gallery.exports.export import Exported
from app.jobs.exports import EXPORT, ExportOrder
from app.jobs.job import Job, JobState
from app.jobs.queue import JobQueue
from lora_manager import drafts
from pipelines.errors import BusyError, RecipeError, StudioError
from pipelines.progress import Progress

ExportPhase = Literal["running", "stopping", "done", "stopped", "failed"]
# How long, and how many, exports lie in the cache that nobody closed.
_ENDED_SECONDS, _MAX_ENDED = 3600.0, 64


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """An export as its note shows it. `token` is what its file is fetched by; `done` holds it."""

    token: str
    format: str
    phase: ExportPhase = "running"
    progress: Progress | None = None
    done: Exported | None = None
    error: StudioError | None = None

    @property
    def active(self) -> bool:
        """True until it has ended."""
        return self.phase in ("running", "stopping")


class ExportJobs:
    """The exports of every owner. Every method may be called from any thread."""

    def __init__(self, folder: Path, queue: JobQueue) -> None:
        self._queue = queue
        drafts.sweep_folders(folder)

    def job(self, owner: str) -> ExportJob | None:
        """The owner's last export, or None; one whose file has gone with its studio is none."""
        job = self._queue.latest(owner, EXPORT)
        lost = job is not None and job.state is JobState.DONE and job.result is None
        return _shown(job) if job is not None and not lost else None

    def start(
        self, order: ExportOrder, owner: str, *, client: str = "", trusted: bool = False
    ) -> None:
        """Exports what is ordered. `client` and `trusted` as in `JobQueue.submit`.

        Raises BusyError, RequestError for an unknown format.
        """
        order.checked()
        last = self._queue.latest(owner, EXPORT)
        if last is not None and last.active:
            raise BusyError("Pictures are being exported already.", "Wait, or stop that.")
        self._queue.add(EXPORT, order, owner, client=client, trusted=trusted)
        for job in self._outlived():
            self._queue.forget(job.id, job.owner)

    def _outlived(self) -> list[Job]:
        """Ended exports that are too old, or too many."""
        ended = [job for job in self._queue.jobs() if job.kind == EXPORT and not job.active]
        old = time.time() - _ENDED_SECONDS
        # The last to end come first.
        return [job for i, job in enumerate(ended) if i >= _MAX_ENDED or (job.ended or 0.0) < old]

    def stop(self, owner: str) -> None:
        """Stops the owner's export; nothing of it is left."""
        job = self._queue.latest(owner, EXPORT)
        if job is not None:
            self._queue.stop(job.id, owner)

    def dismiss(self, owner: str) -> None:
        """Forgets the owner's export, and deletes its file, unless it runs."""
        job = self._queue.latest(owner, EXPORT)
        if job is not None and not job.active:
            self._queue.forget(job.id, owner)

    def file(self, token: str) -> Path:
        """The file of a finished export. Raises RecipeError."""
        job = self._queue.get(token, None)
        done: Exported | None = job.result if job is not None and job.kind == EXPORT else None
        if done is None or not done.path.is_file():
            raise RecipeError("This export is not there any more.", "Export the pictures again.")
        return done.path

    def close(self) -> None:
        """The files go, after the queue was closed."""
        done = [job.result for job in self._queue.jobs() if job.kind == EXPORT]
        for exported in done:
            if exported is not None:
                shutil.rmtree(exported.path.parent, ignore_errors=True)


def _shown(job: Job) -> ExportJob:
    phase: ExportPhase = "failed"
    if job.active:
        phase = "stopping" if job.stopping else "running"
    elif job.state in (JobState.STOPPED, JobState.DONE):
        phase = "done" if job.state is JobState.DONE else "stopped"
    return ExportJob(
        token=job.id,
        format=job.payload.format,
        phase=phase,
        progress=job.progress,
        done=job.result if job.state is JobState.DONE else None,
        error=job.error,
    )
