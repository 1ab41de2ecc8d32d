"""Downloads as the Models tab asks for them and shows them; the work is a kind of job."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.jobs.closed import ClosedNote
from app.jobs.downloads import DOWNLOAD, QUESTION, Fetch, Fetched
from app.jobs.downloads import FileState as FileState
from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.queue import JobQueue
from app.models.store import ModelRow, ModelStore
from pipelines.errors import BusyError, RequestError
from pipelines.progress import Stage

DownloadPhase = Literal[
    "asking", "asked", "waiting", "downloading", "stopping", "stopped", "failed", "done"
]


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """The download of `model` as its card shows it.

    `left` are the bytes that the plan has to fetch, `total` those of all its files, `done` those
    that are there. `speed` in bytes per second and `seconds_left` are None while unknown;
    `checking` means that what is there is read again. `spare` are the bytes that converting takes
    beside the files until the original is deleted; while `converting`, `total` and `done` count
    what is converted. `error` is one sentence when it has failed.
    """

    model: str
    phase: DownloadPhase
    files: tuple[FileState, ...] = ()
    left: int = 0
    total: int = 0
    done: int = 0
    speed: float | None = None
    seconds_left: float | None = None
    checking: bool = False
    spare: int = 0
    converting: bool = False
    error: str = ""

    @property
    def active(self) -> bool:
        """True while it waits or is worked on."""
        return self.phase in ("asking", "waiting", "downloading", "stopping")


class ModelJobs:
    """The downloads of one studio, one at a time. Every method may be called from any thread.

    `changed` is called after models went.
    """

    def __init__(self, store: ModelStore, queue: JobQueue, changed: Callable[[], None]) -> None:
        self.store = store
        self._queue = queue
        self._changed = changed
        self._rows: tuple[ModelRow, ...] | None = None
        self._began = time.time()
        self._closed = ClosedNote(queue, DOWNLOAD)
        # Around looking whether one runs and beginning another.
        self._beginning = threading.RLock()

    @property
    def job(self) -> ModelJob | None:
        """The download that was asked for last, or None."""
        found = self._last()
        return _shown(found) if found is not None else None

    def rows(self, *, fresh: bool = False) -> tuple[ModelRow, ...]:
        """The models as they lie on the disk; read again after changes, or where asked to."""
        rows = self._rows
        if rows is None or fresh:
            rows = self._rows = self.store.rows()
        return rows

    def refresh(self) -> None:
        """Models came or went: the list, and the catalog, are read again."""
        self._rows = None
        self._changed()

    def free(self) -> int:
        """Free bytes of the disk that downloads go to; 0 where that is not known."""
        folder = self.store.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return free_bytes(folder)

    def ask(self, model_id: str, *, check: bool = False) -> None:
        """Finds out what a download would fetch; `check` reads what is there and repairs it.

        Raises BusyError, UnknownNameError, ModelError.
        """
        self.store.known(model_id)
        self._begin(QUESTION, Fetch(model=model_id, check=check))

    def download(self, model_id: str) -> None:
        """Does what was asked, or goes on with it. Raises BusyError, RequestError."""
        with self._beginning:
            job = self._last()
            if job is None or job.payload.model != model_id:
                raise RequestError("model", f"Nobody asked yet what “{model_id}” would fetch.")
            if job.kind == DOWNLOAD and job.may_retry:
                self._queue.obey("retry", job.id)
                return
            self._forget(model_id)
            made: Fetched | None = job.result
            left = made.total - made.done if made is not None else None
            self._begin(DOWNLOAD, Fetch(model=model_id, left=left), made)

    def stop(self) -> None:
        """Stops the download; what has arrived is kept."""
        job = self._last()
        if job is not None and job.active:
            self._queue.stop(job.id, COMPUTER)

    def dismiss(self) -> None:
        """Forgets the download that is shown, unless it runs; those before it are shown no more."""
        job = self._last()
        if job is not None and not job.active:
            self._closed.close(job)
            self._queue.forget(job.id, COMPUTER)

    def remove(self, model_id: str) -> int:
        """Deletes what only `model_id` reads; the bytes freed. Raises BusyError, ModelError."""
        if any(job.active for job in self._of(model_id)):
            raise BusyError(f"“{model_id}” is being downloaded.", "Stop it first.")
        self._forget(model_id)
        try:
            return self.store.remove(model_id)
        finally:
            self.refresh()

    def _begin(self, name: str, fetch: Fetch, made: Fetched | None = None) -> None:
        with self._beginning:
            last = self._last()
            if last is not None and last.active:
                raise BusyError(
                    f"“{last.payload.model}” is being downloaded; one model at a time.",
                    "Wait until it is here, or stop it.",
                )
            asked = self._queue.latest(COMPUTER, QUESTION)
            if asked is not None:
                # There is a new one, or it was answered by the download.
                self._queue.forget(asked.id, COMPUTER)
            self._queue.add(name, fetch, COMPUTER, trusted=True, result=made)

    def _of(self, model_id: str) -> list[Job]:
        """The questions and downloads of a model."""
        last = self._queue.latest(COMPUTER, QUESTION)
        jobs = [*self._queue.jobs(COMPUTER), *([last] if last is not None else [])]
        mine = [job for job in jobs if job.kind in (QUESTION, DOWNLOAD)]
        return [job for job in mine if job.payload.model == model_id]

    def _forget(self, model_id: str) -> None:
        """Takes what has ended of a model out of the list."""
        for job in self._of(model_id):
            self._queue.forget(job.id, COMPUTER)

    def _last(self) -> Job | None:
        """What was asked for last, a question or a download; what runs or waits comes first."""
        jobs = [self._queue.latest(COMPUTER, name) for name in (DOWNLOAD, QUESTION)]
        told = [job for job in jobs if job is not None and self._is_news(job)]
        return max(told, key=lambda job: (job.active, job.created), default=None)

    def _is_news(self, job: Job) -> bool:
        """Whether a card still says it: not what was closed, a question that was stopped, or what
        is here since an earlier studio."""
        if job.active or self._closed.hides(job):
            return job.active
        if job.kind == QUESTION:
            return job.state is not JobState.STOPPED
        return job.state is not JobState.DONE or (job.ended or 0.0) >= self._began


def _shown(job: Job) -> ModelJob:
    made: Fetched = job.result or Fetched()
    progress, stage = job.progress, job.progress.stage if job.progress is not None else None
    done, total = made.done, made.total
    # What is converted, or read, is counted by itself.
    if progress is not None and stage in (Stage.CONVERTING, Stage.CHECKING):
        done, total = progress.done, progress.total
    running = job.state is JobState.RUNNING and not job.stopping
    return ModelJob(
        model=job.payload.model,
        phase=_phase(job),
        files=made.files,
        left=made.total - made.done,
        total=total,
        done=done,
        speed=made.speed if running else None,
        seconds_left=job.seconds_left if running else None,
        checking=stage is Stage.CHECKING,
        spare=made.spare,
        converting=stage is Stage.CONVERTING,
        error=str(job.error or ""),
    )


def _phase(job: Job) -> DownloadPhase:
    asks = job.kind == QUESTION
    if job.stopping:
        return "stopping"
    match job.state:
        case JobState.WAITING:
            return "asking" if asks else "waiting"
        case JobState.RUNNING:
            return "asking" if asks else "downloading"
        case JobState.DONE:
            return "asked" if asks else "done"
        case JobState.STOPPED:
            return "stopped"
    return "failed"


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk of `folder`; 0 where that is not known."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
