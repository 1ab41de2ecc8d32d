"""What is made of LoRAs, as the Models tab asks for it and shows it; the work is a kind of job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.lora_works import LORA_WORK
from app.jobs.queue import JobQueue
from app.models import lora_orders
from app.models.lora_orders import LoraOrder, LoraOutcome
from pipelines.catalog import Catalog
from pipelines.errors import BusyError, StudioError
from pipelines.progress import Progress


@dataclass(frozen=True, kw_only=True)
class LoraWorkJob:
    """A piece of work as the tab shows it: `outcome` once it is done, `error` where it failed."""

    order: LoraOrder
    active: bool = False
    stopping: bool = False
    progress: Progress | None = None
    outcome: LoraOutcome | None = None
    error: StudioError | None = None


class LoraWorkJobs:
    """The work of one studio on LoRAs, one at a time. Every method may be called from any thread.

    `models` is where baked models go.
    """

    def __init__(self, queue: JobQueue, catalog: Catalog, models: Path) -> None:
        self._queue, self._catalog, self._models = queue, catalog, models

    @property
    def job(self) -> LoraWorkJob | None:
        """The last one, or None; one that was stopped, or of which only an earlier studio knows
        what came of it, is none."""
        job = self._last()
        if job is None or job.state in (JobState.STOPPED, JobState.INTERRUPTED):
            return None
        lost = job.state is JobState.DONE and job.result is None
        return _shown(job) if not lost else None

    def start(self, order: LoraOrder) -> None:
        """Begins what `order` says. Raises BusyError, RequestError, ModelError."""
        order = lora_orders.checked(order, self._catalog, self._models)
        last = self._last()
        if last is not None and last.active:
            raise BusyError(f"“{last.payload.said}” is not done yet.", "Wait for it, or stop it.")
        self._queue.add(LORA_WORK, order, COMPUTER, trusted=True)

    def stop(self) -> None:
        """Stops what runs; nothing of it is left."""
        job = self._last()
        if job is not None and job.active:
            self._queue.stop(job.id, COMPUTER)

    def dismiss(self) -> None:
        """Forgets the last one, unless it runs; what it made stays."""
        job = self._last()
        if job is not None and not job.active:
            self._queue.forget(job.id, COMPUTER)

    def _last(self) -> Job | None:
        return self._queue.latest(COMPUTER, LORA_WORK)


def _shown(job: Job) -> LoraWorkJob:
    return LoraWorkJob(
        order=job.payload,
        active=job.active,
        stopping=job.stopping,
        progress=job.progress,
        outcome=job.result if job.state is JobState.DONE else None,
        error=job.error,
    )
