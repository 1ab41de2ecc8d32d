"""What is typed and pressed in the form of a training, put into its preparation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.training import orders
from app.training.preparation import MOST_CAPTION, Crop, Preparation, Preparations
from pipelines.errors import RequestError

MOST_TEXT = 5000
_MOST_FIELDS = 2500
_PLAIN = ("subject", "word", "base", "name", "template", "trigger", "recipe", "data")
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Marks that turn the direction of what is written behind them, in the list as well."""
_CLOSER = 1.25
"""By how much one press zooms; whoever moves a crop sees at least so much less."""


def fill(prepared: Preparations, name: str, filled: dict[str, str]) -> Preparation:
    """Keeps what was typed. Raises RequestError for a value that cannot be."""
    with prepared.changing:
        return _fill(prepared, prepared.get(name), filled)


def _fill(prepared: Preparations, made: Preparation, filled: dict[str, str]) -> Preparation:
    settings, photos = dict(made.settings), {one.file: one for one in made.photos}
    plain: dict[str, str] = {}
    defaults = _defaults(made) if any(k.startswith("set:") for k in filled) else {}
    for key, text in filled.items():
        kind, _, name = key.partition(":")
        if kind == "caption" and name in photos:
            caption = text[:MOST_CAPTION]
            photos[name] = photos[name].model_copy(update={"caption": caption})
        elif kind == "set" and name in defaults:
            settings.pop(name, None)
            if text.strip() != defaults[name]:
                settings[name] = text.strip()
        elif key in _PLAIN:
            plain[key] = " ".join(_TURNS.sub("", text).split())
    if plain.get("recipe", made.recipe) != made.recipe:
        # Its keys have other values.
        settings = {}
    changed = made.model_copy(
        update={**plain, "settings": settings, "photos": tuple(photos.values())}
    )
    if changed == made:
        return made
    return prepared.change(made.id, **changed.model_dump(exclude={"id"}))


def _defaults(made: Preparation) -> dict[str, str]:
    """What the form shows for each key of the recipe where nothing was typed."""
    config = orders.plain_recipe(made).stages[-1]
    return {one.key: one.written(orders.value_of(config, one.key)) for one in orders.fields(config)}


def filled(told: Any) -> dict[str, str]:
    """The fields that the page has sent; whatever else a program sends is left out."""
    if not isinstance(told, dict) or len(told) > _MOST_FIELDS:
        return {}
    return {
        key: value
        for key, value in told.items()
        if isinstance(key, str) and isinstance(value, str) and len(value) <= MOST_TEXT
    }


def crop(prepared: Preparations, name: str, file: str, do: str, data: Mapping[str, Any]) -> None:
    """Moves the crop of a photo, or makes it closer or wider. Raises RequestError."""
    with prepared.changing:
        prepared.save(_cropped(prepared.get(name), file, do, data))


def _cropped(made: Preparation, file: str, do: str, data: Mapping[str, Any]) -> Preparation:
    photo = made.photo(file)
    part = photo.crop or Crop()
    if do == "focus":
        x, y = data.get("x"), data.get("y")
        if not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in (x, y)):
            raise RequestError("photo", "This is no place in a photo.")
        # The press was within what is shown now, which may be a part already.
        left, top, right, bottom = part.box(photo.width, photo.height)
        part = part.model_copy(
            update={
                "x": (left + float(x) * (right - left)) / photo.width,  # type: ignore[arg-type]
                "y": (top + float(y) * (bottom - top)) / photo.height,  # type: ignore[arg-type]
                "zoom": max(part.zoom, _CLOSER),
            }
        )
    else:
        step = _CLOSER if do == "closer" else 1 / _CLOSER
        part = part.model_copy(update={"zoom": min(8.0, max(1.0, part.zoom * step))})
    kept = None if part.zoom <= 1.0 else part
    return made.with_photo(photo.model_copy(update={"crop": kept}))
