"""Scenes: what stands where on which ground, sampled from a seed and drawn at any size.

Lengths are fractions of the picture's shorter side, places fractions of its width and height, so
that one scene can be drawn small and large.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.scenes.grounds import FLOOR, Ground, draw_ground, sample_ground, shade
from training.scenes.objects import SceneObject, Sprite

KINDS = ("single", "placed", "pair", "number", "plain", "trio")
PLACES = ("left", "right", "top", "bottom")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
FLIP_CHANCE = 0.2
# How often a pair is one object in two colours, a trio two of one object and another.
_TINTS_CHANCE, _TWO_AND_ONE = 0.1, 0.3
_CORNER_CHANCE = 0.15
_MOST = 4
# Free room between an object and the picture's edge.
_MARGIN = 0.025
# A group of objects fills at most this part of the picture.
_FILL = 0.95


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An object as one of its sprites."""

    object: SceneObject
    sprite: Sprite


@dataclass(frozen=True, kw_only=True)
class Placement(Figure):
    """A figure in a scene: its centre (0..1 of width and height) and its height (of the shorter
    side). Higher layers are drawn over lower ones."""

    x: float
    y: float
    height: float
    flip: bool = False
    layer: int = 0

    @property
    def extent(self) -> float:
        """Its longer side, as a part of the picture's shorter side."""
        return self.height * max(1.0, self.sprite.aspect)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture shows. `items` are in the order in which captions name them.

    `arrangement` is a place ("left", "top left", ...) of kind "placed", "next", "above" or
    "behind" (the first item relative to the second) of "pair", "row", "column" or "grid" of
    "number", "row" or "column" of "trio", else empty. In a trio, the first two may be the same.
    """

    kind: str
    arrangement: str
    ground: Ground
    aspect: float
    items: tuple[Placement, ...]


def describe(scene: Scene) -> dict[str, object]:
    """`scene` as plain values for JSON; objects by their names."""
    return {
        "kind": scene.kind,
        "arrangement": scene.arrangement,
        "ground": asdict(scene.ground),
        "aspect": scene.aspect,
        "items": [
            {
                "object": item.object.name,
                "emoji": item.sprite.emoji,
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
    ones, "number" two to four of the same, "plain" one of any size near the middle, "trio" three
    objects of which at least two differ.
    """
    draw = random.Random(f"{kind}/{seed}")
    room = (max(1.0, aspect), max(1.0, 1 / aspect))
    make = _MAKERS.get(kind)
    if make is None:
        raise ValueError(f"unknown kind of scene: {kind}")
    arrangement, items = make(draw, objects, room)
    feet = [item.y + item.height / 2 / room[1] for item in items]
    stands = arrangement not in ("above", "column", "grid")
    return Scene(
        kind=kind,
        arrangement=arrangement,
        ground=sample_ground(draw, min(feet) if stands else None),
        aspect=round(aspect, 4),
        items=tuple(items),
    )


_Room = tuple[float, float]
_Made = tuple[str, list[Placement]]


def _single(draw: random.Random, objects: Sequence[SceneObject], room: _Room) -> _Made:
    return "", [_near_middle(draw, _cast(draw, objects)[0], draw.uniform(0.55, 0.9), room)]


def _plain(draw: random.Random, objects: Sequence[SceneObject], room: _Room) -> _Made:
    return "", [_near_middle(draw, _cast(draw, objects)[0], draw.uniform(0.25, 0.95), room)]


def _placed(draw: random.Random, objects: Sequence[SceneObject], room: _Room) -> _Made:
    place = draw.choice(CORNERS if draw.random() < _CORNER_CHANCE else PLACES)
    return place, [_at_side(draw, _cast(draw, objects)[0], place, room)]


def _pair(draw: random.Random, objects: Sequence[SceneObject], room: _Room) -> _Made:
    relation = _relation(draw, room[0] / room[1])
    first, second = _cast(draw, objects, 2)
    if draw.random() < _TINTS_CHANCE:
        first, second = _tints(draw, objects) or (first, second)
    if relation == "behind":
        return relation, _behind(draw, (first, second), room)
    return relation, _line(draw, (first, second), room, across=relation == "next")


