"""What is made of the LoRAs of the library: files for other programs, merged and smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.settings import user_path
from lora_manager import card, forms, headers
from lora_manager.card import LoraCard, LoraUse
from lora_manager.forms import ExportForm
from lora_manager.library import LoraLibrary
from pipelines.errors import RequestError, model_errors, printable

if TYPE_CHECKING:
    from lora_manager.algebra import Comparison
    from lora_manager.attach import Weighted
    from lora_manager.files import Lora

MAX_RANK = 4096
"""Far above what trainers write; keeps a slip of the finger from costing hours."""


@dataclass(frozen=True, kw_only=True)
class MadeLora:
    """A LoRA that was made of others. `error`: what was lost, relative to all changes; 0.0 where
    nothing was."""

    card: LoraCard
    error: float


def export(
    library: LoraLibrary, name: str, form_name: str, out: Path, *, overwrite: bool = False
) -> tuple[ExportForm, Path]:
    """Writes the LoRA `name` for other programs; returns the form and where it lies.

    Raises ModelError; nothing is left then, and what was there is as it was.
    """
    with model_errors():
        form, found = forms.find(form_name), library.find(name)
        target = forms.target(form, out, name)
        from lora_manager import export as writing

        lora = _read(found)
        said = {field: getattr(found, field) for field in card.TEXTS}
        writing.write(
            lora,
            form,
            target,
            card.metadata(said, found.notes),
            base=found.base,
            replace=overwrite,
        )
    return form, target


def merge(
    library: LoraLibrary, uses: Sequence[LoraUse], name: str, *, rank: int | None = None
) -> MadeLora:
    """Keeps a LoRA called `name` that does what `uses` do together.

    Exactly, with the sum of their ranks; with `rank` it is the nearest one of that rank. Raises
    ModelError, RequestError.
    """
    _check_rank(rank)
    with model_errors():
        library.check_free(name)
        cards = {use.name: library.find(use.name) for use in uses}
        from lora_manager import algebra

        made = algebra.merged(weighted(library, uses))
        error = 0.0
        if rank is not None:
            smaller = algebra.reduced(made, rank)
            made, error = smaller.lora, smaller.error
        bases = {one.base for one in cards.values()}
        triggers = dict.fromkeys(filter(None, (one.trigger for one in cards.values())))
        licences = dict.fromkeys(filter(None, (one.licence for one in cards.values())))
        texts = {
            "title": name,
            "trigger": ", ".join(triggers),
            "licence": " and ".join(licences),
            "base": bases.pop() if len(bases) == 1 else "",
        }
        note = f"It was merged of {card.written(uses)}" + _lost(rank, error)
        return MadeLora(card=library.add(name, _noted(made, note), texts), error=error)


def resize(library: LoraLibrary, source: str, name: str, rank: int) -> MadeLora:
    """Keeps a copy of the LoRA `source` as `name`, of a smaller rank. Raises ModelError,
    RequestError."""
    _check_rank(rank)
    with model_errors():
        library.check_free(name)
        found = library.find(source)
        if rank >= found.rank:
            raise RequestError(
                "rank",
                f"The LoRA “{source}” has the rank {found.rank}, so with {rank} it would not"
                " become smaller.",
                f"Take a rank below {found.rank}.",
            )
        from lora_manager import algebra

        smaller = algebra.reduced(_read(found), rank)
        said = {field: getattr(found, field) for field in card.TEXTS}
        lora = _noted(smaller.lora, f"It was made of {source}" + _lost(rank, smaller.error))
        return MadeLora(card=library.add(name, lora, said), error=smaller.error)


def compare(library: LoraLibrary, one: str, other: str) -> Comparison:
    """Compares two LoRAs: names of the library, files or PEFT folders. Raises ModelError."""
    with model_errors():
        from lora_manager import algebra, files

        names = {found.name for found in library.cards()}
        return algebra.compared(
            *(
                _read(library.find(text)) if text in names else files.read(_path(library, text))
                for text in (one, other)
            )
        )


def weighted(library: LoraLibrary, uses: Sequence[LoraUse]) -> Weighted:
    """The LoRAs that are asked for, read. Raises LoraError."""
    return [(use.name, _read(library.find(use.name)), use.weight) for use in uses]


def _path(library: LoraLibrary, text: str) -> Path:
    path = user_path(text)
    if not headers.is_file(path) and not path.is_dir() and path.name == text:
        # It says which name is nearest.
        return library.find(text).file
    return path


def _read(found: LoraCard) -> Lora:
    from lora_manager import files

    return files.read(found.file)


def _noted(lora: Lora, note: str) -> Lora:
    from lora_manager.files import Lora as Made

    return Made(pairs=lora.pairs, notes=(printable(note, 200),))


def _lost(rank: int | None, error: float) -> str:
    return "." if rank is None else f", cut to rank {rank} with a relative error of {error:.3g}."


def _check_rank(rank: int | None) -> None:
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise RequestError(
            "rank", f"A LoRA cannot have the rank {rank}.", f"Take a number from 1 to {MAX_RANK}."
        )
