"""Exports that the page asked for: one for each person at a time, in a thread, fetched from a link.

What is exported lies in the cache until its owner closes the note or exports again; the pictures
themselves stay where they are.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from app import scratch
from app.gallery.exports import export, formats
from app.gallery.exports.export import Exported
from app.gallery.index import IndexedPicture
from lora_manager import drafts
from pipelines.errors import BusyError, RecipeError, StudioError, printable
from pipelines.progress import Progress

log = logging.getLogger(__name__)
ExportPhase = Literal["running", "stopping", "done", "stopped", "failed"]
MAX_RUNNING = 4
# How long, and how many, exports lie in the cache that nobody closed.
_ENDED_SECONDS, _MAX_ENDED = 3600.0, 64
_CLOSE_SECONDS = 10.0
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """A snapshot of an export. `token` is what its file is fetched by; `done` holds the file."""

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


@dataclass
class _KeptExport:
    job: ExportJob
    folder: Path
    began: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class ExportJobs:
    """The exports of every owner. Every method may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, _KeptExport] = {}
        self._lock = threading.Lock()
        drafts.sweep_folders(folder)

    def job(self, owner: str) -> ExportJob | None:
        """A snapshot of the owner's last export, or None."""
        with self._lock:
            entry = self._entries.get(owner)
            return entry.job if entry is not None else None

    def start(
        self,
        choose: Callable[[], Sequence[IndexedPicture]],
        format: str,
        owner: str,
        *,
        strip: bool = False,
    ) -> None:
        """Exports what `choose` gives, which is asked in the thread: there may be very many.

        Raises BusyError, SaveError, RequestError for an unknown format.
        """
        # A browser fetches one file: a training set comes in an archive.
        suffix = next(filter(None, formats.find(format).suffixes))
        with self._lock:
            before = self._entries.get(owner)
            if before is not None and before.job.active:
                raise BusyError("Pictures are being exported already.", "Wait, or stop that.")
            if sum(entry.job.active for entry in self._entries.values()) >= MAX_RUNNING:
                raise BusyError("Others are exporting already.", "Try again in a minute.")
            token = secrets.token_hex(16)
            folder = scratch.folder(self._folder) / token
            new = _KeptExport(job=ExportJob(token=token, format=format), folder=folder)
            self._entries[owner] = new
            target = new.folder / f"pictures-{datetime.now():%Y%m%d-%H%M%S}{suffix}"
            new.thread = threading.Thread(
                target=self._run, args=(new, choose, target, strip), name="export", daemon=True
            )
            new.thread.start()
            old = [*([before] if before else []), *self._outlived()]
        for entry in old:
            shutil.rmtree(entry.folder, ignore_errors=True)

    def _outlived(self) -> list[_KeptExport]:
        """Takes ended exports out of the list that are too old, or too many."""
        ended = [owner for owner, entry in self._entries.items() if not entry.job.active]
        old = time.monotonic() - _ENDED_SECONDS
        found = [owner for owner in ended if self._entries[owner].began < old]
        kept = [owner for owner in ended if owner not in found]
        kept.sort(key=lambda owner: self._entries[owner].began)
        found += kept[: max(0, len(kept) - _MAX_ENDED)]
        return [self._entries.pop(owner) for owner in found]

    def stop(self, owner: str) -> None:
        """Stops the owner's export; nothing of it is left."""
        with self._lock:
            entry = self._entries.get(owner)
            if entry is not None and entry.job.active:
                entry.stop.set()
                entry.job = replace(entry.job, phase="stopping")

    def dismiss(self, owner: str) -> None:
        """Forgets the owner's export, and deletes its file, unless it runs."""
        with self._lock:
            entry = self._entries.get(owner)
            if entry is None or entry.job.active:
                return
            del self._entries[owner]
        shutil.rmtree(entry.folder, ignore_errors=True)

    def file(self, token: str) -> Path:
        """The file of a finished export. Raises RecipeError."""
        with self._lock:
            jobs = [entry.job for entry in self._entries.values()]
        found = [job.done for job in jobs if job.token == token and job.done is not None]
        if not _TOKEN.fullmatch(token) or not found or not found[0].path.is_file():
            raise RecipeError("This export is not there any more.", "Export the pictures again.")
        return found[0].path

    def close(self) -> None:
        """Stops every export and waits for them a little; their files go."""
        with self._lock:
            entries = list(self._entries.values())
        for entry in entries:
            entry.stop.set()
        end = time.monotonic() + _CLOSE_SECONDS
        for entry in entries:
            if entry.thread is not None:
                entry.thread.join(max(0.0, end - time.monotonic()))
            shutil.rmtree(entry.folder, ignore_errors=True)

    def _run(
        self,
        entry: _KeptExport,
        choose: Callable[[], Sequence[IndexedPicture]],
        target: Path,
        strip: bool,
    ) -> None:
        ended: dict[str, object]
        try:
            done = export.export(
                choose(),
                target,
                entry.job.format,
                strip=strip,
                report=lambda progress: self._update(entry, progress=progress),
                should_stop=entry.stop.is_set,
            )
            ended = {"phase": "done", "done": done} if done else {"phase": "stopped"}
        except StudioError as error:
            ended = {"phase": "failed", "error": error}
        # One of the few outermost seams: a fault of ours must not leave an export without an end.
        except Exception as fault:
            log.exception("an export failed")
            words = f"The export failed through a fault of the studio ({printable(fault, 160)})."
            ended = {"phase": "failed", "error": StudioError(words)}
        self._update(entry, **ended)

    def _update(self, entry: _KeptExport, **changes: object) -> None:
        with self._lock:
            entry.job = replace(entry.job, **changes)  # type: ignore[arg-type]
