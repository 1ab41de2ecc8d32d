"""Whether the LoRAs that a picture was painted with are here, and still the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_manager.errors import LoraError, printable
from lora_manager.library import LoraLibrary
from pipelines.picture_record import PictureRecord

_SHOWN = 10
"""Digits of a hash that people are shown."""


@dataclass(frozen=True, kw_only=True)
class ChangedLora:
    """A LoRA of a recipe that cannot be had as it was. `missing`: none is called so; else another
    one is. `sentence` says it."""

    name: str
    missing: bool
    sentence: str


def changed(record: PictureRecord, library: LoraLibrary) -> Iterator[ChangedLora]:
    """The LoRAs of a recipe that are gone, damaged or others now. Recipes of before have no hashes:
    there only what is gone or damaged is known."""
    hashes = dict(record.lora_hashes)
    faulty = library.faulty()
    here = {card.name for card in library.cards()} | set(faulty)
    for use in record.request.loras:
        then = hashes.get(use.name, "")
        if not use.weight:
            continue
        if use.name not in here:
            known = f" ({then[:_SHOWN]})" if then else ""
            said = f"The LoRA “{printable(use.name)}”{known} of that picture is not here any more."
            yield ChangedLora(name=use.name, missing=True, sentence=said)
            continue
        if use.name in faulty:
            # What is wrong with it holds paths, which are nobody's business but the owner's.
            said = f"The LoRA “{printable(use.name)}” of that picture is damaged."
            yield ChangedLora(name=use.name, missing=False, sentence=said)
            continue
        try:
            now = library.content_hash(use.name)
        except LoraError:
            # Whoever uses it is told why it cannot be read.
            continue
        if then and now != then:
            said = (
                f"The LoRA “{printable(use.name)}” is another one than when that picture was"
                f" painted ({now[:_SHOWN]} now, {then[:_SHOWN]} then)."
            )
            yield ChangedLora(name=use.name, missing=False, sentence=said)


def renamed(record: PictureRecord, name: str, library: LoraLibrary) -> str:
    """What the LoRA `name` of a recipe is called here now, "" where none has its content.

    Reads every file of the library.
    """
    then = dict(record.lora_hashes).get(name)
    for card in library.cards() if then else ():
        try:
            if library.content_hash(card.name) == then:
                return card.name
        except LoraError:
            continue
    return ""
