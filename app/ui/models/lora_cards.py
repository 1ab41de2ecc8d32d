"""The LoRAs on the Models tab as HTML."""

from __future__ import annotations

from typing import Any

from app.markup import render
from lora_manager.card import LoraCard
from lora_manager.library import LoraLibrary
from pipelines.progress import plain_size

ASKED = "lora:"
"""What stands before a LoRA's name where models and LoRAs are told apart; no model's id has it."""


def shelf(library: LoraLibrary, removing: str, *, admin: bool) -> str:
    """A card for each LoRA; visitors see no paths, no faults and no buttons."""
    cards = library.cards()
    faulty = library.faulty() if admin else {}
    strangers = [text for text in library.problems() if text not in faulty.values()]
    if not cards and not (admin and (faulty or strangers)):
        return ""
    listed = [
        {"title": one.title or one.name, "problem": "", "notes": one.notes, "facts": _facts(one)}
        | _asked(one.name, removing, removable=admin and not library.is_other(one.name))
        for one in cards
    ]
    listed += [
        {"title": name, "problem": text}
        | _asked(name, removing, removable=not library.is_other(name))
        for name, text in faulty.items()
    ]
    return render(
        "ui/models/lora_cards.html",
        "shelf",
        problems=strangers if admin else (),
        cards=listed,
        root=library.root,
    )


def _asked(name: str, removing: str, *, removable: bool) -> dict[str, Any]:
    """What a card is asked by; what was downloaded has another card, from where it is removed."""
    asked = ASKED + name
    return {
        "name": name,
        "asked": asked,
        "removable": removable,
        "removing": removable and removing == asked,
    }


def _facts(card: LoraCard) -> list[tuple[str, str]]:
    layers = "1 layer" if card.modules == 1 else f"{card.modules} layers"
    facts = [
        ("Size", plain_size(card.size)),
        ("Changes", f"{layers}, rank {card.rank}"),
        ("Made for", card.base),
        ("Say", card.trigger),
        ("Licence", card.licence),
    ]
    return [(name, value) for name, value in facts if value]
