"""Captions written from what was drawn, so that every word of them is true.

They are written as people type: with and without articles and grounds, in many wordings, and often
with the colour of a thing before its name, so that a colour word binds to what it stands before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.scenes.compose import Figure, Placement, Scene
from training.scenes.ground_words import Words, ground_words
from training.scenes.grounds import all_colours
from training.scenes.objects import plural

# How often a caption names no ground; is told in headlines; begins with "a picture of".
BARE_CHANCE, TERSE_CHANCE, _LEAD_CHANCE, _TAIL_CHANCE = 0.16, 0.25, 0.1, 0.05
# How often the colour of a thing is said, another name or word taken, "cute" put before it.
_COLOUR_CHANCE, _SYNONYM_CHANCE, _MOOD_CHANCE = 0.42, 0.35, 0.03
_SIZE_CHANCE, _THE_CHANCE = 0.35, 0.03
_TINY, _SMALL, _BIG, _HUGE = 0.32, 0.46, 0.75, 0.85
_MOODS = ("cute", "nice", "beautiful", "lovely", "little")
_LEADS = (
    "a picture of",
    "picture of",
    "an image of",
    "a photo of",
    "photo of",
    "a drawing of",
    "drawing of",
    "an illustration of",
    "a 3d render of",
    "3d render of",
    "an emoji of",
    "an icon of",
)
_TAILS = ("3d render", "emoji", "icon", "high quality", "minimal", "simple")
_NUMBERS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
# How a word sounds at its start, where its first letter misleads.
_SOUNDS_OPEN = ("hour", "honest", "heir")
_SOUNDS_CLOSED = ("uni", "use", "uk", "euro", "ufo", "one")
_TRIES = 200


def article(words: str) -> str:
    """`words` with "a" or "an" before them."""
    opens = words.startswith(tuple("aeiou")) and not words.startswith(_SOUNDS_CLOSED)
    return f"{'an' if opens or words.startswith(_SOUNDS_OPEN) else 'a'} {words}"


def caption(scene: Scene, seed: int | str) -> str:
    """One caption of `scene`, the same for the same seed."""
    return several(scene, seed, 1)[0]


def several(scene: Scene, seed: int | str, count: int) -> list[str]:
    """`count` different captions, lower case; the first one is `caption(scene, seed)`."""
    draw = random.Random(f"caption/{seed}")
    found: dict[str, None] = {}
    for _ in range(_TRIES):
        found[_write(scene, draw)] = None
        if len(found) == count:
            break
    return list(found)


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How one caption is told. `terse`: without articles; `bare`: without the ground."""

    draw: random.Random
    terse: bool
    bare: bool

    def chance(self, share: float) -> bool:
        return self.draw.random() < share


def _write(scene: Scene, draw: random.Random) -> str:
    style = _Style(draw=draw, terse=draw.random() < TERSE_CHANCE, bare=draw.random() < BARE_CHANCE)
    told = _TELLERS[scene.kind](scene, style)
    ground = None if style.bare else ground_words(scene.ground, draw, terse=style.terse)
    if ground is not None and " in front of " in told and " front of " in ground.text:
        ground = None
    text = told if ground is None else _joined(told, ground)
    if not style.terse and (ground is None or not ground.first) and style.chance(_LEAD_CHANCE):
        text = f"{draw.choice(_LEADS)} {text}"
    if style.chance(_TAIL_CHANCE):
        text = f"{text}, {draw.choice(_TAILS)}"
    return text


def _joined(told: str, ground: Words) -> str:
    return f"{ground.text} {told}" if ground.first else f"{told}{ground.text}"


# ---- things ----


def _noun(figure: Figure, style: _Style, *, size: str = "", many: bool = False) -> str:
    """A name, with its colour where that is said or must be, without an article."""
    thing, sprite, draw = figure.object, figure.sprite, style.draw
    must = thing.must_tell(sprite)
    names = [*thing.also, *sprite.also]
    name = draw.choice(names) if names and style.chance(_SYNONYM_CHANCE) else thing.name
    if must and not sprite.colour:
        name = draw.choice(sprite.also)
    colour = ""
    told = must and name not in sprite.also
    if sprite.colour and (told or style.chance(_COLOUR_CHANCE)):
        colour = colour_word(sprite.colour, draw)
    if set(colour.split()) & set(name.split()):
        colour = ""
    if many:
        name = plural(name)
    mood = draw.choice(_MOODS[:4] if size else _MOODS) if style.chance(_MOOD_CHANCE) else ""
    # "little" says that a thing is small, which it may not be.
    mood = (
        ""
        if mood == "little" and not (isinstance(figure, Placement) and _is_small(figure))
        else mood
    )
    return " ".join(word for word in (mood, size, colour, name) if word)


def _is_small(item: Placement) -> bool:
    return item.extent <= _SMALL


def colour_word(colour: str, draw: random.Random) -> str:
    """`colour` in one of its words."""
    also = all_colours()[colour].also if colour in all_colours() else ()
    return draw.choice(also) if also and draw.random() < 0.15 else colour


def _named(figure: Figure, style: _Style, size: str = "") -> str:
    """A noun with its article, if it takes one and the style does."""
    noun = _noun(figure, style, size=size)
    if style.terse:
        return noun
    if style.chance(_THE_CHANCE):
        return f"the {noun}"
    return article(noun) if figure.object.article or " of " in noun else noun


def _size_word(item: Placement, style: _Style) -> str:
    """A word for the size of `item` where it clearly has one, sometimes."""
    if not style.chance(_SIZE_CHANCE):
        return ""
    if item.extent <= _SMALL:
        return style.draw.choice(("small", "tiny") if item.extent <= _TINY else ("small",))
    if item.extent >= _BIG:
        return style.draw.choice(
            ("big", "large", "huge") if item.extent >= _HUGE else ("big", "large")
        )
    return ""


