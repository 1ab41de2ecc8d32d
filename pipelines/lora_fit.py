"""Whether a LoRA was made for a model, as far as its file tells without its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_manager.card import LoraCard
from pipelines.catalog import Catalog, ModelSpec
from pipelines.errors import RequestError
from pipelines.memory import model_numbers
from pipelines.models import hub_rows

_FAMILIES = {"alpha": "PixArt-α", "sigma": "PixArt-Σ"}
# Nets whose attention layers have the names of PixArt's, and in one case its sizes too; those of
# others are refused by their names when the file is read.
_OTHERS = {
    "Sana": re.compile(r"\bsana(\b|_|\d)", re.IGNORECASE),
    "LTX-Video": re.compile(r"\bltx[-_ ]?video|\bltxv", re.IGNORECASE),
}
# The organisation that published both families is called like one of them.
_PUBLISHER = re.compile(r"^PixArt-alpha/(?=pixart)", re.IGNORECASE)
_SIGMA = re.compile(r"pixart[-_ ]*(sigma|Σ)|^sigma\b", re.IGNORECASE)
_ALPHA = re.compile(r"pixart[-_ ]*(alpha|α|xl-2|lcm)|^alpha\b", re.IGNORECASE)


def check(card: LoraCard, model: ModelSpec, catalog: Catalog) -> None:
    """Raises RequestError where the LoRA was made for layers of another width, or for the other
    family: α and Σ have layers of the same sizes, so a wrong one would change the model without
    any sign that it is wrong."""
    wide = model_numbers.width(model)
    if card.width and wide and card.width != wide:
        raise RequestError(
            "loras",
            f"The LoRA “{card.name}” was made for layers that are {card.width} wide;"
            f" those of “{model.id}” are {wide}.",
            "Take it off, or choose the model that it was made for.",
        )
    _check_net(card)
    family = family_of(card.base, catalog)
    if family and family != model.family:
        raise RequestError(
            "loras",
            f"The LoRA “{card.name}” was made for {_FAMILIES[family]} ({card.base}), and"
            f" “{model.id}” is {_FAMILIES[model.family]}.",
            "Take it off, or choose the model that it was made for.",
        )


def check_together(cards: Iterable[LoraCard], catalog: Catalog) -> None:
    """Raises RequestError where LoRAs were made for different families, or one for another net:
    nobody could tell any more what one LoRA of both was made for."""
    seen: dict[str, LoraCard] = {}
    for card in cards:
        _check_net(card)
        if family := family_of(card.base, catalog):
            seen.setdefault(family, card)
    if len(seen) > 1:
        told = [f"“{card.name}” for {_FAMILIES[name]} ({card.base})" for name, card in seen.items()]
        raise RequestError(
            "loras",
            f"These LoRAs were not made for one model: {' and '.join(told)}.",
            "Take LoRAs of one family.",
        )


def _check_net(card: LoraCard) -> None:
    other = next((name for name, pattern in _OTHERS.items() if pattern.search(card.base)), "")
    if other:
        raise RequestError(
            "loras",
            f"The LoRA “{card.name}” was made for {other} ({card.base}), which is no PixArt.",
            "Take it off.",
        )


def family_of(base: str, catalog: Catalog) -> str:
    """Which of PixArt's families the name of a base model tells; "" where it tells none."""
    own = next((spec.family for spec in catalog if spec.id == base), "")
    if own or (known := hub_rows.known().get(base)) is None:
        name = _PUBLISHER.sub("", base)
        told = "sigma" if _SIGMA.search(name) else "alpha" if _ALPHA.search(name) else ""
        return own or told
    return str(known.row.get("family", "alpha"))
