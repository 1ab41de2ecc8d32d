"""LoRAs on the transformer that paints: added to its weights when it is read, and never saved.

Added once, they cost nothing in a step; without them the weights are read again, so that nothing
of a LoRA is left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers import PixArtTransformer2DModel

from lora_manager import attach, files, strength
from lora_manager.card import LoraUse
from lora_manager.library import LoraLibrary
from pipelines.errors import ModelError, model_errors


@dataclass(frozen=True, kw_only=True)
class ActiveLora:
    """One LoRA as it is used. `mark` changes with its file, `content` is the SHA-256 of it."""

    use: LoraUse
    file: Path
    mark: tuple[int, ...]
    content: str


def found(uses: Sequence[LoraUse], library: LoraLibrary) -> tuple[ActiveLora, ...]:
    """Where the LoRAs lie that are asked for. Raises ModelError."""
    with _told():
        cards = [(use, library.find(use.name)) for use in uses if use.weight]
        # The mark first: what comes to the file after it is found when it is applied.
        return tuple(
            ActiveLora(
                use=use,
                file=card.file,
                mark=_mark(card.file),
                content=library.content_hash(use.name),
            )
            for use, card in cards
        )


def apply(net: PixArtTransformer2DModel, active: Sequence[ActiveLora]) -> None:
    """Adds the LoRAs to the weights of `net`, in float32, rounded once. Raises ModelError."""
    with _told():
        read = [(one.use.name, files.read(one.file), one.use.weight) for one in active]
        attach.merge(net, read)
        # Otherwise the recipe would name other numbers than those that paint.
        changed = next((one.use.name for one in active if _mark(one.file) != one.mark), None)
    if changed is not None:
        raise ModelError(f"The LoRA “{changed}” was changed while it was read.", "Try again.")


@contextmanager
def _told() -> Iterator[None]:
    """What keeps a LoRA from being applied, as a ModelError."""
    try:
        with model_errors():
            yield
    except OSError as error:
        raise ModelError(f"A LoRA cannot be read ({error.strerror}).") from None


def _mark(file: Path) -> tuple[int, ...]:
    """Changes with the file, and with what stands beside it and says how strong it is."""
    found = [file, *([config] if (config := file.with_name(strength.CONFIG)).is_file() else [])]
    stats = [one.stat() for one in found]
    return tuple(n for stat in stats for n in (stat.st_size, stat.st_mtime_ns, stat.st_ino))


def digest(weights: str, active: Sequence[ActiveLora]) -> str:
    """A hash of the model's hash and of the LoRAs on it, as long as that one."""
    if not active:
        return weights
    total = hashlib.sha256(weights.encode())
    for one in active:
        total.update(f"{one.use.weight!r}".encode())
        total.update(bytes.fromhex(one.content))
    return total.hexdigest()[: len(weights)]
