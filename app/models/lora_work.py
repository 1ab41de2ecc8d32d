"""What is made of the LoRAs of the library: files for other programs, merged and smaller ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.settings import user_path
from lora_manager import card, forms, headers
from lora_manager.card import LoraCard, LoraUse
from lora_manager.forms import ExportForm
from lora_manager.library import LoraLibrary
from pipelines import lora_fit
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, model_errors, printable

if TYPE_CHECKING:
    from lora_manager.algebra import Comparison, Reduced
    from lora_manager.attach import Weighted
    from lora_manager.files import Lora

_ROUNDING = 1e-7
"""Less than what one rounding to float32 loses."""
MAX_RANK = 4096
"""Far above what trainers write; keeps a slip of the finger from costing hours."""


@dataclass(frozen=True, kw_only=True)
class MadeLora:
    """A LoRA that was made of others. `error`: what was lost, relative to all changes; 0.0 where
    nothing was."""

    card: LoraCard
    error: float

    @property
    def lost(self) -> str:
        """What was lost, in words."""
        return lost_in_words(self.error)


def lost_in_words(error: float) -> str:
    """A part of a sentence: "nothing is lost", "12 % of the change is lost"."""
    if error < _ROUNDING:
        return "nothing is lost"
    return f"{100 * error:.3g} % of the change is lost"


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
    catalog: Catalog, uses: Sequence[LoraUse], name: str, *, rank: int | None = None
) -> MadeLora:
    """Keeps a LoRA called `name` that does what `uses` do together.

    Exactly, with the sum of their ranks; with `rank` it is the nearest one of that rank. Raises
    ModelError; RequestError also where they were made for different families.
    """
    library, used = catalog.loras, [use for use in uses if use.weight]
    with model_errors():
        cards = check_merge(catalog, uses, name, rank)
        from lora_manager import algebra

        made = algebra.merged(weighted(library, used))
        lost = None
        if rank is not None and rank < max(pair.rank for pair in made.pairs.values()):
            lost = algebra.reduced(made, rank)
            made = lost.lora
        texts = {
            "title": name,
            "trigger": ", ".join(_said(one.trigger for one in cards)),
            "licence": " and ".join(_said(one.licence for one in cards)),
            # Which family it is for must stay known.
            "base": " and ".join(_said(one.base for one in cards)),
        }
        note = f"It was merged of {card.written(used)}" + _lost(rank, lost)
        told = [f"{one.name}: {said}" for one in cards for said in one.notes]
        lora = _noted(made, note, *told)
        return MadeLora(card=library.add(name, lora, texts), error=lost.error if lost else 0.0)


def _said(texts: Iterable[str]) -> list[str]:
    """What is not empty, each once."""
    return list(dict.fromkeys(filter(None, texts)))


def check_merge(
    catalog: Catalog, uses: Sequence[LoraUse], name: str, rank: int | None
) -> list[LoraCard]:
    """The LoRAs that have a weight, if they can be merged as far as is seen without their numbers.

    Raises LoraError, RequestError.
    """
    check_rank(rank)
    catalog.loras.check_free(name)
    cards = [(catalog.loras.find(use.name), use.weight) for use in uses]
    used = [found for found, weight in cards if weight]
    lora_fit.check_together(used, catalog)
    return used


def resize(library: LoraLibrary, source: str, name: str, rank: int) -> MadeLora:
    """Keeps a copy of the LoRA `source` as `name`, of a smaller rank. Raises ModelError,
    RequestError."""
    with model_errors():
        found = check_resize(library, source, name, rank)
        from lora_manager import algebra

        smaller = algebra.reduced(_read(found), rank)
        said = {field: getattr(found, field) for field in card.TEXTS}
        note = f"It was made of {source}" + _lost(rank, smaller)
        lora = _noted(smaller.lora, note, *found.notes)
        return MadeLora(card=library.add(name, lora, said), error=smaller.error)


def check_resize(library: LoraLibrary, source: str, name: str, rank: int) -> LoraCard:
    """The LoRA `source`, if it can become smaller. Raises LoraError, RequestError."""
    check_rank(rank)
    library.check_free(name)
    found = library.find(source)
    if rank >= found.rank:
        raise RequestError(
            "rank",
            f"The LoRA “{source}” has the rank {found.rank}, so with {rank} it would not"
            " become smaller.",
            f"Take a rank below {found.rank}." if found.rank > 1 else "",
        )
    return found


def losses(library: LoraLibrary, name: str) -> list[tuple[int, float]]:
    """What the LoRA `name` would lose with smaller ranks (halves, and halves of these), relative to
    all its changes. Raises ModelError."""
    with model_errors():
        found = library.find(name)
        from lora_manager import algebra

        lost = algebra.losses(_read(found))
    ranks = [2**n for n in range(found.rank.bit_length()) if 2**n < found.rank]
    return [(rank, lost[min(rank, len(lost) - 1)]) for rank in reversed(ranks)]


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


def _noted(lora: Lora, *notes: str) -> Lora:
    from lora_manager.files import Lora as Made

    return Made(pairs=lora.pairs, notes=tuple(printable(note, 200) for note in notes))


def _lost(rank: int | None, lost: Reduced | None) -> str:
    if lost is None:
        return "."
    return f", cut to rank {rank} with a relative error of {lost.error:.3g}."


def check_rank(rank: int | None) -> None:
    """Raises RequestError for a rank that no LoRA has."""
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise RequestError(
            "rank", f"A LoRA cannot have the rank {rank}.", f"Take a number from 1 to {MAX_RANK}."
        )
