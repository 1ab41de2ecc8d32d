"""What scenes stand on: plain colours, two colours that flow into each other, floors.

A ground is sampled with a scene and drawn at any size.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from training.scenes.objects import preset

Floats = NDArray[np.float32]

PLAIN, GRADIENT, FLOOR = "plain", "gradient", "floor"
WAYS = ("down", "across", "aslant")
# Which grounds scenes have, where all are possible.
_SHARES = {PLAIN: 0.6, GRADIENT: 0.18, FLOOR: 0.22}
_FLOORS = {"one": 0.35, "named": 0.45, "two": 0.2}
_LIGHT_FALL = 0.06
# A floor of the wall's colour differs by this from it, and the horizon is this soft.
_FLOOR_LIGHT = (0.86, 0.93)
_SOFT = 0.035
_SHADOW, _CONTACT = 0.22, 0.4


@dataclass(frozen=True, kw_only=True)
class Colour:
    """A background colour; `light` and `tint` say how far its RGB may wander and keep the name.

    `also` are other words for it.
    """

    name: str
    rgb: tuple[int, int, int]
    light: int
    tint: int
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A ground. `colours` are one name (plain, and a floor of the wall's colour) or two: what a
    gradient goes from and to, what is above and below a horizon.

    `rgbs` are their shades, one for each half. `way` is a gradient's: "down", "across" (from the
    left) or "aslant" (from the top left). `horizon` is a floor's height from the top (0..1).
    `name` is that of the preset's floor, if it is one. `light` is how much brighter the ground
    gets from left to right and from top to bottom.
    """

    kind: str
    colours: tuple[str, ...]
    rgbs: tuple[tuple[int, int, int], ...]
    light: tuple[float, float]
    way: str = ""
    horizon: float = 0.0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Two colours that people have words for: `said` are whole phrases."""

    above: str
    below: str
    said: tuple[str, ...]


@cache
def all_colours() -> dict[str, Colour]:
    """Every background colour by name, in the order of the file."""
    return {
        name: Colour(
            name=name,
            rgb=tuple(row["rgb"]),
            light=row["light"],
            tint=row["tint"],
            also=tuple(row.get("also", ())),
        )
        for name, row in preset()["colours"].items()
    }


@cache
def all_gradients() -> tuple[tuple[str, str], ...]:
    """Pairs of neighbouring colours."""
    return tuple((one, other) for one, other in preset()["gradients"]["pairs"])


@cache
def all_floors() -> dict[str, Floor]:
    """Every floor that has a name."""
    return {
        name: Floor(above=row["above"], below=row["below"], said=tuple(row["said"]))
        for name, row in preset()["floors"].items()
    }


def sample_ground(draw: random.Random, lowest: float | None) -> Ground:
    """A ground. `lowest` is how far down (0..1) the highest foot of the things stands; None where
    they do not stand on anything."""
    kinds = [PLAIN, GRADIENT] if lowest is None or lowest < 0.5 else [PLAIN, GRADIENT, FLOOR]
    kind = draw.choices(kinds, [_SHARES[kind] for kind in kinds])[0]
    light = (_around(draw), _around(draw))
    if kind == FLOOR and lowest is not None:
        return _sample_floor(draw, lowest, light)
    if kind == PLAIN:
        colours: tuple[str, ...] = (draw.choice(list(all_colours())),)
        way = ""
    else:
        pair = draw.choice(all_gradients())
        colours = pair if draw.random() < 0.5 else pair[::-1]
        way = draw.choices(WAYS, (3, 1, 1))[0]
    rgbs = tuple(_shade_of(draw, all_colours()[name]) for name in colours)
    return Ground(kind=kind, colours=colours, rgbs=rgbs, light=light, way=way)


def _sample_floor(draw: random.Random, lowest: float, light: tuple[float, float]) -> Ground:
    horizon = round(min(0.85, max(0.35, lowest - draw.uniform(0.06, 0.25))), 4)
    kind = draw.choices(list(_FLOORS), list(_FLOORS.values()))[0]
    name = ""
    if kind == "one":
        colours: tuple[str, ...] = (draw.choice(list(all_colours())),)
        wall = _shade_of(draw, all_colours()[colours[0]])
        darker = draw.uniform(*_FLOOR_LIGHT)
        red, green, blue = (round(value * darker) for value in wall)
        rgbs: tuple[tuple[int, int, int], ...] = (wall, (red, green, blue))
    else:
        if kind == "named":
            name = draw.choice(list(all_floors()))
            colours = (all_floors()[name].above, all_floors()[name].below)
        else:
            colours = tuple(draw.sample(list(all_colours()), 2))
        rgbs = tuple(_shade_of(draw, all_colours()[colour]) for colour in colours)
    return Ground(kind=FLOOR, colours=colours, rgbs=rgbs, light=light, horizon=horizon, name=name)


def _around(draw: random.Random) -> float:
    return round(draw.uniform(-_LIGHT_FALL, _LIGHT_FALL), 4)


def _shade_of(draw: random.Random, colour: Colour) -> tuple[int, int, int]:
    light = draw.uniform(-colour.light, colour.light)
    red, green, blue = (
        min(255, max(0, round(value + light + draw.uniform(-colour.tint, colour.tint))))
        for value in colour.rgb
    )
    return red, green, blue


# ---- drawing ----


def draw_ground(ground: Ground, width: int, height: int) -> Floats:
    """(H, W, 3) in 0..255: the colours, a trace brighter towards one side."""
    across: Floats = _places(width)
    down: Floats = _places(height)
    shades: Floats = np.asarray(ground.rgbs, dtype=np.float32)
    light: Floats = (
        1 + ground.light[0] * (across[None, :] - 0.5) + ground.light[1] * (down[:, None] - 0.5)
    ).astype(np.float32)[:, :, None]
    if ground.kind == PLAIN:
        colours = shades[0]
    elif ground.kind == FLOOR:
        part: Floats = np.asarray((1 + np.tanh((down - ground.horizon) / _SOFT)) / 2, np.float32)
        colours = _mixed(shades, part)[:, None, :]
    elif ground.way == "down":
        colours = _mixed(shades, _smooth(down))[:, None, :]
    elif ground.way == "across":
        colours = _mixed(shades, _smooth(across))[None, :, :]
    else:
        colours = _mixed(shades, _smooth((across[None, :] + down[:, None]) * np.float32(0.5)))
    drawn: Floats = light * colours
    return drawn


def _places(count: int) -> Floats:
    """(count,): the middles of as many pixels, in 0..1."""
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def _mixed(shades: Floats, part: Floats) -> Floats:
    """(..., 3): from the first shade where `part` is 0 to the second where it is 1."""
    mixed: Floats = shades[0] + part[..., None] * (shades[1] - shades[0])
    return mixed


def _smooth(part: Floats) -> Floats:
    """0..1 -> 0..1, level at both ends, so that each colour is seen as itself."""
    smooth: Floats = part * part * (np.float32(3) - np.float32(2) * part)
    return smooth


def shade(canvas: NDArray[np.float32], x: float, y: float, width: float, *, standing: bool) -> None:
    """Darkens a soft ellipse where an object `width` pixels wide touches the ground at (x, y).

    On a floor (`standing`) it is darker and wider: what is hidden under a foot.
    """
    rows, columns = canvas.shape[:2]
    deep = max(1.0, 0.05 * width)
    half = (0.36 if standing else 0.3) * width
    top, bottom = max(0, int(y - 3 * deep)), min(rows, int(y + 3 * deep) + 1)
    left, right = max(0, int(x - 3 * half)), min(columns, int(x + 3 * half) + 1)
    if top >= bottom or left >= right:
        return
    down = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / deep
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / half
    shadow = np.exp(-(down**2))[:, None] * np.exp(-(across**4))[None, :]
    strength = _CONTACT if standing else _SHADOW
    canvas[top:bottom, left:right] *= 1 - strength * shadow[:, :, None]
