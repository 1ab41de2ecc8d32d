"""The text encoder's answers on disk, so that a prompt is encoded once.

A file holds the features (T, C) of one text without padding. What it is called, and what all of
them occupy, is the matter of `prompt_files`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lora_manager import folders
from pipelines import files
from pipelines.errors import SaveError, printable
from pipelines.text import prompt_files

_MAX_FILE = 16_000_000
_NAME = "features"
log = logging.getLogger(__name__)


class PromptCache:
    """A folder of features. It may be deleted at any time; a disk that is full only costs time."""

    def __init__(self, folder: Path, *, max_bytes: int = prompt_files.MAX_BYTES) -> None:
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
            # A folder that is none holds nothing; `keep` says so.
            if folders.trouble(self._folder):
                return None
            log.warning("%s is thrown away (%s)", file, printable(error, 80))
            prompt_files.remove(file)
            return None

    def keep(self, ids: Sequence[int], encoder: str, features: Tensor) -> None:
        """Keeps the features (T, C) of a text."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            data = save({_NAME: features.detach().cpu().contiguous()})
            files.write(self._file(ids, encoder), data)
            prompt_files.trim(self._folder, self._max_bytes)
        except (OSError, SaveError) as error:
            reason = folders.trouble(self._folder) or printable(error, 80)
            log.warning("features are not kept in %s (%s)", self._folder, reason)

    def _file(self, ids: Sequence[int], encoder: str) -> Path:
        return prompt_files.file(self._folder, ids, encoder)
