"""What the page lets people upload: pictures, a few at a time, and not for ever.

Whatever is used of an upload is kept elsewhere at once (`Studio.keep_start`).
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import pictures
from pipelines.errors import RequestError, printable

MOST_AT_ONCE = 4
MOST_FILES = 32
MOST_BYTES = 4 * pictures.MAX_BYTES
"""Of one address: its own older uploads make room for the newer."""
_HEAD = 16


@dataclass(kw_only=True)
class UploadFolder:
    """A folder for one upload alone, so that whatever is left of it can be found.

    gradio writes every part that comes to a file, and forgets those of an upload that breaks off
    and those that nobody asked for.
    """

    name: str = field(default_factory=lambda: secrets.token_hex(8))
    folder: Path | None = None

    def within(self, parent: str) -> str:
        """Where gradio writes, which is below `parent`."""
        self.folder = Path(parent, self.name)
        return str(self.folder)

    def keep_only(self, files: Collection[Path]) -> None:
        """Deletes what was written, but for `files`."""
        if self.folder is None:
            return
        for inner, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                if (file := Path(inner, name)) not in files:
                    with suppress(OSError):
                        file.unlink()
            with suppress(OSError):
                os.rmdir(inner)


_PLACE: ContextVar[UploadFolder | None] = ContextVar("pixart_upload", default=None)


def folder(parent: str) -> str:
    """Where gradio may keep what it gets just now: `parent`, or a folder of one upload there."""
    place = _PLACE.get()
    return parent if place is None else place.within(parent)


@contextmanager
def place() -> Iterator[UploadFolder]:
    """What is uploaded within lies in a folder of its own."""
    made = UploadFolder()
    token = _PLACE.set(made)
    try:
        yield made
    finally:
        _PLACE.reset(token)


@dataclass(frozen=True, kw_only=True)
class _Upload:
    client: str
    size: int


class Uploads:
    """The uploads that lie there, the oldest first. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, _Upload] = OrderedDict()

    def take(self, files: Sequence[Path], client: str) -> None:
        """Keeps files that were uploaded from `client`, and lets go of its older ones.

        Raises RequestError for what is no picture, or for too many, and counts none of them.
        """
        self._check(files)
        with self._lock:
            for file in files:
                self._kept.pop(file, None)
                self._kept[file] = _Upload(client=client, size=_size(file))
            mine = [file for file, upload in self._kept.items() if upload.client == client]
            total = sum(self._kept[file].size for file in mine)
            old: list[Path] = []
            for file in mine[: -len(files) or None]:
                if len(mine) - len(old) <= MOST_FILES and total <= MOST_BYTES:
                    break
                total -= self._kept.pop(file).size
                old.append(file)
        for file in old:
            _delete(file)

    def forget_missing(self) -> None:
        """Forgets files that are not there any more."""
        with self._lock:
            for file in [file for file in self._kept if not file.exists()]:
                del self._kept[file]

    def _check(self, files: Sequence[Path]) -> None:
        if len(files) > MOST_AT_ONCE:
            raise RequestError(
                "upload",
                f"These are {len(files)} files at once.",
                f"Upload at most {MOST_AT_ONCE} together.",
            )
        for file in files:
            with suppress(OSError), file.open("rb") as stream:
                if pictures.may_be_picture(stream.read(_HEAD)):
                    continue
            raise RequestError(
                "upload",
                f"“{printable(file.name)}” is not a picture that can be read.",
                pictures.WAY_OUT,
            )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _delete(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)
        # gradio makes a folder for each file, and we one for each upload.
        file.parent.rmdir()
        file.parent.parent.rmdir()
