"""The name of weights: the first digits of their SHA-256, as other tools give it."""

from __future__ import annotations

import hashlib
from pathlib import Path

_DIGITS = 10
_PIECE = 1 << 20


def digest(folder: Path) -> str:
    """Ten hex digits for the safetensors in `folder`. Reads all of them. Raises OSError."""
    made = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            while piece := stream.read(_PIECE):
                made.update(piece)
    return made.hexdigest()[:_DIGITS]
