"""Downloads of the page: one at a time, in a thread of the studio. A browser tab only watches.

A download is asked for first: that brings its plan, to the byte. What has arrived stays on disk, so
one that was stopped, cut or ended by a restart goes on where it was.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.models.store import ModelRow, ModelStore
from pipelines.errors import BusyError, RequestError, StudioError
from pipelines.progress import Stage

if TYPE_CHECKING:
    from pipelines.models.downloads import DownloadPlan
    from pipelines.models.transfer import Reading

DownloadPhase = Literal["asking", "asked", "downloading", "stopping", "stopped", "failed", "done"]
_CLOSE_SECONDS = 3.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A file of a download: its path in the repository, its bytes, and how many have arrived."""

    path: str
    size: int
    done: int


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """A snapshot of the download of `model`.

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
        """True while a thread works on it."""
        return self.phase in ("asking", "downloading", "stopping")


class ModelJobs:
    """The downloads of one studio. Every method may be called from any thread.

    `changed` is called after models came or went.
    """

    def __init__(self, store: ModelStore, changed: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self._changed = changed
        self._lock = threading.Lock()
        self._job: ModelJob | None = None
        self._plan: DownloadPlan | None = None
        self._rows: tuple[ModelRow, ...] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def job(self) -> ModelJob | None:
        """A snapshot of the download that was asked for last, or None."""
        with self._lock:
            return self._job

    def rows(self, *, fresh: bool = False) -> tuple[ModelRow, ...]:
        """The models as they lie on the disk; read again after changes, or where asked to."""
        rows = self._rows
        if rows is None or fresh:
            rows = self._rows = self.store.rows()
        return rows

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
        self._begin(ModelJob(model=model_id, phase="asking"), lambda: self._ask(model_id, check))

    def download(self, model_id: str) -> None:
        """Does what was planned, or goes on with it. Raises BusyError, RequestError."""
        with self._lock:
            job, plan = self._job, self._plan
        if job is None or plan is None or job.model != model_id:
            raise RequestError("model", f"Nobody asked yet what “{model_id}” would fetch.")
        began = job.phase != "asked"
        job = replace(job, phase="downloading", error="", speed=None, seconds_left=None)
        self._begin(job, lambda: self._download(model_id, None if began else plan))

    def stop(self) -> None:
        """Stops the download; what has arrived is kept."""
        with self._lock:
            if self._job is not None and self._job.active:
                self._stop.set()
                self._job = replace(self._job, phase="stopping", speed=None, seconds_left=None)

    def dismiss(self) -> None:
        """Forgets a download that does not run."""
        with self._lock:
            if self._job is not None and not self._job.active:
                self._job = self._plan = None

    def remove(self, model_id: str) -> int:
        """Deletes what only `model_id` reads; the bytes freed. Raises BusyError, ModelError."""
        with self._lock:
            if self._job is not None and self._job.model == model_id:
                if self._job.active:
                    raise BusyError(f"“{model_id}” is being downloaded.", "Stop it first.")
                self._job = self._plan = None
        try:
            return self.store.remove(model_id)
        finally:
            self._rows = None
            self._changed()

    def close(self) -> None:
        """Stops the download and waits for it a little."""
        self.stop()
        thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_SECONDS)

    # --- the thread

    def _begin(self, job: ModelJob, work: Callable[[], DownloadPhase | None]) -> None:
        with self._lock:
            if self._job is not None and self._job.active:
                raise BusyError(
                    f"“{self._job.model}” is being downloaded; one model at a time.",
                    "Wait until it is here, or stop it.",
                )
            self._stop.clear()
            self._job = job
            self._thread = threading.Thread(
                target=self._run, args=(work,), name="models", daemon=True
            )
            self._thread.start()

    def _run(self, work: Callable[[], DownloadPhase | None]) -> None:
        error = ""
        try:
            phase = work()
        except StudioError as failure:
            phase, error = "failed", str(failure)
        # One of the few outermost seams: a fault of ours must not leave a download without an end.
        except Exception as failure:
            log.exception("a download failed")
            phase = "failed"
            error = f"The download failed through a fault of the studio ({failure!r:.200})."
        # Before the end is said: whoever hears of it finds the models as they are now.
        self._rows = None
        self._changed()
        with self._lock:
            if phase is None or self._job is None:
                self._job = self._plan = None
                return
            done, total = _arrived(self._job.files)
            self._job = replace(
                self._job,
                phase=phase,
                error=error,
                done=done,
                total=total,
                speed=None,
                seconds_left=None,
                checking=False,
                converting=False,
            )

    def _ask(self, model_id: str, check: bool) -> DownloadPhase | None:
        return "asked" if self._planned(model_id, check=check) else None

    def _planned(self, model_id: str, *, check: bool = False) -> DownloadPlan | None:
        def report(reading: Reading) -> None:
            if reading.checking:
                self._update(checking=True, done=reading.done, total=reading.total)

        plan = self.store.plan(model_id, check=check, report=report, should_stop=self._stop.is_set)
        if plan is None:
            return None
        # The order in which they are fetched.
        items = sorted(plan.items, key=lambda item: item.entry.size)
        files = tuple(
            FileState(path=item.entry.path, size=item.entry.size, done=item.there) for item in items
        )
        with self._lock:
            self._plan = plan
        there = plan.total - plan.left
        counted = {"left": plan.left, "total": plan.total, "done": there, "spare": plan.spare}
        self._update(files=files, checking=False, **counted)
        return plan

    def _download(self, model_id: str, plan: DownloadPlan | None) -> DownloadPhase:
        # Going on: what is left has changed since it was planned.
        plan = plan or self._planned(model_id)
        if plan is None:
            return "stopped"
        done = self.store.download(plan, report=self._report, should_stop=self._stop.is_set)
        return "done" if done else "stopped"

    def _report(self, reading: Reading) -> None:
        if not reading.file:
            return
        with self._lock:
            job = self._job
        if job is None:
            return
        converting = reading.stage is Stage.CONVERTING
        if converting:
            files = tuple(replace(file, done=file.size) for file in job.files)
            done, total = reading.done, reading.total
        else:
            files = _advanced(job.files, reading)
            done, total = _arrived(files)
        self._update(
            files=files,
            done=done,
            total=total,
            speed=None if converting else reading.speed,
            seconds_left=reading.seconds_left,
            checking=reading.checking,
            converting=converting,
        )

    def _update(self, **changes: object) -> None:
        with self._lock:
            if self._job is None:
                return
            if self._job.phase == "stopping":
                # It shows that the stop was heard until the work has really ended.
                changes.pop("speed", None)
                changes.pop("seconds_left", None)
            self._job = replace(self._job, **changes)  # type: ignore[arg-type]


def _arrived(files: tuple[FileState, ...]) -> tuple[int, int]:
    """The bytes of the files that are there, and those of all."""
    return sum(file.done for file in files), sum(file.size for file in files)


def _advanced(files: tuple[FileState, ...], reading: Reading) -> tuple[FileState, ...]:
    """The files as of `reading`: those before the one that is fetched now have arrived."""
    now = next(
        (
            index
            for index, file in enumerate(files)
            if file.path == reading.file and file.size == reading.file_total
        ),
        None,
    )
    if now is None:
        return files
    before = tuple(replace(file, done=file.size) for file in files[:now])
    # While it is checked, it is read from its beginning, but it is all there.
    done = files[now].size if reading.checking else min(reading.file_done, files[now].size)
    return (*before, replace(files[now], done=done), *files[now + 1 :])


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk of `folder`; 0 where that is not known."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
