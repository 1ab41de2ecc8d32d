"""What captions say of the ground of a scene."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.scenes.grounds import GRADIENT, PLAIN, Ground, all_colours, all_floors

_ALSO_CHANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Words:
    """A ground in words, which go before (`first`) or after what stands on it."""

    text: str
    first: bool


def ground_words(ground: Ground, draw: random.Random, *, terse: bool) -> Words:
    """One of the ways to tell of `ground`; `terse` ones have no articles."""
    colours = [_word(colour, draw) for colour in ground.colours]
    if ground.kind == PLAIN:
        return _one(colours[0], draw, terse=terse)
    if ground.kind == GRADIENT:
        return _gradient(ground, colours, draw, terse=terse)
    if len(colours) == 1:
        return _floor(colours[0], draw, terse=terse)
    return _two(ground, colours, draw, terse=terse)


def _word(colour: str, draw: random.Random) -> str:
    also = all_colours()[colour].also
    return draw.choice(also) if also and draw.random() < _ALSO_CHANCE else colour


def _an(words: str, *, terse: bool) -> str:
    """`words` with their article, unless `terse`. Colours sound as they are written."""
    if terse:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _one(colour: str, draw: random.Random, *, terse: bool) -> Words:
    a = _an(colour, terse=terse)
    after = [
        *[f" on {a} background"] * 5,
        *[f", {colour} background"] * 4,
        *[f" in front of {a} backdrop"] * 2,
        f" on {colour} background",
        f" on {colour}",
        f" on {colour}",
        f" on plain {colour}",
        f" on {_an(f'plain {colour}', terse=terse)} background",
        f" on {a} backdrop",
        f" in front of {a} background",
        f" against {a} background",
        f" against {colour}",
        f" with {a} background",
        f" with {a} background",
        f", background {colour}",
        f", the background is {colour}",
        f", plain {colour} background",
        f", {colour} backdrop",
    ]
    before = [
        *[f"{a} background with"] * 3,
        f"{colour} background,",
        f"{colour} background with",
        f"on {a} background,",
        f"on {colour}:",
        f"{a} backdrop with",
    ]
    if draw.random() < 0.8:
        return Words(text=draw.choice(after), first=False)
    return Words(text=draw.choice(before), first=True)


def _gradient(ground: Ground, colours: list[str], draw: random.Random, *, terse: bool) -> Words:
    one, other = colours
    forms = [
        f" on {_an('gradient', terse=terse)} from {one} to {other}",
        f" on {_an(f'gradient background from {one} to {other}', terse=terse)}",
        f", gradient from {one} to {other}",
        f", {one} to {other} gradient background",
        f" on {_an(f'{one} and {other} gradient', terse=terse)}",
        f" on {_an(f'{one} and {other} background', terse=terse)}",
        f", {one} and {other} background",
        f" on {_an(f'{one} gradient background', terse=terse)}",
        f", {one} gradient background",
        f", background from {one} to {other}",
        f", soft gradient background of {one} and {other}",
    ]
    if ground.way == "down":
        forms += [f", background {one} at the top and {other} at the bottom"]
    if ground.way == "across":
        forms += [f", background {one} at the left and {other} at the right"]
    return Words(text=draw.choice(forms), first=False)


def _floor(colour: str, draw: random.Random, *, terse: bool) -> Words:
    a = _an(colour, terse=terse)
    forms = [
        f" on {a} floor",
        f" on {a} floor",
        f" on {colour} ground",
        f" on {a} surface",
        f", {colour} floor and {colour} wall",
        f" on {a} background",
        f", {colour} background",
    ]
    return Words(text=draw.choice(forms), first=False)


def _two(ground: Ground, colours: list[str], draw: random.Random, *, terse: bool) -> Words:
    above, below = colours
    wall = _an(f"{above} wall", terse=terse)
    if ground.name and draw.random() < 0.75:
        return Words(text=f" {draw.choice(all_floors()[ground.name].said)}", first=False)
    forms = [
        f" on {below} ground, {above} background",
        f" on {below} ground with {_an(f'{above} background', terse=terse)}",
    ]
    if ground.name:
        forms += [f" on {below} ground under {_an(f'{above} sky', terse=terse)}"]
    else:
        floor = _an(f"{below} floor", terse=terse)
        forms += [f" on {floor} in front of {wall}", f" on {floor}, {above} wall"]
    return Words(text=draw.choice(forms), first=False)
