"""The fixed list of prompts that small scene models are measured on."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).resolve().parents[2] / "presets" / "evaluation.toml"


@dataclass(frozen=True, kw_only=True)
class ScenePrompt:
    """A prompt and what its picture has to show.

    `kind` is "single", "placed" or "pair"; `objects` are names of the scene preset in the order in
    which the prompt names them; `place` is the side of kind "placed", else empty.
    """

    prompt: str
    kind: str
    objects: tuple[str, ...]
    colour: str
    place: str = ""


@cache
def all_prompts() -> tuple[ScenePrompt, ...]:
    """Every prompt in the order of the file, which mixes the kinds; an index is a seed."""
    rows = tomllib.loads(_FILE.read_text("utf-8"))["prompts"]
    return tuple(ScenePrompt(**{**row, "objects": tuple(row["objects"])}) for row in rows)
