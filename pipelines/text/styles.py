"""Prompt templates from presets/styles.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipelines.errors import UnknownNameError

NO_STYLE = "None"
_STYLES_FILE = Path(__file__).resolve().parents[2] / "presets" / "styles.toml"


@dataclass(frozen=True, kw_only=True)
class Style:
    """A template around the prompt and words that it wants to keep out of the picture."""

    name: str
    prompt: str
    negative: str = ""

    def apply(self, prompt: str, negative: str) -> tuple[str, str]:
        """(prompt, negative) with the template around them."""
        # str.replace and not str.format: a prompt may hold braces.
        parts = [part for part in (negative.strip(), self.negative) if part]
        return self.prompt.replace("{prompt}", prompt.strip()), ", ".join(parts)


@cache
def all_styles() -> dict[str, Style]:
    """Every style by name, in the order of the file."""
    rows = tomllib.loads(_STYLES_FILE.read_text("utf-8"))
    return {name: Style(name=name, **row) for name, row in rows.items()}


def find(name: str) -> Style:
    """The style called `name`, in any case. Raises UnknownNameError."""
    for style in all_styles().values():
        if style.name.casefold() == name.casefold():
            return style
    raise UnknownNameError("style", "style", name, all_styles())
