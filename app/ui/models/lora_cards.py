"""The LoRAs on the Models tab as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.markup import render
from app.models.lora_export_jobs import LoraExportJob
from app.ui.routes import LORAS
from lora_manager import forms
from lora_manager.card import LoraCard
from lora_manager.library import LoraLibrary
from pipelines.progress import plain_size

ASKED = "lora:"
"""What stands before a LoRA's name where models and LoRAs are told apart; no model's id has it."""


EXPORT = "export-"
"""What stands before the form in which a LoRA is to be written."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the person is asked about, and what was asked for: the LoRAs (with `ASKED`) that may be
    removed or exported, the last export, and the names of those that are selected."""

    removing: str = ""
    exporting: str = ""
    job: LoraExportJob | None = None
    picked: tuple[str, ...] = ()


def shelf(library: LoraLibrary, state: Asked, *, admin: bool) -> str:
    """A card for each LoRA; visitors see no paths, no faults and no buttons."""
    cards = library.cards()
    faulty = library.faulty() if admin else {}
    strangers = [text for text in library.problems() if text not in faulty.values()]
    if not cards and not (admin and (faulty or strangers)):
        return ""
    listed = [
        {"title": one.title or one.name, "problem": "", "notes": one.notes, "facts": _facts(one)}
        | _asked(one.name, state, removable=admin and not library.is_other(one.name))
        | _exported(one.name, state if admin else None)
        | {"pickable": admin, "picked": one.name in state.picked}
        for one in cards
    ]
    listed += [
        {"title": name, "problem": text}
        | _asked(name, state, removable=not library.is_other(name))
        | _exported(name, None)
        | {"pickable": False, "picked": False}
        for name, text in faulty.items()
    ]
    return render(
        "ui/models/lora_cards.html",
        "shelf",
        problems=strangers if admin else (),
        cards=listed,
        root=library.root,
        forms=[(EXPORT + form.name, form.label, form.read_by) for form in forms.FORMS.values()],
    )


def _exported(name: str, state: Asked | None) -> dict[str, Any]:
    """Whether it can be exported, whether somebody is asked in which form, and the last export."""
    job = state.job if state is not None and state.job and state.job.name == name else None
    return {
        "exportable": state is not None,
        "exporting": state is not None and state.exporting == ASKED + name,
        "running": job is not None and job.active,
        "failed": str(job.error) if job is not None and job.error else "",
        "address": f"{LORAS}/{job.token}" if job is not None and job.file else "",
        "file": job.file.name if job is not None and job.file else "",
    }


def _asked(name: str, state: Asked, *, removable: bool) -> dict[str, Any]:
    """What a card is asked by; what was downloaded has another card, from where it is removed."""
    asked = ASKED + name
    return {
        "name": name,
        "asked": asked,
        "removable": removable,
        "removing": removable and state.removing == asked,
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
