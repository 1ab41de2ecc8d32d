"""The pictures that a person starred: a list beside them, and as much the truth as they are."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from app.settings import make_folder
from pipelines import files
from pipelines.errors import BusyError, SaveError

FILE = "stars.json"
_MAX_BYTES = 50_000_000
_LOCK_SECONDS = 10


class Stars:
    """The names of the starred pictures in `outputs`. Any thread and process may change them."""

    def __init__(self, outputs: Path) -> None:
        self._file = outputs / FILE
        self._changing = threading.Lock()
        self._kept: tuple[tuple[int, ...], frozenset[str]] = ((), frozenset())

    def names(self) -> frozenset[str]:
        """The names of the starred pictures; none where the list cannot be read."""
        try:
            return self._read() or frozenset()
        except OSError:
            return frozenset()

    def set(self, *wanted: str, on: bool) -> None:
        """Stars pictures, or takes their stars away. Raises SaveError, BusyError."""
        folder = make_folder(self._file.parent)
        try:
            with self._changing, FileLock(folder / f".{FILE}.lock", timeout=_LOCK_SECONDS):
                names = self._read()
                if names is None:
                    # Perhaps somebody can still repair it.
                    mark = f"{FILE}.damaged-{time.time_ns()}"
                    self._file.replace(self._file.with_name(mark))
                    names = frozenset()
                new = names.union(wanted) if on else names.difference(wanted)
                if new != names:
                    files.write(self._file, json.dumps(sorted(new), indent=0).encode())
        except Timeout:
            words = "The list of stars is in use by another program."
            raise BusyError(words, "Try again.") from None
        except OSError as error:
            raise SaveError(f"{self._file} cannot be written ({error.strerror}).") from None

    def _read(self) -> frozenset[str] | None:
        """The names; None where the list is damaged. Raises OSError: that may pass."""
        try:
            found = self._file.stat()
            # A list is never changed in place: another one is another file.
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
            if mark == self._kept[0]:
                return self._kept[1]
            if found.st_size > _MAX_BYTES:
                return None
            listed = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return frozenset()
        except (ValueError, RecursionError):
            return None
        if not isinstance(listed, list):
            return None
        names = frozenset(name for name in listed if isinstance(name, str))
        self._kept = (mark, names)
        return names