def _number(draw: random.Random, objects: Sequence[SceneObject], room: _Room) -> _Made:
    countable = [thing for thing in objects if thing.article] or list(objects)
    same = _cast(draw, countable) * draw.choice(range(2, _MOST + 1))
    wide = room[0] / room[1]
    if len(same) == _MOST and 0.5 < wide < 2:
        return "grid", _grid(draw, same, room)
    arrangement = "column" if wide < 0.67 else "row"
    return arrangement, _line(draw, same, room, across=arrangement == "row")


def _trio(draw: random.Random, objects: Sequence[SceneObject], room: _Room) -> _Made:
    figures = _cast(draw, objects, 3)
    countable = [figure for figure in figures if figure.object.article]
    if len(figures) < 3 or (countable and draw.random() < _TWO_AND_ONE):
        twice = countable[0] if countable else figures[0]
        other = next((figure for figure in figures if figure != twice), twice)
        figures = [twice, twice, other]
    arrangement = "column" if room[1] > 1.2 else "row"
    return arrangement, _line(draw, figures, room, across=arrangement == "row")


_MAKERS = {
    "single": _single,
    "placed": _placed,
    "pair": _pair,
    "number": _number,
    "plain": _plain,
    "trio": _trio,
}


def _cast(draw: random.Random, objects: Sequence[SceneObject], count: int = 1) -> list[Figure]:
    """`count` different objects, as many as there are, each as one of its sprites. Those with many
    sprites come more often."""
    left = list(objects)
    figures = []
    for _ in range(min(count, len(left))):
        weights = [min(3.0, 0.75 + 0.25 * len(thing.sprites)) for thing in left]
        place = draw.choices(range(len(left)), weights)[0]
        figures.append(_figure(draw, left.pop(place)))
    return figures


def _figure(draw: random.Random, thing: SceneObject) -> Figure:
    """`thing` as one of its sprites; what the bare name shows as often as half of the others."""
    others = len(thing.sprites) - 1
    weights = [max(1.0, others / 2), *[1.0] * others]
    return Figure(object=thing, sprite=draw.choices(thing.sprites, weights)[0])


def _tints(draw: random.Random, objects: Sequence[SceneObject]) -> list[Figure] | None:
    """One object twice, in two colours; None where none has two."""
    able = [thing for thing in objects if len({s.colour for s in thing.sprites if s.colour}) > 1]
    if not able:
        return None
    thing = draw.choice(able)
    first = draw.choice([sprite for sprite in thing.sprites if sprite.colour])
    second = draw.choice([s for s in thing.sprites if s.colour not in ("", first.colour)])
    return [Figure(object=thing, sprite=first), Figure(object=thing, sprite=second)]


def _around(draw: random.Random, middle: float, reach: float) -> float:
    return round(draw.uniform(middle - reach, middle + reach), 4)


def _relation(draw: random.Random, aspect: float) -> str:
    """How two objects stand: long pictures have no room for some ways."""
    if aspect > 1.5:
        return draw.choice(("next", "next", "behind"))
    if aspect < 0.67:
        return draw.choice(("above", "above", "behind"))
    return draw.choice(("next", "next", "above", "behind"))


def _size(figure: Figure, extent: float) -> tuple[float, float]:
    """Width and height of `figure` when its longer side is `extent`."""
    return extent * min(1.0, figure.sprite.aspect), extent / max(1.0, figure.sprite.aspect)


def _item(
    figure: Figure,
    centre: tuple[float, float],
    height: float,
    room: _Room,
    *,
    flip: bool,
    layer: int = 0,
) -> Placement:
    return Placement(
        object=figure.object,
        sprite=figure.sprite,
        x=round(centre[0] / room[0], 4),
        y=round(centre[1] / room[1], 4),
        height=round(height, 4),
        flip=flip,
        layer=layer,
    )


def _flips(draw: random.Random) -> bool:
    return draw.random() < FLIP_CHANCE


def _near_middle(draw: random.Random, figure: Figure, extent: float, room: _Room) -> Placement:
    size = _size(figure, extent)
    x, y = (
        _around(draw, whole / 2, min(0.08, max(0.0, (whole - length) / 2 - _MARGIN)))
        for whole, length in zip(room, size, strict=True)
    )
    return _item(figure, (x, y), size[1], room, flip=_flips(draw))


