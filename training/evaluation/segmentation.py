"""What can be told of a picture without knowing its objects: ground, mask, place, crops.

A scene is a ground with things on it: plain, or one whose colours change slowly (a gradient) or
from top to bottom (a floor). Colours are compared in CIE Lab (D65), where distances
are about what people see: 2 is just visible, 100 is from black to white.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training.scenes.grounds import all_colours

CROP_SIDE = 64
# The ground is what most of the border shows; a border of many colours is no ground.
_PLAIN_PART, _PLAIN_REACH = 0.5, 14.0
_SIDE_PART = 0.15
# A ground that changes does so slowly but for a few rows, where a horizon is.
_TORN_PART = 0.05
# A colour farther than this from every shade of every name has no name.
_NAMED_REACH = 18.0
# A light that falls off over the ground changes it by up to 6; shadows are part of the thing.
_VISIBLE = 11.0
# Smaller than this part of the picture there is nothing to name.
_SMALLEST = 0.004
# A part of the mask smaller than this part of its largest one is a speck.
_SPECK = 0.06
# Of two that are apart, the smaller has at least this part of the larger one's area.
_PIECE = 0.3
# How far from a third of the width two of three may meet.
_THIRD_REACH = 0.14
# Off the centre by less than this part of the side is the middle.
_OFF_CENTRE = 0.08
_AROUND = 1.1
# The longer side at which the colour of a ground is looked at.
_GLANCE = 256
_NEUTRAL = 128

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """A picture taken apart. `colour` is the name of its ground, None where it has none.

    `mask` (H, W) is true where something stands on the ground.
    """

    pixels: NDArray[np.uint8]
    colour: str | None
    mask: Mask

    @property
    def empty(self) -> bool:
        """True where nothing stands on a ground, or there is no ground to stand on."""
        return not self.mask.mean() >= _SMALLEST

    @property
    def place(self) -> str:
        """Where things stand: "left", "right", "top", "bottom" or "middle"; empty for nothing."""
        if self.empty:
            return ""
        rows, columns = np.nonzero(self.mask)
        across = float(columns.mean() + 0.5) / self.mask.shape[1] - 0.5
        down = float(rows.mean() + 0.5) / self.mask.shape[0] - 0.5
        if max(abs(across), abs(down)) < _OFF_CENTRE:
            return "middle"
        if abs(across) >= abs(down):
            return "left" if across < 0 else "right"
        return "top" if down < 0 else "bottom"


def segment(picture: Image.Image) -> Segmented:
    """`picture` taken apart into its ground and what stands on it."""
    pixels = np.asarray(picture.convert("RGB"))
    shades = lab(pixels)
    plain = _ground(shades)
    ground = _changing(shades) if plain is None else plain
    if ground is None:
        return Segmented(pixels=pixels, colour=None, mask=np.zeros(pixels.shape[:2], dtype=bool))
    seen = np.linalg.norm(shades - ground, axis=2) > _VISIBLE
    colour = None if plain is None else name_of(plain)
    return Segmented(pixels=pixels, colour=colour, mask=_filled(_cleaned(seen)))


def ground_colour(picture: Image.Image) -> str | None:
    """The name of the colour that `picture` has behind what it shows, None where that is not one
    plain colour with a name."""
    small = picture.convert("RGB")
    small.thumbnail((_GLANCE, _GLANCE))
    plain = _ground(lab(np.asarray(small)))
    return None if plain is None else name_of(plain)


def crop(sight: Segmented, mask: Mask | None = None) -> Image.Image | None:
    """What `mask` (by default the sight's) shows, alone on neutral gray in a square of CROP_SIDE.

    None where it shows next to nothing.
    """
    mask = sight.mask if mask is None else mask
    if not mask.mean() >= _SMALLEST / 2:
        return None
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right, None]
    alone = np.where(inside, sight.pixels[top:bottom, left:right], np.uint8(_NEUTRAL))
    side = max(2, round(_AROUND * max(alone.shape[:2])))
    square = Image.new("RGB", (side, side), (_NEUTRAL,) * 3)
    square.paste(
        Image.fromarray(alone), ((side - alone.shape[1]) // 2, (side - alone.shape[0]) // 2)
    )
    return square.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC)


def halves(sight: Segmented) -> tuple[Mask, Mask]:
    """The mask cut where the gap between a left and a right thing is, or is nearest to one."""
    heights = sight.mask.sum(axis=0)
    columns = np.flatnonzero(heights)
    if not len(columns):
        return sight.mask, sight.mask
    first, wide = columns[0], columns[-1] + 1 - columns[0]
    start = first + wide // 5
    inner = heights[start : first + wide - wide // 5]
    if not len(inner):
        start, inner = first, heights[first : first + wide]
    low = np.flatnonzero(inner <= inner.min())
    runs = np.split(low, np.flatnonzero(np.diff(low) > 1) + 1)
    widest = max(runs, key=len)
    cut = start + int(widest[len(widest) // 2])
    left, right = sight.mask.copy(), sight.mask.copy()
    left[:, cut:], right[:, :cut] = False, False
    return left, right


def thirds(sight: Segmented) -> tuple[Mask, Mask, Mask]:
    """The mask cut twice, where the gaps between a left, a middle and a right thing are."""
    heights = sight.mask.sum(axis=0)
    columns = np.flatnonzero(heights)
    if not len(columns):
        return sight.mask, sight.mask, sight.mask
    first, wide = int(columns[0]), int(columns[-1]) + 1 - int(columns[0])
    cuts = []
    for middle in (1 / 3, 2 / 3):
        start = first + int((middle - _THIRD_REACH) * wide)
        inner = heights[start : max(start + 1, first + int((middle + _THIRD_REACH) * wide))]
        low = np.flatnonzero(inner <= inner.min())
        cuts.append(start + int(low[len(low) // 2]))
    places = np.arange(sight.mask.shape[1])
    return (
        sight.mask & (places < cuts[0]),
        sight.mask & (places >= cuts[0]) & (places < cuts[1]),
        sight.mask & (places >= cuts[1]),
    )


def pieces(sight: Segmented) -> list[Mask]:
    """Each thing that stands apart from the others, the largest first; nothing much smaller."""
    parts = _parts(sight.mask)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    large = np.flatnonzero(areas >= max(1.0, _PIECE * areas.max()))
    return [parts == number for number in large[np.argsort(-areas[large], kind="stable")]]


def shade_of(sight: Segmented, mask: Mask) -> Floats | None:
    """The mean Lab of what `mask` shows, None where it shows nothing."""
    if not mask.any():
        return None
    shade: Floats = lab(sight.pixels[mask]).mean(axis=0)
    return shade


# ---- colours ----


def lab(pixels: NDArray[np.generic]) -> Floats:
    """sRGB in 0..255 (..., 3) -> CIE Lab (..., 3), D65."""
    values = np.asarray(pixels, dtype=np.float32) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.asarray(_TO_XYZ, dtype=np.float32).T
    roots = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(roots, -1, 0)
    result = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return result.astype(np.float32)


# Rows divided by the white point, so that white is (1, 1, 1).
_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def name_of(shade: Floats) -> str | None:
    """The name of the colour `shade` (Lab), None where it is like no named one."""
    names, shades = _shades()
    far = np.linalg.norm(shades - shade, axis=2).min(axis=1)
    nearest = int(far.argmin())
    return names[nearest] if far[nearest] <= _NAMED_REACH else None


@cache
def _shades() -> tuple[tuple[str, ...], Floats]:
    """Names, and for each the Lab of shades (N, S, 3) over all that its name may stand for."""
    steps = np.array(list(product((-1, -0.5, 0, 0.5, 1), *[(-1, 0, 1)] * 3)), dtype=np.float32)
    colours = all_colours()
    clouds = [
        lab(
            np.asarray(colour.rgb, dtype=np.float32)
            + steps[:, :1] * colour.light
            + steps[:, 1:] * colour.tint
        ).clip(-200, 200)
        for colour in colours.values()
    ]
    return tuple(colours), np.stack(clouds)


# ---- the mask ----


def _ground(shades: Floats) -> Floats | None:
    """The Lab that most of the border has, and some of each side; None where it has no such one."""
    wide = _edge(shades)
    sides = [
        shades[:wide].reshape(-1, 3),
        shades[-wide:].reshape(-1, 3),
        shades[wide:-wide, :wide].reshape(-1, 3),
        shades[wide:-wide, -wide:].reshape(-1, 3),
    ]
    border = np.concatenate(sides)
    middle = np.median(border, axis=0)
    near = np.linalg.norm(border - middle, axis=1) <= _PLAIN_REACH
    ends = np.split(near, np.cumsum([len(side) for side in sides])[:-1])
    # A whole side of another colour is what a floor has, or a gradient's end.
    if near.mean() < _PLAIN_PART or min(end.mean() for end in ends) < _SIDE_PART:
        return None
    result: Floats = np.median(border[near], axis=0)
    return result


def _changing(shades: Floats) -> Floats | None:
    """(H, W, 3): the Lab of a ground that changes evenly from the left edge to the right one of
    each row, which gradients and floors do. None where the upper and lower edges are not like it.
    """
    wide = _edge(shades)
    left = np.median(shades[:, :wide], axis=1)[:, None]
    right = np.median(shades[:, -wide:], axis=1)[:, None]
    part = ((np.arange(shades.shape[1]) + 0.5) / shades.shape[1])[None, :, None]
    ground: Floats = (left + part * (right - left)).astype(np.float32)
    far = np.linalg.norm(shades - ground, axis=2)
    ends = np.concatenate([far[:wide].ravel(), far[-wide:].ravel()])
    # Rows tell nothing of each other, so noise would be its own ground.
    steps = np.linalg.norm(np.diff(left[:, 0], axis=0), axis=1)
    torn = (steps > _PLAIN_REACH).mean()
    if (ends <= _PLAIN_REACH).mean() < _PLAIN_PART or torn > _TORN_PART:
        return None
    return ground


def _edge(picture: NDArray[np.generic]) -> int:
    """How many pixels count as the border of `picture` (H, W, ...)."""
    height, width = int(picture.shape[0]), int(picture.shape[1])
    return max(1, round(min(height, width) / 48))


def _cleaned(mask: Mask) -> Mask:
    """`mask` without specks, and without what happens at the very edge of the picture."""
    wide = _edge(mask)
    inner = np.zeros_like(mask)
    inner[wide:-wide, wide:-wide] = mask[wide:-wide, wide:-wide]
    picture = Image.fromarray(inner.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))
    parts = _parts(np.asarray(picture) > 127)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    kept: Mask = (areas >= max(1.0, _SPECK * areas.max()))[parts]
    return kept


def _filled(mask: Mask) -> Mask:
    """`mask` and what it encloses: the parts of a thing that have the ground's colour."""
    parts = _parts(np.pad(~mask, 1, constant_values=True))
    filled: Mask = parts[1:-1, 1:-1] != parts[0, 0]
    return filled


def _parts(mask: Mask) -> NDArray[np.int64]:
    """A number for each connected part of `mask` (H, W), 0 outside it."""
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    across, down = _runs(mask), _runs(mask.T)
    while True:
        levelled = _levelled(_levelled(numbers, across).T, down).T
        if (levelled == numbers).all():
            return numbers
        numbers = levelled


def _runs(mask: Mask) -> NDArray[np.intp]:
    """Where runs of equal values along the rows begin, as places in the flat `mask`."""
    begins = np.ones(mask.shape, dtype=bool)
    begins[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return np.flatnonzero(begins)


def _levelled(numbers: NDArray[np.int64], runs: NDArray[np.intp]) -> NDArray[np.int64]:
    """Every run with its largest number."""
    largest = np.maximum.reduceat(numbers.ravel(), runs)
    lengths = np.diff(runs, append=numbers.size)
    return np.repeat(largest, lengths).reshape(numbers.shape)
