"""The text encoder's answers on disk, so that a prompt is encoded once.

A file holds the features (T, C) of one text without padding. Its name is a hash of what decides
them: the tokens (the text after styles and cleaning, cut at the model's limit), the encoder's
files, and its precision. The oldest unused files go first when the folder grows too large.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipelines import files
from pipelines.errors import SaveError, printable

MAX_BYTES = 256_000_000
_MAX_FILE = 16_000_000
_NAME = "features"
_SUFFIX = ".safetensors"
log = logging.getLogger(__name__)


class PromptCache:
    """A folder of features. It may be deleted at any time; a disk that is full only costs time."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def find(self, ids: Sequence[int], encoder: str) -> Tensor | None:
        """The features of a text, or None. `encoder` names the encoder and its precision."""
        file = self._file(ids, encoder)
        try:
            if file.stat().st_size > _MAX_FILE:
                raise ValueError("too large")
            tensor = load(file.read_bytes())[_NAME]
            if tensor.ndim != 2 or len(tensor) != len(ids) or not tensor.isfinite().all():
                raise ValueError("of another shape")
            with suppress(OSError):
                os.utime(file)
            return tensor
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("%s is thrown away (%s)", file, printable(error, 80))
            _remove(file)
            return None

    def keep(self, ids: Sequence[int], encoder: str, features: Tensor) -> None:
        """Keeps the features (T, C) of a text."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            data = save({_NAME: features.detach().cpu().contiguous()})
            files.write(self._file(ids, encoder), data)
            self._trim()
        except (OSError, SaveError) as error:
            log.warning("features are not kept (%s)", printable(error, 80))

    def forget(self, ids: Sequence[int], encoder: str) -> None:
        """Forgets one text: for a person who deletes a prompt."""
        _remove(self._file(ids, encoder))

    def clear(self) -> int:
        """Forgets everything. Returns how many texts there were."""
        found = self._entries()
        for file in found:
            _remove(file)
        return len(found)

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(_stat(file)[1] for file in self._entries())

    def _entries(self) -> list[Path]:
        return list(self._folder.glob(f"*{_SUFFIX}"))

    def _file(self, ids: Sequence[int], encoder: str) -> Path:
        key = json.dumps([encoder, *map(int, ids)]).encode()
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:40]}{_SUFFIX}"

    def _trim(self) -> None:
        aged = sorted((*_stat(file), file) for file in self._entries())
        total = sum(size for _, size, _ in aged)
        for _, size, file in aged[:-1]:
            if total <= self._max_bytes:
                return
            _remove(file)
            total -= size


def _stat(file: Path) -> tuple[int, int]:
    """(time of the last use, bytes); zeros where another process was quicker."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s stays (%s)", file, error.strerror)
