"""The recipe inside every picture: our own JSON chunk, and a text that other programs read.

`pixart-studio` holds {"version": 1, "studio", "weights", "request": {...}} and is the truth, with
"loras" of their names and the hashes of their files where there are some;
`parameters` holds the same in the infotext grammar that most picture tools understand.
"""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from app.settings import VERSION
from lora_manager import card
from pipelines import picture_parts
from pipelines.errors import RecipeError, RequestError, printable
from pipelines.picture_record import PictureRecord
from pipelines.request import FIELDS, GenerationRequest, from_mapping
from pipelines.text import styles

CHUNK = "pixart-studio"
INFOTEXT = "parameters"
FORMAT_VERSION = 1
MAX_RECIPE = 200_000
"""Characters; a request with two prompts of the greatest length stays far below."""
_USUAL = (
    *("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model"),
    *("Denoising strength", "LoRAs", "Style"),
)
"""The order in which other programs write these pairs; further ones come behind them."""
MAX_FILE_BYTES = 200_000_000
MAX_CHUNK_BYTES = 2_000_000
"""A recipe of the greatest length in the widest letters stays below."""
_MAX_NOTES, _MAX_NOTE = 64, 400
_SHA256 = re.compile(r"[0-9a-f]{64}")


def chunks(picture: PictureRecord) -> PngImagePlugin.PngInfo:
    """The text chunks of a picture."""
    recipe: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "studio": VERSION,
        "weights": picture.weights,
        "request": picture.request.recipe(),
    }
    if picture.lora_hashes:
        recipe["loras"] = dict(picture.lora_hashes)
    if picture.notes:
        recipe["notes"] = list(picture.notes)
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, json.dumps(recipe, ensure_ascii=False))
    # iTXt: the older chunk kind cannot carry more than Latin-1.
    info.add_itxt(INFOTEXT, infotext(picture.request, weights=picture.weights))
    return info


def infotext(request: GenerationRequest, *, weights: str = "") -> str:
    """`request` in the grammar "prompt / Negative prompt: ... / Steps: 20, Sampler: ..., ..."."""
    prompt, negative = styles.find(request.style).apply(request.prompt, request.negative)
    pairs = {
        row.spec.infotext.key: row.text(request)
        for row in FIELDS.values()
        if row.spec.infotext is not None
    }
    # With LoRAs the hash is that of all together, which no other program knows.
    pairs["Model hash"] = "" if request.loras else weights
    order = {key: place for place, key in enumerate(_USUAL)}
    keys = sorted(filter(pairs.get, pairs), key=lambda key: order.get(key, len(order)))
    pairs["Version"] = f"PixArt Studio {VERSION}"
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{key}: {_quoted(pairs[key])}" for key in (*keys, "Version")))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def read(file: Path) -> PictureRecord:
    """What a picture that this studio painted says of itself. Raises RecipeError."""
    text = _chunk(file)
    shown = printable(file.name)
    try:
        recipe = json.loads(text, parse_constant=_no_constant)
        version, request = recipe["version"], recipe["request"]
        if not isinstance(request, dict) or not isinstance(version, int):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RecipeError(f"The recipe inside “{shown}” is damaged.") from None
    if version > FORMAT_VERSION:
        raise RecipeError(
            f"“{shown}” was painted by a newer version of the studio.", "Update the studio."
        )
    try:
        return PictureRecord(
            request=from_mapping(request),
            weights=printable(recipe.get("weights", ""), 64),
            lora_hashes=_lora_hashes(recipe.get("loras")),
            notes=_notes(recipe.get("notes")),
        )
    except RequestError as error:
        raise RecipeError(f"The recipe inside “{shown}” cannot be used: {error.message}") from None


def _lora_hashes(told: object) -> tuple[tuple[str, str], ...]:
    """Anybody may have written them: what is no hash of a LoRA is unknown."""
    listed = told if isinstance(told, dict) and len(told) <= card.MAX_USES else {}
    return tuple(
        (name, value)
        for name, value in listed.items()
        if card.NAME.fullmatch(name) and isinstance(value, str) and _SHA256.fullmatch(value)
    )


def _notes(told: object) -> tuple[str, ...]:
    """Anybody may have written them."""
    listed = told if isinstance(told, list) else []
    return tuple(printable(note, _MAX_NOTE) for note in listed[:_MAX_NOTES])


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _chunk(file: Path) -> str:
    shown = printable(file.name)
    try:
        if not file.is_file():
            raise RecipeError(f"There is no picture at {printable(file, 200)}.")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise RecipeError(f"“{shown}” is too large for a picture of this studio.")
        with file.open("rb") as stream:
            found = picture_parts.png_text(stream, CHUNK, MAX_CHUNK_BYTES)
        text: object = None
        if found is not None:
            with Image.open(BytesIO(found), formats=("PNG",)) as picture:
                text = picture.info.get(CHUNK)
    # Pillow signals damaged and over-long chunks by several exception types.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise RecipeError(f"“{shown}” is not a PNG picture that can be read.") from None
    if not isinstance(text, str):
        raise RecipeError(
            f"“{shown}” holds no recipe of this studio.",
            "Only pictures that PixArt Studio painted can be painted again.",
        )
    if len(text) > MAX_RECIPE:
        raise RecipeError(f"The recipe inside “{shown}” is too long.")
    return str(text)
