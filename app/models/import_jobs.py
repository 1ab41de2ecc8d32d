"""Imports as the Models tab asks for them and shows them; the work is a kind of job."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from app.jobs.closed import ClosedNote
from app.jobs.imports import IMPORT, ImportOrder
from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.queue import JobQueue
from app.models.rows import ImportOptions
from app.settings import user_path
from pipelines.errors import BusyError, RequestError, StudioError, printable
from pipelines.progress import Stage

ImportPhase = Literal["running", "stopping", "stopped", "failed", "done"]
_MAX_FILES = 1000
_STAGES = {Stage.TENSORS: "convert", Stage.COPYING: "copy"}


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """An import as its card shows it.

    `source` is the name of the file or folder. `stage` says what `done` and `total` count: tensors
    ("convert"), bytes ("copy"), or nothing yet (""). `model` is the id of a model that is done.
    """

    source: str
    phase: ImportPhase = "running"
    stage: str = ""
    done: int = 0
    total: int = 0
    model: str = ""
    error: StudioError | None = None

    @property
    def active(self) -> bool:
        """True while it waits or is worked on."""
        return self.phase in ("running", "stopping")


class ImportJobs:
    """The imports of one studio, one at a time. Every method may be called from any thread."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._began = time.time()
        self._closed = ClosedNote(queue, IMPORT)
        # Around looking whether one runs and beginning another.
        self._beginning = threading.Lock()

    @property
    def job(self) -> ImportJob | None:
        """The last import, or None; what was closed, or done before this studio, is no news."""
        job = self._queue.latest(COMPUTER, IMPORT)
        if job is None or (not job.active and self._closed.hides(job)):
            return None
        old = job.state is JobState.DONE and (job.ended or 0.0) < self._began
        return _shown(job) if not old else None

    def start(self, path: str, wanted: ImportOptions) -> None:
        """Imports the file or folder at `path`. Raises BusyError, RequestError, SaveError."""
        source = _source(path)
        with self._beginning:
            job = self.job
            if job is not None and job.active:
                raise BusyError(
                    f"“{job.source}” is being imported; one model at a time.",
                    "Wait until it is here, or stop it.",
                )
            order = ImportOrder(source=source, options=wanted, size=_size(source))
            self._queue.add(IMPORT, order, COMPUTER, trusted=True)

    def stop(self) -> None:
        """Stops the import; nothing of it is left."""
        job = self._queue.latest(COMPUTER, IMPORT)
        if job is not None:
            self._queue.stop(job.id, COMPUTER)

    def dismiss(self) -> None:
        """Forgets the last import, unless it runs; those before it are shown no more."""
        job = self._queue.latest(COMPUTER, IMPORT)
        if job is not None and not job.active:
            self._closed.close(job)
            self._queue.forget(job.id, COMPUTER)


def _shown(job: Job) -> ImportJob:
    phase: ImportPhase = "failed"
    if job.active:
        phase = "stopping" if job.stopping else "running"
    elif job.state in (JobState.STOPPED, JobState.DONE):
        phase = "done" if job.state is JobState.DONE else "stopped"
    progress = job.progress
    stage = _STAGES.get(progress.stage, "") if progress is not None else ""
    return ImportJob(
        source=job.payload.name,
        phase=phase,
        stage=stage,
        done=progress.done if progress is not None and stage else 0,
        total=progress.total if progress is not None and stage else 0,
        model=job.result or "",
        error=job.error,
    )


def _size(source: Path) -> int:
    """The bytes of a file, or of a folder of parts; 0 where they cannot be read.

    A folder may be any: no more is looked at than a model has.
    """
    inside = chain([source], source.glob("*"), source.glob("*/*"))
    try:
        return sum(file.stat().st_size for file in islice(inside, _MAX_FILES) if file.is_file())
    except OSError:
        return 0


def _source(text: str) -> Path:
    """A path as a person pastes it, quotes around it included. Raises RequestError, SaveError."""
    plain = text.strip().strip("\"'").strip()
    if not plain:
        raise RequestError("path", "Give the path of a folder, a .safetensors or a .pth.")
    path = user_path(plain)
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        raise RequestError("path", f"There is no file or folder {printable(path, 200)}.")
    # A path of the page does not depend on where the studio was started.
    return path.absolute()