def _at_side(draw: random.Random, figure: Figure, place: str, room: _Room) -> Placement:
    size = _size(figure, draw.uniform(0.3, 0.5))
    centre = [_around(draw, room[0] / 2, 0.07), _around(draw, room[1] / 2, 0.07)]
    for side in place.split():
        axis = 0 if side in ("left", "right") else 1
        near = size[axis] / 2 + _MARGIN + draw.uniform(0.0, 0.05)
        centre[axis] = near if side in ("left", "top") else room[axis] - near
    return _item(figure, (centre[0], centre[1]), size[1], room, flip=_flips(draw))


def _line(
    draw: random.Random,
    figures: Sequence[Figure],
    room: _Room,
    *,
    across: bool,
) -> list[Placement]:
    """`figures` from left to right (`across`) or from top to bottom, as big as fits."""
    along, side = (0, 1) if across else (1, 0)
    spread = 0.15 if figures[0] != figures[-1] else 0.05
    sizes = [_size(figure, draw.uniform(1 - spread, 1.0)) for figure in figures]
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
    for figure, size in zip(figures, sizes, strict=True):
        length, breadth = scale * size[along], scale * size[side]
        # Neighbours stand on one floor; what is stacked is centred.
        place = middle + scale * widest / 2 - breadth / 2 if across else middle
        centre = (start + length / 2, place) if across else (place, start + length / 2)
        items.append(_item(figure, centre, scale * size[1], room, flip=flip))
        start += length + scale * gap
    return items


def _grid(draw: random.Random, figures: Sequence[Figure], room: _Room) -> list[Placement]:
    """Four figures, two by two, as big as fits."""
    size = _size(figures[0], 1.0)
    gap = draw.uniform(0.03, 0.07)
    scale = min((_FILL * room[axis] - gap) / 2 / size[axis] for axis in (0, 1))
    scale = min(scale, 0.6) * draw.uniform(0.85, 1.0)
    flip = _flips(draw)
    items = []
    for number, figure in enumerate(figures):
        centre = [
            room[axis] / 2 + (scale * size[axis] + gap) * (place - 0.5)
            for axis, place in ((0, number % 2), (1, number // 2))
        ]
        items.append(_item(figure, (centre[0], centre[1]), scale * size[1], room, flip=flip))
    return items


def _behind(draw: random.Random, figures: tuple[Figure, Figure], room: _Room) -> list[Placement]:
    """The first behind the second: higher, to one side, and partly hidden."""
    back, front = _size(figures[0], 1.0), _size(figures[1], draw.uniform(0.75, 0.9))
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
        _item(figures[0], (back_x, back_y), scale * back[1], room, flip=_flips(draw)),
        _item(figures[1], (front_x, front_y), scale * front[1], room, flip=_flips(draw), layer=1),
    ]


# ---- drawing ----


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """`scene` as an RGB picture of `width` x `height` pixels. Its objects need their sprites."""
    canvas = draw_ground(scene.ground, width, height)
    standing = scene.ground.kind == FLOOR
    for item in sorted(scene.items, key=lambda item: item.layer):
        _draw_item(canvas, item, standing=standing)
    canvas += 0.5
    return Image.fromarray(canvas.clip(0, 255, out=canvas).astype(np.uint8))


def _draw_item(canvas: NDArray[np.float32], item: Placement, *, standing: bool) -> None:
    """Lays the shadow and the sprite of `item` over `canvas` (H, W, 3), in place."""
    rows, columns = canvas.shape[:2]
    high = max(1, round(item.height * min(rows, columns)))
    wide = max(1, round(item.height * min(rows, columns) * item.sprite.aspect))
    left, top = round(item.x * columns - wide / 2), round(item.y * rows - high / 2)
    shade(canvas, left + wide / 2, top + high, wide, standing=standing)
    sprite = _sized(item.sprite, wide, high)
    if item.flip:
        sprite = ImageOps.mirror(sprite)
    pixels = np.asarray(sprite, dtype=np.float32)
    pixels = pixels[max(0, -top) : rows - top, max(0, -left) : columns - left]
    top, left = max(0, top), max(0, left)
    under = canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    under *= 1 - pixels[:, :, 3:] / 255
    under += pixels[:, :, :3]


def _sized(sprite: Sprite, width: int, height: int) -> Image.Image:
    """(height, width) premultiplied; from the smallest level that still is larger by a half."""
    level = sprite.levels[0]
    for smaller in sprite.levels[1:]:
        if smaller.width < 1.5 * width or smaller.height < 1.5 * height:
            break
        level = smaller
    return level.resize((width, height), Image.Resampling.LANCZOS)
