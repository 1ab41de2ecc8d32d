"""Cleaning and counting of prompts, light enough for the page.

The text is cut where the model stops reading. Both the page (which shows the cut) and the text
encoder (which obeys it) use this module, so they cannot disagree.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from pipelines.catalog import Cleaning, ModelSpec
from pipelines.errors import ModelError, printable
from pipelines.text import captions, spiece

_LONE = re.compile("[\ud800-\udfff]")
MAX_TOKENIZER_BYTES = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A prompt as the model reads it. `ids` ends with the end-of-sequence token and has no padding.

    `used` counts the tokens of the whole text with its end token; `kept` + `cut` is the cleaned
    text.
    """

    ids: tuple[int, ...]
    used: int
    limit: int
    kept: str
    cut: str


def clean(text: str, how: Cleaning) -> str:
    """`text` as the captions of the training set were written.

    "lower": lower case, one space. "authors": as PixArt-α's own code cleans, see `captions`. Halves
    of surrogate pairs, which browsers and JSON can send and no encoding holds, become spaces.
    """
    text = _LONE.sub(" ", text)
    return captions.clean(text) if how == "authors" else " ".join(text.lower().split())


def tokenize(text: str, model: ModelSpec, cleaning: Cleaning | None = None) -> Tokens:
    """The tokens of `text` for `model`; without `cleaning`, that of the model.

    Raises ModelError where the tokenizer cannot be read.
    """
    tokenizer, control = _tokenizer(model.part("tokenizer"))
    cleaned = clean(text, cleaning or model.cleaning)
    # A control token typed by a user ("</s>", "<pad>", "<extra_id_0>") is text. Its characters are
    # kept; a space inside keeps the vocabulary from matching it as a whole.
    inserted = [m.start() + 1 for m in control.finditer(cleaned)] if control else []
    plain = control.sub(lambda m: f"{m[0][0]} {m[0][1:]}", cleaned) if control else cleaned
    encoding = tokenizer.encode(plain)
    ids = encoding.ids
    if not ids:
        raise ModelError(f"The tokenizer of “{model.id}” ends no text.", "Install the model again.")
    if len(ids) <= model.tokens:
        return Tokens(ids=tuple(ids), used=len(ids), limit=model.tokens, kept=cleaned, cut="")
    read = model.tokens - 1
    end = encoding.offsets[read - 1][1]
    end -= sum(1 for i, start in enumerate(inserted) if start + i < end)
    return Tokens(
        ids=(*ids[:read], ids[-1]),
        used=len(ids),
        limit=model.tokens,
        kept=cleaned[:end],
        cut=cleaned[end:],
    )


def vocabulary_size(model: ModelSpec) -> int:
    """How many tokens the tokenizer of `model` knows. Raises ModelError."""
    tokenizer, _ = _tokenizer(model.part("tokenizer"))
    size: int = tokenizer.get_vocab_size(with_added_tokens=True)
    return size


def read_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer of a folder in diffusers layout, or of a vocabulary. Raises ModelError."""
    return _tokenizer(place)[0]


def _tokenizer(place: Path) -> tuple[Tokenizer, re.Pattern[str] | None]:
    """From `tokenizer.json`, or from the `spiece.model` of old repositories."""
    file = place if place.is_file() else place / "tokenizer.json"
    if not file.exists() and (place / "spiece.model").exists():
        file = place / "spiece.model"
    try:
        stat = file.stat()
        if stat.st_size > MAX_TOKENIZER_BYTES:
            raise ModelError(f"{file} is too large for a tokenizer.")
        return _read(file, stat.st_mtime_ns)
    except OSError as error:
        raise ModelError(
            f"The tokenizer of this model cannot be read ({printable(error, 160)}).",
            "Install the model again.",
        ) from None


@lru_cache(maxsize=8)
def _read(file: Path, _changed: int) -> tuple[Tokenizer, re.Pattern[str] | None]:
    """Keyed by the time of the last change, so that a repaired file is read again."""
    try:
        if file.name == "spiece.model":
            vocabulary = spiece.read(file.read_bytes())
            names = list(vocabulary.controls)
            tokenizer = spiece.tokenizer(vocabulary)
        else:
            text = file.read_text("utf-8")
            added = json.loads(text).get("added_tokens", [])
            names = [t["content"] for t in added if t["special"]]
            # The library signals every fault of a file by a bare Exception.
            tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise ModelError(
            f"{file} is not a tokenizer ({printable(error, 120)}).", "Install the model again."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    longest_first = sorted((n for n in names if len(n) > 1), key=len, reverse=True)
    pattern = "|".join(re.escape(n) for n in longest_first)
    return tokenizer, re.compile(pattern, re.IGNORECASE) if pattern else None
