"""Synthetic sprites that the judge can tell apart: every shape has a colour of its own."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from training.scenes.objects import SceneObject, all_objects

COLOURS = ("crimson", "teal", "gold", "indigo", "sienna", "limegreen", "hotpink", "navy")
SHAPES = ("disc", "block", "tower", "wedge", "ring")


def picture(index: int) -> Image.Image:
    """RGBA, 200 px, on clear ground."""
    sprite = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    pen, colour = ImageDraw.Draw(sprite), COLOURS[index % len(COLOURS)]
    match SHAPES[index % len(SHAPES)]:
        case "disc":
            pen.ellipse((30, 30, 170, 170), fill=colour)
            pen.ellipse((60, 60, 90, 90), fill="white")
        case "block":
            pen.rectangle((30, 40, 170, 160), fill=colour)
            pen.rectangle((30, 90, 170, 110), fill="black")
        case "tower":
            pen.rectangle((75, 10, 125, 190), fill=colour)
        case "wedge":
            pen.polygon([(100, 10), (190, 180), (10, 180)], fill=colour)
        case _:
            pen.ellipse((20, 20, 180, 180), outline=colour, width=35)
    return sprite


def things(count: int) -> tuple[SceneObject, ...]:
    """The first objects of the preset, each with one synthetic sprite."""
    found = []
    for thing in all_objects()[:count]:
        drawn = picture(thing.index)
        level = drawn.crop(drawn.getchannel("A").getbbox()).convert("RGBa")
        half = level.resize((level.width // 2, level.height // 2))
        first = replace(thing.sprites[0], levels=(level, half))
        found.append(replace(thing, sprites=(first,)))
    return tuple(found)


def package(root: Path, *more: str) -> Path:
    """The npm package of all objects, held-out ones too, and of the emoji `more`, unpacked below
    `root`."""
    folder = root / "package" / "assets"
    folder.mkdir(parents=True)
    everything = [*all_objects(), *all_objects(held_out=True)]
    shown = {sprite.emoji: thing.index for thing in everything for sprite in thing.sprites}
    for emoji, index in (shown | dict.fromkeys(more, len(everything))).items():
        data = io.BytesIO()
        picture(index).save(data, format="WEBP", lossless=True)
        (folder / f"{emoji}.webp").write_bytes(data.getvalue())
    return folder.parent
