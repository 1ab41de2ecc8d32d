"""Exports of LoRAs as the Models tab asks for them and shows them; the work is a kind of job."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.lora_exports import LORA_EXPORT, LoraExportOrder
from app.jobs.queue import JobQueue
from pipelines.errors import BusyError, RecipeError, StudioError


@dataclass(frozen=True, kw_only=True)
class LoraExportJob:
    """An export as its card shows it. `file` is there once it is `done`, to be fetched by `token`;
    `error` where it failed."""

    token: str
    name: str
    form: str
    active: bool = False
    file: Path | None = None
    error: StudioError | None = None


class LoraExportJobs:
    """The exports of one studio, one at a time. Every method may be called from any thread."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    @property
    def job(self) -> LoraExportJob | None:
        """The last export, or None; one that was stopped, or whose file went with its studio, is
        none."""
        job = self._queue.latest(COMPUTER, LORA_EXPORT)
        if job is None or job.state in (JobState.STOPPED, JobState.INTERRUPTED):
            return None
        lost = job.state is JobState.DONE and job.result is None
        return _shown(job) if not lost else None

    def start(self, name: str, form: str) -> None:
        """Writes the LoRA `name` in `form`. Raises BusyError, RequestError."""
        order = LoraExportOrder(name=name, form=form).checked()
        last = self._queue.latest(COMPUTER, LORA_EXPORT)
        if last is not None and last.active:
            raise BusyError(f"The LoRA “{last.payload.name}” is being exported.", "Wait for it.")
        self._queue.add(LORA_EXPORT, order, COMPUTER, trusted=True)

    def dismiss(self) -> None:
        """Forgets the last export, and deletes its file, unless it runs."""
        job = self._queue.latest(COMPUTER, LORA_EXPORT)
        if job is not None and not job.active:
            self._queue.forget(job.id, COMPUTER)

    def file(self, token: str) -> Path:
        """The file of a finished export. Raises RecipeError."""
        job = self._queue.get(token, None)
        done: Path | None = job.result if job is not None and job.kind == LORA_EXPORT else None
        if done is None or not done.is_file():
            raise RecipeError("This export is not there any more.", "Export the LoRA again.")
        return done

    def close(self) -> None:
        """The file goes, after the queue was closed."""
        job = self.job
        if job is not None and job.file is not None:
            shutil.rmtree(job.file.parent, ignore_errors=True)


def _shown(job: Job) -> LoraExportJob:
    return LoraExportJob(
        token=job.id,
        name=job.payload.name,
        form=job.payload.form,
        active=job.active,
        file=job.result if job.state is JobState.DONE else None,
        error=job.error,
    )
