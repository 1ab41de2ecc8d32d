"""The folder of encoded prompts: what its files are called, what they occupy, how they go.

A name begins with a hash of the tokens (the text after styles and cleaning, cut at the model's
limit), so that a text can be forgotten by who does not know which encoders have read it; a hash of
the encoder's files and of its precision follows. No torch: the page asks, too. What a file holds
is the matter of `prompt_cache`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

FOLDER = "prompts"
MAX_BYTES = 256_000_000
SUFFIX = ".safetensors"
log = logging.getLogger(__name__)


def file(folder: Path, ids: Sequence[int], encoder: str) -> Path:
    """Where the features of the tokens `ids` are; `encoder` names the encoder and its precision."""
    return folder / f"{_text(ids)}-{_digest(encoder)[:16]}{SUFFIX}"


def forget(folder: Path, ids: Sequence[int]) -> None:
    """Forgets one text, whoever encoded it."""
    text = _text(ids)
    for found in _entries(folder):
        # Names of earlier versions do not tell the text: they may be of this one.
        if found.name.startswith(f"{text}-") or "-" not in found.name:
            remove(found)


def size(folder: Path) -> int:
    """Bytes on the disk."""
    return sum(_stat(file)[1] for file in _entries(folder))


def clear(folder: Path) -> int:
    """Forgets every text. Returns how many bytes there were."""
    freed = 0
    for file in _entries(folder):
        bytes_ = _stat(file)[1]
        if remove(file):
            freed += bytes_
    return freed


def trim(folder: Path, max_bytes: int) -> None:
    """Forgets the least used texts beyond `max_bytes`, never the last one that was used."""
    aged = sorted((*_stat(file), file) for file in _entries(folder))
    total = sum(bytes_ for _, bytes_, _ in aged)
    for _, bytes_, file in aged[:-1]:
        if total <= max_bytes:
            return
        remove(file)
        total -= bytes_


def remove(file: Path) -> bool:
    """Deletes `file`; False where it stays, which is written to the log."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s stays (%s)", file, error.strerror)
        return False
    return True


def text_key(ids: Sequence[int]) -> str:
    """What a text is called by its tokens, 64 hex digits: texts that T5 cannot tell apart share it.

    Encoded prompts and the features of trainings are named by its first digits.
    """
    return _digest(json.dumps([*map(int, ids)]))


def _text(ids: Sequence[int]) -> str:
    return text_key(ids)[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _entries(folder: Path) -> list[Path]:
    return list(folder.glob(f"*{SUFFIX}"))


def _stat(file: Path) -> tuple[int, int]:
    """(time of the last use, bytes); zeros where another process was quicker."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
