"""A LoRA for the small random nets, as a file of the user."""

from __future__ import annotations

from pathlib import Path

from tests.lora_manager import made

NANO = 384
"""How wide the layers of the model that ships are."""


def lora(file: Path, seed: int = 0, wide: int = made.WIDE) -> Path:
    """Writes a LoRA to `file`, which it returns: for `tiny.transformer()`, or for layers that are
    `wide`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return made.f1(made.reference(seed, wide=wide), file.parent).replace(file)
