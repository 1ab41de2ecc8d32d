"""Scenes: what stands where on which ground, sampled from a seed and drawn at any size.

Lengths are fractions of the picture's shorter side, places fractions of its width and height, so
that one scene can be drawn small and large.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.scenes.objects import Colour, SceneObject, all_colours

KINDS = ("single", "placed", "pair", "number", "plain")
PLACES = ("left", "right", "top", "bottom")
FLIP_CHANCE = 0.2
# Free room between an object and the picture's edge.
_MARGIN = 0.025
# A group of objects fills at most this part of the picture.
_FILL = 0.95
_LIGHT_FALL = 0.06
_SHADOW = 0.22


@dataclass(frozen=True, kw_only=True)
class Item:
    """An object in a scene: its centre (0..1 of width and height) and its height (of the shorter
    side). Higher layers are drawn over lower ones."""

    object: SceneObject
    x: float
    y: float
    height: float
    flip: bool = False
    layer: int = 0

    @property
    def extent(self) -> float:
        """Its longer side, as a part of the picture's shorter side."""
        return self.height * max(1.0, self.object.aspect)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture shows. `items` are in the order in which captions name them.

    `arrangement` is a place ("left", ...) of kind "placed", "next", "above" or "behind" (the first
    item relative to the second) of "pair", "row" or "column" of "number", else empty. `light` is
    how much brighter the ground gets from left to right and from top to bottom.
    """

    kind: str
    arrangement: str
    colour: str
    rgb: tuple[int, int, int]
    light: tuple[float, float]
    aspect: float
    items: tuple[Item, ...]


def describe(scene: Scene) -> dict[str, object]:
    """`scene` as plain values for JSON; objects by their names."""
    return {
        "kind": scene.kind,
        "arrangement": scene.arrangement,
        "colour": scene.colour,
        "rgb": list(scene.rgb),
        "light": list(scene.light),
        "aspect": scene.aspect,
        "items": [
            {
                "object": item.object.name,
                "x": item.x,
                "y": item.y,
                "height": item.height,
                "flip": item.flip,
                "layer": item.layer,
            }
            for item in scene.items
        ],
    }


# ---- sampling ----


def sample_scene(
    kind: str, seed: int | str, objects: Sequence[SceneObject], aspect: float = 1.0
) -> Scene:
    """A scene of `kind` for pictures of `aspect` (width over height), the same for the same seed.

    "single" one big object near the middle, "placed" a small one at a side, "pair" two different
    ones, "number" two or three of the same, "plain" one of any size near the middle.
    """
    draw = random.Random(f"{kind}/{seed}")
    colour = draw.choice(list(all_colours().values()))
    room = (max(1.0, aspect), max(1.0, 1 / aspect))
    arrangement = ""
    if kind == "single":
        items = [_near_middle(draw, draw.choice(objects), draw.uniform(0.55, 0.9), room)]
    elif kind == "plain":
        items = [_near_middle(draw, draw.choice(objects), draw.uniform(0.35, 0.92), room)]
    elif kind == "placed":
        arrangement = draw.choice(PLACES)
        items = [_at_side(draw, draw.choice(objects), arrangement, room)]
    elif kind == "pair":
        arrangement = _relation(draw, aspect)
        first, second = draw.sample(objects, 2)
        if arrangement == "behind":
            items = _behind(draw, (first, second), room)
        else:
            items = _line(draw, (first, second), room, across=arrangement == "next")
    elif kind == "number":
        arrangement = "column" if aspect < 0.67 else "row"
        same = [draw.choice(objects)] * draw.choice((2, 3))
        items = _line(draw, same, room, across=arrangement == "row")
    else:
        raise ValueError(f"unknown kind of scene: {kind}")
    return Scene(
        kind=kind,
        arrangement=arrangement,
        colour=colour.name,
        rgb=_ground(draw, colour),
        light=(_around(draw, 0, _LIGHT_FALL), _around(draw, 0, _LIGHT_FALL)),
        aspect=round(aspect, 4),
        items=tuple(items),
    )


def _around(draw: random.Random, middle: float, reach: float) -> float:
    return round(draw.uniform(middle - reach, middle + reach), 4)


def _ground(draw: random.Random, colour: Colour) -> tuple[int, int, int]:
    light = draw.uniform(-colour.light, colour.light)
    red, green, blue = (
        min(255, max(0, round(value + light + draw.uniform(-colour.tint, colour.tint))))
        for value in colour.rgb
    )
    return red, green, blue


def _relation(draw: random.Random, aspect: float) -> str:
    """How two objects stand: long pictures have no room for some ways."""
    if aspect > 1.5:
        return draw.choice(("next", "next", "behind"))
    if aspect < 0.67:
        return draw.choice(("above", "above", "behind"))
    return draw.choice(("next", "next", "above", "behind"))


def _size(thing: SceneObject, extent: float) -> tuple[float, float]:
    """Width and height of `thing` when its longer side is `extent`."""
    return extent * min(1.0, thing.aspect), extent / max(1.0, thing.aspect)


def _item(
    thing: SceneObject,
    centre: tuple[float, float],
    height: float,
    room: tuple[float, float],
    *,
    flip: bool,
    layer: int = 0,
) -> Item:
    return Item(
        object=thing,
        x=round(centre[0] / room[0], 4),
        y=round(centre[1] / room[1], 4),
        height=round(height, 4),
        flip=flip,
        layer=layer,
    )


def _flips(draw: random.Random) -> bool:
    return draw.random() < FLIP_CHANCE


def _near_middle(
    draw: random.Random, thing: SceneObject, extent: float, room: tuple[float, float]
) -> Item:
    size = _size(thing, extent)
    x, y = (
        _around(draw, whole / 2, min(0.08, max(0.0, (whole - length) / 2 - _MARGIN)))
        for whole, length in zip(room, size, strict=True)
    )
    return _item(thing, (x, y), size[1], room, flip=_flips(draw))


def _at_side(
    draw: random.Random, thing: SceneObject, place: str, room: tuple[float, float]
) -> Item:
    size = _size(thing, draw.uniform(0.3, 0.5))
    axis = 0 if place in ("left", "right") else 1
    near = size[axis] / 2 + _MARGIN + draw.uniform(0.0, 0.05)
    centre = [_around(draw, room[0] / 2, 0.07), _around(draw, room[1] / 2, 0.07)]
    centre[axis] = near if place in ("left", "top") else room[axis] - near
    return _item(thing, (centre[0], centre[1]), size[1], room, flip=_flips(draw))


def _line(
    draw: random.Random,
    things: Sequence[SceneObject],
    room: tuple[float, float],
    *,
    across: bool,
) -> list[Item]:
    """`things` from left to right (`across`) or from top to bottom, as big as fits."""
    along, side = (0, 1) if across else (1, 0)
    spread = 0.15 if things[0] != things[-1] else 0.05
    sizes = [_size(thing, draw.uniform(1 - spread, 1.0)) for thing in things]
    gap = draw.uniform(0.02, 0.06)
    total = sum(size[along] for size in sizes) + gap * (len(sizes) - 1)
    widest = max(size[side] for size in sizes)
    scale = min(_FILL * room[along] / total, 0.88 * room[side] / widest, 0.9)
    free = (room[along] - scale * total) / 2
    start = free + _around(draw, 0, min(0.05, max(0.0, free - _MARGIN)))
    slack = (room[side] - scale * widest) / 2 - _MARGIN
    middle = room[side] / 2 + _around(draw, 0, min(0.04, max(0.0, slack)))
    flip = _flips(draw)
    items = []
    for thing, size in zip(things, sizes, strict=True):
        length, breadth = scale * size[along], scale * size[side]
        # Neighbours stand on one floor; what is stacked is centred.
        place = middle + scale * widest / 2 - breadth / 2 if across else middle
        centre = (start + length / 2, place) if across else (place, start + length / 2)
        items.append(_item(thing, centre, scale * size[1], room, flip=flip))
        start += length + scale * gap
    return items


def _behind(
    draw: random.Random, things: tuple[SceneObject, SceneObject], room: tuple[float, float]
) -> list[Item]:
    """The first behind the second: higher, to one side, and partly hidden."""
    back, front = _size(things[0], 1.0), _size(things[1], draw.uniform(0.75, 0.9))
    hidden = [
        draw.uniform(low, high) * min(b, f)
        for low, high, b, f in zip((0.5, 0.35), (0.75, 0.55), back, front, strict=True)
    ]
    total = [b + f - h for b, f, h in zip(back, front, hidden, strict=True)]
    scale = min(_FILL * room[0] / total[0], _FILL * room[1] / total[1], 0.8)
    left, top = ((whole - scale * t) / 2 for whole, t in zip(room, total, strict=True))
    back_x = left + scale * back[0] / 2
    front_x = left + scale * (total[0] - front[0] / 2)
    if draw.random() < 0.5:
        back_x, front_x = room[0] - back_x, room[0] - front_x
    back_y = top + scale * back[1] / 2
    front_y = top + scale * (total[1] - front[1] / 2)
    return [
        _item(things[0], (back_x, back_y), scale * back[1], room, flip=_flips(draw)),
        _item(things[1], (front_x, front_y), scale * front[1], room, flip=_flips(draw), layer=1),
    ]


# ---- drawing ----


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """`scene` as an RGB picture of `width` x `height` pixels. Its objects need their sprites."""
    canvas = _background(scene, width, height)
    for item in sorted(scene.items, key=lambda item: item.layer):
        _draw_item(canvas, item)
    return Image.fromarray((canvas + 0.5).clip(0, 255).astype(np.uint8))


def _background(scene: Scene, width: int, height: int) -> NDArray[np.float32]:
    """(H, W, 3) in 0..255: the colour, a trace brighter towards one side."""
    across = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    down = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
    light = 1 + scene.light[0] * across[None, :] + scene.light[1] * down[:, None]
    ground = light[:, :, None] * np.asarray(scene.rgb, dtype=np.float32)
    return ground.astype(np.float32, copy=False)


def _draw_item(canvas: NDArray[np.float32], item: Item) -> None:
    """Lays the shadow and the sprite of `item` over `canvas` (H, W, 3), in place."""
    rows, columns = canvas.shape[:2]
    high = max(1, round(item.height * min(rows, columns)))
    wide = max(1, round(item.height * min(rows, columns) * item.object.aspect))
    left, top = round(item.x * columns - wide / 2), round(item.y * rows - high / 2)
    _shade(canvas, left + wide / 2, top + high, wide)
    sprite = _sprite(item.object, wide, high)
    if item.flip:
        sprite = ImageOps.mirror(sprite)
    pixels = np.asarray(sprite, dtype=np.float32)
    pixels = pixels[max(0, -top) : rows - top, max(0, -left) : columns - left]
    top, left = max(0, top), max(0, left)
    under = canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    under *= 1 - pixels[:, :, 3:] / 255
    under += pixels[:, :, :3]


def _sprite(thing: SceneObject, width: int, height: int) -> Image.Image:
    """(height, width) premultiplied; from the smallest level that still is larger by a half."""
    level = thing.levels[0]
    for smaller in thing.levels[1:]:
        if smaller.width < 1.5 * width or smaller.height < 1.5 * height:
            break
        level = smaller
    return level.resize((width, height), Image.Resampling.LANCZOS)


def _shade(canvas: NDArray[np.float32], x: float, y: float, width: float) -> None:
    """Darkens a soft ellipse where an object `width` pixels wide touches the ground at (x, y)."""
    rows, columns = canvas.shape[:2]
    deep = max(1.0, 0.05 * width)
    half = 0.3 * width
    top, bottom = max(0, int(y - 3 * deep)), min(rows, int(y + 3 * deep) + 1)
    left, right = max(0, int(x - 3 * half)), min(columns, int(x + 3 * half) + 1)
    if top >= bottom or left >= right:
        return
    down = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / deep
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / half
    shadow = np.exp(-(down**2))[:, None] * np.exp(-(across**4))[None, :]
    canvas[top:bottom, left:right] *= 1 - _SHADOW * shadow[:, :, None]
