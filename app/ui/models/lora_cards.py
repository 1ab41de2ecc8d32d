"""The LoRAs on the Models tab as HTML."""

from __future__ import annotations

from html import escape

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
    said = "".join(f'<p class="shelf-note bad">{escape(text)}</p>' for text in strangers if admin)
    listed = "".join(_card(one, _remove(library, one.name, removing, admin)) for one in cards)
    listed += "".join(
        _frame(
            name, f'<p class="problem">{escape(text)}</p>', _remove(library, name, removing, True)
        )
        for name, text in faulty.items()
    )
    return (
        '<div class="shelf" id="loras-here"><h2>LoRAs</h2>'
        '<p class="shelf-note">Small additions to a model: choose them in Create.</p>'
        f'{said}<ul class="models">{listed}</ul></div>'
    )


def _card(card: LoraCard, buttons: str) -> str:
    layers = "1 layer" if card.modules == 1 else f"{card.modules} layers"
    facts = [
        ("Size", plain_size(card.size)),
        ("Changes", f"{layers}, rank {card.rank}"),
        ("Made for", card.base),
        ("Say", card.trigger),
        ("Licence", card.licence),
    ]
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v)
    notes = "".join(f'<p class="kind">{escape(note)}</p>' for note in card.notes)
    inside = f'{notes}<dl class="model-facts">{rows}</dl>'
    return _frame(card.name, inside, buttons, card.title)


def _frame(name: str, inside: str, buttons: str, title: str = "") -> str:
    return (
        f'<li class="model-card" data-model="{escape(ASKED + name)}"><div class="model-head">'
        f"<h3>{escape(title or name)}</h3></div>{inside}{buttons}</li>"
    )


def _remove(library: LoraLibrary, name: str, removing: str, admin: bool) -> str:
    """The button, or the question behind it; nothing for what cannot be removed here."""
    # What was downloaded has a card above.
    if not admin or library.is_other(name):
        return ""
    asked = escape(ASKED + name)
    unseen = f'<span class="unseen"> {escape(name)}</span>'
    if removing != ASKED + name:
        return (
            '<div class="actions"><button type="button" class="action" data-do="ask-remove"'
            f' data-name="{asked}">Remove…{unseen}</button></div>'
        )
    said = f"Delete “{name}” from {library.root}? There is no way back."
    return (
        f'<div class="ask"><p class="said">{escape(said)}</p></div><div class="actions">'
        f'<button type="button" class="action danger" data-do="remove" data-name="{asked}">'
        f"Remove{unseen}</button>"
        f'<button type="button" class="action" data-do="keep" data-name="{asked}">Keep it</button>'
        "</div>"
    )
