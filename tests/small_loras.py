"""A LoRA for the small random nets, as a file of the user."""

from __future__ import annotations

from pathlib import Path

from tests.lora_manager import made


def lora(file: Path, seed: int = 0) -> Path:
    """Writes a LoRA for `tiny.transformer()` to `file`, which it returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return made.f1(made.reference(seed), file.parent).replace(file)