# ---- scenes ----


def _single(scene: Scene, style: _Style) -> str:
    item = scene.items[0]
    size = _size_word(item, style)
    if item.object.article and style.chance(0.06):
        noun = _noun(item, style, size=size)
        return f"{style.draw.choice(('one', 'a single'))} {noun}"
    told = _named(item, style, size)
    if style.chance(0.12):
        told = f"{told} {style.draw.choice(('in the middle', 'in the center', 'at the center'))}"
    elif item.extent >= _HUGE and style.chance(0.2):
        told = f"{told} filling the picture"
    return told


def _placed(scene: Scene, style: _Style) -> str:
    item, place, draw = scene.items[0], scene.arrangement, style.draw
    told = _named(item, style, "small" if style.chance(0.6) else "")
    if " " in place:
        return f"{told} {draw.choice((f'in the {place} corner', f'at the {place}'))}"
    forms = [f"at the {place}"] * 4 + [f"at the {place} of the picture", f"at the {place} edge"]
    if place in ("left", "right"):
        forms += [f"on the {place}"] * 3 + [f"on the {place} side", f"to the {place}"]
    return f"{told} {draw.choice(forms)}"


def _pair(scene: Scene, style: _Style) -> str:
    a, b = _both(scene.items, style)
    forms = {"next": _NEXT, "above": _ABOVE, "behind": _BEHIND}[scene.arrangement]
    if scene.arrangement == "next" and style.bare:
        # What people type who do not mind who stands where.
        forms = ("{a} and {b}", *forms)
    return style.draw.choice(forms).format(a=a, b=b)


_NEXT = (
    "{a} next to {b}",
    "{a} next to {b}",
    "{a} and {b}",
    "{a} and {b}",
    "{a} beside {b}",
    "{a} and {b} side by side",
    "{a} to the left of {b}",
    "{a} left of {b}",
    "{b} to the right of {a}",
    "{b} right of {a}",
    "{a} on the left and {b} on the right",
    "{a} at the left, {b} at the right",
    "{a} with {b}",
    "{a}, {b}",
)
_ABOVE = (
    "{a} above {b}",
    "{a} above {b}",
    "{a} over {b}",
    "{b} below {a}",
    "{b} under {a}",
    "{a} at the top and {b} at the bottom",
)
_BEHIND = (
    "{a} behind {b}",
    "{a} behind {b}",
    "{b} in front of {a}",
    "{b} in front of {a}",
    "{a} partly hidden behind {b}",
)


def _both(items: Sequence[Placement], style: _Style) -> tuple[str, str]:
    """Both of a pair; two of one object are told apart by their colours."""
    first, second = items
    if first.object != second.object:
        return _named(first, style), _named(second, style)
    told = [f"{colour_word(i.sprite.colour, style.draw)} {first.object.name}" for i in items]
    if first.object.article and not style.terse:
        told = [article(noun) for noun in told]
    return told[0], told[1]


def _number(scene: Scene, style: _Style) -> str:
    draw, count = style.draw, len(scene.items)
    number = draw.choices(_NUMBERS[count], (4, 1))[0]
    things = _noun(scene.items[0], style, many=True)
    if draw.random() < 0.5:
        return f"{number} {things}"
    if scene.arrangement == "grid":
        return draw.choice((f"{number} {things} in two rows", f"a group of {number} {things}"))
    if count == 2:
        row = scene.arrangement == "row"
        lined = draw.choice(("side by side", "next to each other") if row else _STACKED)
        return draw.choice((f"{number} {things} {lined}", f"a pair of {things}"))
    lined = "in a row" if scene.arrangement == "row" else "in a column"
    return draw.choice((f"{number} {things} {lined}", f"a group of {number} {things}"))


_STACKED = ("one above the other", "on top of each other")


def _trio(scene: Scene, style: _Style) -> str:
    draw, (first, second, third) = style.draw, scene.items
    across = scene.arrangement == "row"
    if (first.object, first.sprite) == (second.object, second.sprite):
        number = draw.choices(_NUMBERS[2], (4, 1))[0]
        a, b = f"{number} {_noun(first, style, many=True)}", _named(third, style)
        return draw.choice(_TWO_AND_ONE_ROW if across else _TWO_AND_ONE_COLUMN).format(a=a, b=b)
    a, b, c = (_named(item, style) for item in scene.items)
    forms = _TRIO_ROW if across else _TRIO_COLUMN
    form: str = draw.choice((*_TRIO, *_TRIO, *forms))
    return form.format(a=a, b=b, c=c)


_TWO_AND_ONE_ROW = ("{a} and {b}", "{a} and {b}", "{a} next to {b}", "{a} with {b}")
_TWO_AND_ONE_COLUMN = ("{a} and {b}", "{a} above {b}")
_TRIO = ("{a}, {b} and {c}", "{a}, {b} and {c}", "{a}, {b}, {c}", "{a} and {b} and {c}")
_TRIO_ROW = (
    "{a} next to {b} next to {c}",
    "{a}, {b} and {c} in a row",
    "{a} on the left, {b} in the middle and {c} on the right",
    "{a} at the left, {b} in the middle, {c} at the right",
    "{b} between {a} and {c}",
    "{b} between {a} and {c}",
)
_TRIO_COLUMN = (
    "{a} above {b} above {c}",
    "{a} at the top, {b} in the middle and {c} at the bottom",
    "{b} between {a} and {c}",
)
_TELLERS = {
    "single": _single,
    "plain": _single,
    "placed": _placed,
    "pair": _pair,
    "number": _number,
    "trio": _trio,
}
