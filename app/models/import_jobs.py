"""Imports of the page: one at a time, in a thread of the studio. A browser tab only watches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from app.models import import_process
from app.models.import_process import Tell
from app.models.rows import ImportOptions
from app.settings import Settings, user_path
from pipelines.errors import BusyError, RequestError, StudioError, printable
from pipelines.progress import ShouldStop

ImportPhase = Literal["running", "stopping", "stopped", "failed", "done"]
_CLOSE_SECONDS = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """A snapshot of an import.

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
        """True while a thread works on it."""
        return self.phase in ("running", "stopping")


class Import(Protocol):
    """What imports: `import_process.run`."""

    def __call__(
        self,
        source: Path,
        wanted: ImportOptions,
        settings: Settings,
        *,
        tell: Tell,
        should_stop: ShouldStop,
    ) -> str | None:
        """The new model's id, None where it was stopped. Raises StudioError."""


class ImportJobs:
    """The imports of one studio. Every method may be called from any thread.

    `changed` is called after a model came.
    """

    def __init__(
        self,
        settings: Settings,
        changed: Callable[[], None] = lambda: None,
        run: Import = import_process.run,
    ) -> None:
        self._settings = settings
        self._changed = changed
        self._import = run
        self._lock = threading.Lock()
        self._job: ImportJob | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def job(self) -> ImportJob | None:
        """A snapshot of the last import, or None."""
        with self._lock:
            return self._job

    def start(self, path: str, wanted: ImportOptions) -> None:
        """Imports the file or folder at `path`. Raises BusyError, RequestError, SaveError."""
        source = _source(path)
        with self._lock:
            if self._job is not None and self._job.active:
                raise BusyError(
                    f"“{self._job.source}” is being imported; one model at a time.",
                    "Wait until it is here, or stop it.",
                )
            self._stop.clear()
            self._job = ImportJob(source=printable(source.name or source, 80))
            self._thread = threading.Thread(
                target=self._run, args=(source, wanted), name="import", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stops the import; nothing of it is left."""
        with self._lock:
            if self._job is not None and self._job.active:
                self._stop.set()
                self._job = replace(self._job, phase="stopping")

    def dismiss(self) -> None:
        """Forgets an import that does not run."""
        with self._lock:
            if self._job is not None and not self._job.active:
                self._job = None

    def close(self) -> None:
        """Stops the import and waits for it a little."""
        self.stop()
        thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_SECONDS)

    def _run(self, source: Path, wanted: ImportOptions) -> None:
        ended: dict[str, object]
        try:
            model = self._import(
                source, wanted, self._settings, tell=self._tell, should_stop=self._stop.is_set
            )
            ended = {"phase": "stopped"} if model is None else {"phase": "done", "model": model}
        except StudioError as error:
            ended = {"phase": "failed", "error": error}
        # One of the few outermost seams: a fault of ours must not leave an import without an end.
        except Exception as fault:
            log.exception("an import failed")
            words = f"The import failed through a fault of the studio ({printable(fault, 160)})."
            ended = {"phase": "failed", "error": StudioError(words)}
        try:
            # Before the end is said: whoever hears of it finds the models as they are now.
            self._changed()
        except Exception:
            log.exception("the list of models could not be read after an import")
        self._update(**ended)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._update(stage=stage, done=done, total=total)

    def _update(self, **changes: object) -> None:
        with self._lock:
            if self._job is not None:
                self._job = replace(self._job, **changes)  # type: ignore[arg-type]


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
