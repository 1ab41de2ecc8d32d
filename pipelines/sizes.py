"""The sizes that models were trained on, and what other sizes may be asked for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path

from pipelines.errors import RequestError

MULTIPLE = 16
"""Pixels: a patch of 2 latents, each of 8 pixels. Every side is a multiple of it."""
MIN_SIDE = 64
MAX_SIDE = 4096

_SIZES_FILE = Path(__file__).resolve().parent.parent / "presets" / "sizes.toml"
# Ratios that people know by name; a bin within 4 % of one is labelled with it.
_KNOWN_RATIOS = (
    "1:1 5:4 4:3 3:2 16:10 5:3 16:9 2:1 21:9 5:2 3:1 4:1 "
    "4:5 3:4 2:3 10:16 3:5 9:16 1:2 9:21 2:5 1:3 1:4"
).split()


@dataclass(frozen=True, order=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def ratio(self) -> str:
        """The nearest well-known aspect ratio, e.g. "3:2", else the exact fraction."""
        value = self.width / self.height
        for name in _KNOWN_RATIOS:
            a, b = map(int, name.split(":"))
            if abs(value / (a / b) - 1) < 0.04:
                return name
        divisor = gcd(self.width, self.height)
        return f"{self.width // divisor}:{self.height // divisor}"


def parse(text: str) -> Size:
    """`"768x512"` as a Size. Raises RequestError; the limits are checked by `check`."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*[x×X*]\s*(\d{1,9})\s*", text[:40])
    if match is None:
        raise RequestError(
            "size", f"“{text[:40]}” is not a size.", "Write width x height in pixels, e.g. 128x128."
        )
    return Size(int(match[1]), int(match[2]))


def check(size: Size, max_side: int = MAX_SIDE) -> None:
    """Raises RequestError unless both sides are multiples of 16 within the limits."""
    for name, side in (("width", size.width), ("height", size.height)):
        if not MIN_SIDE <= side <= max_side:
            raise RequestError(
                "size", f"A {name} of {side} is outside {MIN_SIDE} to {max_side} pixels."
            )
        if side % MULTIPLE:
            low = max(MIN_SIDE, side // MULTIPLE * MULTIPLE)
            high = min(max_side, side // MULTIPLE * MULTIPLE + MULTIPLE)
            raise RequestError(
                "size",
                f"A {name} of {side} is not a multiple of {MULTIPLE}.",
                f"The nearest are {low} and {high}.",
            )


@cache
def _table() -> dict[str, tuple[Size, ...]]:
    rows = tomllib.loads(_SIZES_FILE.read_text("utf-8"))
    return {name: tuple(parse(text) for text in row["bins"]) for name, row in rows.items()}


def names() -> Iterable[str]:
    """The names of the tables of bins."""
    return _table().keys()


def bins(name: str) -> tuple[Size, ...]:
    """The trained bins of the table `name`, tallest first. Raises KeyError."""
    return _table()[name]


def nearest(size: Size, table: Iterable[Size]) -> Size:
    """The bin whose aspect ratio is nearest to that of `size`."""
    wanted = size.width / size.height
    return min(table, key=lambda b: abs(b.width / b.height - wanted))
