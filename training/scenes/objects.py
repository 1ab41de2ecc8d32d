"""What scenes show: objects with their names, each with one or more sprites, from a preset."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from training.scenes.package import read_sprites

SCENES_FILE = Path(__file__).resolve().parents[2] / "presets" / "scenes.toml"


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One picture of an object. `colour` is what dominates it, "" where nothing does; `also` are
    names that only this picture has.

    `levels` are premultiplied (mode "RGBa") and trimmed, each half the size of the one before;
    empty while no package is loaded.
    """

    emoji: str
    colour: str = ""
    also: tuple[str, ...] = ()
    levels: tuple[Image.Image, ...] = field(default=(), compare=False, repr=False)

    @property
    def aspect(self) -> float:
        """Width over height, 1 while no package is loaded."""
        return self.levels[0].width / self.levels[0].height if self.levels else 1.0


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A thing that scenes show. `index` is its class; `also` holds synonyms of `name`.

    `article` is false where captions say no "a" before it and do not count it ("grapes"). `usual`
    is the colour of the first of all its sprites.
    """

    name: str
    index: int
    sprites: tuple[Sprite, ...]
    also: tuple[str, ...] = ()
    article: bool = True
    usual: str = ""
    held_out: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called, its name first."""
        return (self.name, *self.also, *(name for sprite in self.sprites for name in sprite.also))

    def only(self, *emoji: str) -> SceneObject:
        """The same object with nothing but these of its sprites."""
        kept = tuple(sprite for sprite in self.sprites if sprite.emoji in emoji)
        return replace(self, sprites=kept)

    def must_tell(self, sprite: Sprite) -> bool:
        """Whether the bare name would make one think of another one of its sprites."""
        if not self.usual or sprite.colour == self.usual:
            return False
        return bool(sprite.colour or sprite.also)


@cache
def preset() -> dict[str, Any]:
    """The file of scenes, as it is."""
    return tomllib.loads(SCENES_FILE.read_text("utf-8"))


@cache
def all_objects(*, held_out: bool = False) -> tuple[SceneObject, ...]:
    """The objects for training, or the held-out ones, without sprites, in the order of the file."""
    rows = preset()["held-out" if held_out else "objects"]
    first = len(preset()["objects"]) if held_out else 0
    return tuple(
        SceneObject(
            name=name,
            index=index,
            sprites=tuple(
                Sprite(emoji=emoji, colour=colour, also=tuple(also))
                for emoji, colour, *also in row["sprites"]
            ),
            also=tuple(row.get("also", ())),
            article=row.get("article", True),
            usual=row["sprites"][0][1],
            held_out=held_out,
        )
        for index, (name, row) in enumerate(rows.items(), first)
    )


def load_objects(source: Path, *, held_out: bool = False) -> tuple[SceneObject, ...]:
    """The objects with their sprites out of the npm package at `source`. Raises RequestError."""
    things = all_objects(held_out=held_out)
    found = read_sprites(source, {s.emoji: thing.name for thing in things for s in thing.sprites})
    return tuple(
        replace(
            thing,
            sprites=tuple(replace(sprite, levels=found[sprite.emoji]) for sprite in thing.sprites),
        )
        for thing in things
    )


def named(things: Sequence[SceneObject], name: str) -> SceneObject | None:
    """What `name` stands for among `things`, with only the sprites that it may show: a name, or a
    colour and a name ("blue heart"). None where it is none of them."""
    for thing in things:
        if name in (thing.name, *thing.also):
            usual = [s.emoji for s in thing.sprites if not thing.must_tell(s)]
            return thing.only(*usual)
        own = [s.emoji for s in thing.sprites if name in s.also]
        if own:
            return thing.only(*own)
        coloured = [
            sprite.emoji
            for sprite in thing.sprites
            if sprite.colour
            and name in [f"{sprite.colour} {n}" for n in (thing.name, *thing.also, *sprite.also)]
        ]
        if coloured:
            return thing.only(*coloured)
    return None


def plural(name: str) -> str:
    """ "slice of pizza" -> "slices of pizza", "mouse" -> "mice"."""
    head, of, rest = name.partition(" of ")
    before, space, last = head.rpartition(" ")
    return f"{before}{space}{_plural(last)}{of}{rest}"


def _plural(word: str) -> str:
    known: str | None = preset()["plurals"].get(word)
    if known is not None:
        return known
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"
