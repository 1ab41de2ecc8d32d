"""Keeps what the studio gathers within bounds: uploads, pictures to start from, thumbnails.

What a person made is never touched: painted pictures, models, trainings. Features of prompts and
exports have rules of their own (`pipelines.text.prompt_files`, `app.gallery.exports.export_jobs`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.gallery.index import GalleryIndex
from app.settings import Settings
from pipelines import pictures
from pipelines.errors import StudioError, printable

FIRST_SECONDS, EVERY_SECONDS = 30.0, 600.0
HOUR = 3600.0
DAY = 24 * HOUR
UPLOAD_SECONDS, UPLOAD_BYTES = HOUR, 1_000_000_000
INPUT_SECONDS, INPUT_BYTES = 7 * DAY, 2_000_000_000
THUMB_BYTES = 2_000_000_000
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file, its size in bytes and when it was last used or written."""

    file: Path
    size: int
    used: float


def old(files: Collection[Kept], now: float, *, seconds: float, most: int) -> list[Kept]:
    """Those not used for `seconds`, and the least used beyond `most` bytes altogether."""
    found, total = [], sum(one.size for one in files)
    for one in sorted(files, key=lambda one: one.used):
        if now - one.used <= seconds and total <= most:
            break
        found.append(one)
        total -= one.size
    return found


def files_below(folder: Path) -> list[Kept]:
    """Every file below `folder`; none where it is not there. Links are not followed."""
    found = []
    # A folder may go away while we look.
    for inner, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(inner, name))]
        for file in [Path(inner, name) for name in (*names, *links)]:
            with suppress(OSError):
                stat = file.lstat()
                found.append(Kept(file=file, size=stat.st_size, used=stat.st_mtime))
    return found


class Janitor:
    """Looks at everything soon after the start and every ten minutes, and then calls `then`.

    `uploads` is the folder of this studio's own: another one beside it looks after its own.
    `starts` are the names of the pictures to start from that jobs need which are not painted yet.
    """

    def __init__(
        self,
        settings: Settings,
        index: GalleryIndex,
        *,
        uploads: Path,
        starts: Callable[[], Collection[str]] = tuple,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._index = index
        self._uploads = uploads
        self._starts = starts
        self._then = then
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="janitor", daemon=True)

    def start(self) -> None:
        """Begins, behind the page."""
        self._thread.start()

    def close(self) -> None:
        """Ends after what is looked at just now."""
        self._ended.set()

    def _work(self) -> None:
        # Not while the first browser loads the page.
        wait = FIRST_SECONDS
        while not self._ended.wait(wait):
            wait = EVERY_SECONDS
            try:
                self.sweep()
                self._then()
            # What cannot be read today may be tomorrow.
            except (OSError, StudioError) as error:
                log.warning("what is old was not deleted (%s)", printable(error, 160))

    def sweep(self, now: float | None = None) -> None:
        """Deletes what is too old or too much, as it is at `now`."""
        now = time.time() if now is None else now
        thumbs = self._settings.thumbs
        _delete(old(files_below(self._uploads), now, seconds=UPLOAD_SECONDS, most=UPLOAD_BYTES))
        _delete_empty(self._uploads)
        _delete(old(files_below(thumbs), now, seconds=float("inf"), most=THUMB_BYTES))
        self._sweep_inputs(now)

    def _sweep_inputs(self, now: float) -> None:
        """Pictures to start from go when no painted picture needs them any more."""
        kept = [one for one in files_below(self._settings.inputs) if pictures.is_kept(one.file)]
        found = old(kept, now, seconds=INPUT_SECONDS, most=INPUT_BYTES)
        if not found:
            return
        try:
            # A picture that is not in the index yet may need one.
            if not self._index.sync():
                return
            needed = self._index.starts() | set(self._starts())
        except StudioError as error:
            log.warning("pictures to start from stay (%s)", printable(error, 160))
            return
        # What was just looked for is about to be asked for.
        _delete([o for o in found if o.file.name not in needed and now - o.used > HOUR])


def _delete(found: Collection[Kept]) -> None:
    for one in found:
        with suppress(OSError):
            # Somebody may have come back for it meanwhile.
            if one.file.lstat().st_mtime <= one.used:
                one.file.unlink()


def _delete_empty(folder: Path) -> None:
    """Folders of uploads that are gone; one that is filled again meanwhile stays."""
    for inner, _, _ in os.walk(folder, topdown=False):
        if Path(inner) != folder:
            with suppress(OSError):
                os.rmdir(inner)
