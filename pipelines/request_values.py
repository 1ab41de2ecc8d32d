"""What values of a request are made of: texts, names and LoRAs, with the limits that they have."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from lora_manager import card
from lora_manager.card import LoraUse

MAX_PROMPT = 10_000
"""Characters. Far above any token limit; keeps hostile input from costing time."""
MAX_LORAS = 2000
"""Characters that name LoRAs."""
MAX_COUNT = 64
MAX_GUIDANCE = 30.0
MAX_SEED = 2**64 - 1
"""The largest seed of a torch generator."""
MIN_ORIGINAL, MAX_ORIGINAL = 16, 16_384
"""Pixels that an original picture may be said to have per side."""


def _text(value: Any) -> Any:
    """Control characters and lone surrogates, which no PNG chunk can carry, become spaces."""
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        return value
    kept = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else " " for c in value)
    return "".join(kept).strip()


_LISTED = TypeAdapter(tuple[LoraUse, ...])


def lora_uses(value: Any) -> Any:
    """LoRAs as they are written ("a:0.8, b") or as a recipe lists them, checked alike."""
    if isinstance(value, str) and len(value) <= MAX_LORAS:
        return card.parse(value)
    return card.parse(card.written(_LISTED.validate_python(value)))


Text = Annotated[str, BeforeValidator(_text), Field(max_length=MAX_PROMPT)]
Name = Annotated[str, BeforeValidator(_text), Field(max_length=200)]
