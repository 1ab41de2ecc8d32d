"""What a subject is taught from, and what is asked of it afterwards: fixed, drawn from seeds.

A subject is a held-out object of presets/scenes.toml, which the small model has never seen.
"""

from __future__ import annotations

import tomllib
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.errors import UnknownNameError
from training.evaluation import segmentation
from training.evaluation.prompts import ScenePrompt
from training.scenes.captions import article
from training.scenes.compose import draw, sample_scene
from training.scenes.grounds import Ground, all_colours
from training.scenes.objects import SceneObject, Sprite, all_objects
from training.scenes.package import read_sprites

_FILE = Path(__file__).resolve().parents[2] / "presets" / "subjects.toml"
PHOTOS, PROMPTS = 6, 40
LIST = "subject"
HALF_PROMPTS = 64
"""Prompts that are also painted at half the weight; the first ones are the PROMPTS."""
# A colour that is nearer than this (in Lab) to more than this part of a sprite hides it.
_LIKE, _HIDDEN_PART = 12.0, 1 / 8
_FIRST_SEED = 5000


@cache
def _preset() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text("utf-8"))


def word() -> str:
    """The word that every subject is taught by."""
    found: str = _preset()["word"]
    return found


def check(names: tuple[str, ...]) -> None:
    """Raises UnknownNameError for what is no held-out object."""
    known = [thing.name for thing in all_objects(held_out=True)]
    for name in names:
        if name not in known:
            raise UnknownNameError("subjects", "held-out object", name, known)


def lookalikes(source: Path) -> tuple[SceneObject, ...]:
    """Pictures of the package that are no objects, as if they were. Raises RequestError."""
    rows: dict[str, str] = _preset()["lookalikes"]
    found = read_sprites(source, {emoji: name for name, emoji in rows.items()})
    return tuple(
        SceneObject(
            name=name,
            index=-1,
            sprites=(Sprite(emoji=emoji, levels=found[emoji]),),
            held_out=True,
        )
        for name, emoji in rows.items()
    )


def photos(thing: SceneObject, *, side: int, number: int = PHOTOS) -> list[Image.Image]:
    """Drawn pictures of `thing`, `side` pixels square, with nothing else in them."""
    kinds: list[str] = _preset()["kinds"]
    allowed = _seen_on(thing, _preset()["photos"])
    return [_photo(thing, kinds[n % len(kinds)], n, allowed, side) for n in range(number)]


def _photo(
    thing: SceneObject, kind: str, number: int, allowed: tuple[str, ...], side: int
) -> Image.Image:
    for attempt in count():
        scene = sample_scene(kind, f"photo/{number}/{attempt}", [thing])
        if _is_on(scene.ground, allowed):
            return draw(scene, side, side)
    raise AssertionError("count() never ends")


def _is_on(ground: Ground, allowed: tuple[str, ...]) -> bool:
    return set(ground.colours) <= set(allowed)


def prompts(thing: SceneObject, number: int = PROMPTS) -> tuple[ScenePrompt, ...]:
    """What is asked: backgrounds that no photo has, in several wordings, half of them at a side."""
    colours = _seen_on(thing, _preset()["prompts"])
    forms: list[dict[str, str]] = _preset()["forms"]
    found = []
    for n in range(number):
        turn, place_in_turn = divmod(n, len(forms))
        form = forms[place_in_turn]
        # Shifted by one in each turn, so that a wording meets every colour.
        colour = colours[(place_in_turn + turn) % len(colours)]
        text = form["text"].format(
            subject=f"{word()} {thing.name}", colour=colour, a_colour=article(colour)
        )
        place = form.get("place", "")
        found.append(
            ScenePrompt(
                prompt=text,
                kind="placed" if place else "single",
                objects=(thing.name,),
                colour=colour,
                place=place,
                list=LIST,
                seed=_FIRST_SEED + n,
            )
        )
    return tuple(found)


def _seen_on(thing: SceneObject, colours: list[str]) -> tuple[str, ...]:
    return tuple(name for name in colours if not _hides(thing, name))


def _hides(thing: SceneObject, colour: str) -> bool:
    """Whether a background of this colour hides a good part of `thing`, whose sprites are there."""
    ground = segmentation.lab(np.asarray(all_colours()[colour].rgb))
    for sprite in thing.sprites:
        pixels = np.asarray(sprite.levels[-1].convert("RGBA"))
        shades = segmentation.lab(pixels[pixels[:, :, 3] > 127][:, :3])
        if (np.linalg.norm(shades - ground, axis=1) < _LIKE).mean() > _HIDDEN_PART:
            return True
    return False
