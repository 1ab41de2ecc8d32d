"""The fixed list of prompts that small scene models are measured on."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from training.scenes.objects import SceneObject, all_objects, named

_FILE = Path(__file__).resolve().parents[2] / "presets" / "evaluation.toml"
FIRST, BINDING, WORDINGS = "first", "binding", "free"
COUNTS, TRIOS, BARE, FULL = "counts", "three", "bare", "full"
LISTS = (FIRST, BINDING, WORDINGS, COUNTS, TRIOS, BARE, FULL)


@dataclass(frozen=True, kw_only=True)
class ScenePrompt:
    """A prompt and what its picture has to show.

    `kind` is "single", "placed", "pair", "number" or "trio"; `objects` are names of the scene
    preset, with their colour where that is asked for ("blue heart"), in the order in which the
    prompt names them; `colour` is the ground's, empty where the prompt leaves it open; `place` is
    the side of kind "placed", else empty; `count` how many of kind "number". `seed` is its place
    in the file. `list` says what it is there for: "first" is the list of before, "binding" colours
    of things on grounds of other colours, "free" wordings that no caption has, "counts", "three",
    and "bare" and "full" the same things with and without a ground.
    """

    prompt: str
    kind: str
    objects: tuple[str, ...]
    colour: str = ""
    place: str = ""
    count: int = 1
    list: str = FIRST
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The objects by their names in the preset, whatever the prompt calls them."""
        return tuple(thing.name for thing in self.things(all_objects()))

    def things(self, among: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
        """The objects out of `among`, each with the sprites that its name stands for. Raises
        ValueError where one is not there."""
        found = []
        for name in self.objects:
            thing = named(among, name)
            if thing is None:
                raise ValueError(f"no object is called {name}")
            found.append(thing)
        return tuple(found)


@cache
def all_prompts() -> tuple[ScenePrompt, ...]:
    """Every prompt in the order of the file, which mixes the kinds; an index is a seed."""
    rows = tomllib.loads(_FILE.read_text("utf-8"))["prompts"]
    return tuple(
        ScenePrompt(**{**row, "objects": tuple(row["objects"])}, seed=seed)
        for seed, row in enumerate(rows)
    )
