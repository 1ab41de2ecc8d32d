"""The LoRAs on the Models tab as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_manager.card import LoraCard
from pipelines.progress import plain_size

ASKED = "lora:"
"""What stands before a LoRA's name where models and LoRAs are told apart; no model's id has it."""


def shelf(
    cards: Sequence[LoraCard], problems: Sequence[str], removing: str, own: frozenset[str]
) -> str:
    """A card for each LoRA. `own` are those that may be removed, by whoever looks at them."""
    if not cards and not problems:
        return ""
    said = "".join(f'<p class="shelf-note bad">{escape(text)}</p>' for text in problems)
    listed = "".join(_card(one, removing, one.name in own) for one in cards)
    return (
        '<div class="shelf" id="loras-here"><h2>LoRAs</h2>'
        '<p class="shelf-note">Small additions to a model: choose them in Create.</p>'
        f'{said}<ul class="models">{listed}</ul></div>'
    )


def _card(card: LoraCard, removing: str, own: bool) -> str:
    facts = [
        ("Size", plain_size(card.size)),
        ("Changes", f"{card.modules} layers, rank {card.rank}"),
        ("Made for", card.base),
        ("Say", card.trigger),
        ("Licence", card.licence),
    ]
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v)
    notes = "".join(f'<p class="kind">{escape(note)}</p>' for note in card.notes)
    asked = f"{ASKED}{card.name}"
    return (
        f'<li class="model-card" data-model="{escape(asked)}"><div class="model-head">'
        f"<h3>{escape(card.title or card.name)}</h3></div>{notes}"
        f'<dl class="model-facts">{rows}</dl>'
        f"{_buttons(card, asked, asks=removing == asked) if own else ''}</li>"
    )


def _buttons(card: LoraCard, asked: str, *, asks: bool) -> str:
    name = escape(asked)
    unseen = f'<span class="unseen"> {escape(card.name)}</span>'
    if not asks:
        return (
            '<div class="actions"><button type="button" class="action" data-do="ask-remove"'
            f' data-name="{name}">Remove…{unseen}</button></div>'
        )
    said = f"Delete {card.file}? There is no way back."
    return (
        f'<div class="ask"><p class="said">{escape(said)}</p></div><div class="actions">'
        f'<button type="button" class="action danger" data-do="remove" data-name="{name}">'
        f"Remove{unseen}</button>"
        f'<button type="button" class="action" data-do="keep" data-name="{name}">Keep it</button>'
        "</div>"
    )
