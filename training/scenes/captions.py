"""Captions written from what was drawn, so that every word of them is true."""

from __future__ import annotations

import random

from training.scenes.compose import Item, Scene
from training.scenes.objects import SceneObject

# Half of all captions take the shortest form: it is what people type.
PLAIN_CHANCE = 0.5
_SMALL = 0.46
_BIG = 0.75
_NUMBERS = {2: "two", 3: "three"}
# How a word sounds at its start, where its first letter misleads.
_SOUNDS_OPEN = ("hour", "honest", "heir")
_SOUNDS_CLOSED = ("uni", "use", "uk", "euro", "ufo", "one")


def article(words: str) -> str:
    """`words` with "a" or "an" before them."""
    opens = words.startswith(tuple("aeiou")) and not words.startswith(_SOUNDS_CLOSED)
    return f"{'an' if opens or words.startswith(_SOUNDS_OPEN) else 'a'} {words}"


def caption(scene: Scene, seed: int | str) -> str:
    """One caption of `scene`, the same for the same seed."""
    return several(scene, seed, 1)[0]


def several(scene: Scene, seed: int | str, count: int) -> list[str]:
    """`count` different captions, or all there are; the first one is `caption(scene, seed)`."""
    draw = random.Random(f"caption/{seed}")
    forms = phrasings(scene)
    first = forms[0] if draw.random() < PLAIN_CHANCE else draw.choice(forms[1:])
    others = [form for form in forms if form != first]
    return [first, *draw.sample(others, min(count - 1, len(others)))]


def phrasings(scene: Scene) -> list[str]:
    """Every caption of `scene`: lower case, at most about 20 words, the shortest form first."""
    thing = scene.items[0].object
    if scene.kind == "pair":
        forms = _pair(scene, thing.name, scene.items[1].object.name)
        forms += [_pair(scene, first, second)[0] for first, second in _synonyms(scene)]
    elif scene.kind == "number":
        forms = _number(scene, thing)
    elif scene.kind == "placed":
        forms = _placed(scene, thing.name)
        forms += [_placed(scene, name)[0] for name in thing.also]
    else:
        forms = _single(scene, thing.name)
        forms += [_single(scene, name)[0] for name in thing.also]
    return list(dict.fromkeys(forms))


def _synonyms(scene: Scene) -> list[tuple[str, str]]:
    """The names of a pair with one of them said in another way."""
    first, second = (item.object for item in scene.items)
    return [(name, second.name) for name in first.also] + [
        (first.name, name) for name in second.also
    ]


def _sized(item: Item, name: str) -> str:
    """`name` with a word for its size where it is clearly small or big."""
    if item.extent <= _SMALL:
        return f"small {name}"
    return f"big {name}" if item.extent >= _BIG else name


def _single(scene: Scene, name: str) -> list[str]:
    colour, item = scene.colour, scene.items[0]
    a_thing, sized = article(name), article(_sized(item, name))
    forms = [
        f"{a_thing} on {article(colour)} background",
        f"{a_thing} in front of {article(colour)} backdrop",
        f"{sized} in the middle of a plain {colour} background",
        f"{sized} on plain {colour}",
        f"one {name} at the center, {colour} background",
        f"a picture of {a_thing} on {article(colour)} background",
        f"a single {name}, {colour} background",
        f"{article(colour)} background with {sized} in the center",
        f"a 3d render of {sized} against a plain {colour} backdrop",
    ]
    # What people type who do not mind the rest.
    forms.append(a_thing)
    if item.extent >= _BIG:
        forms.append(f"a big {name} that fills the picture, {colour} background")
    if item.extent <= _SMALL:
        forms.append(f"a small {name} with much empty {colour} space around it")
    return forms


def _placed(scene: Scene, name: str) -> list[str]:
    colour, place = scene.colour, scene.arrangement
    empty = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[place]
    return [
        f"a small {name} at the {place}, {colour} background",
        f"a small {name} at the {place} of {article(colour)} background",
        f"{article(name)} at the {place} of the picture, {colour} background",
        f"a small {name} on {article(colour)} background, placed at the {place}",
        f"{article(colour)} background with a small {name} at the {place}",
        f"a small {name} at the {place}, the {empty} is empty, plain {colour} background",
        f"one small {name} near the {place} edge of a plain {colour} picture",
        f"a 3d render of a small {name} at the {place} in front of {article(colour)} backdrop",
        f"a small {name} at the {place}",
    ]


def _pair(scene: Scene, first: str, second: str) -> list[str]:
    colour, (a, b) = scene.colour, (article(first), article(second))
    behind = f"in front of {article(colour)} backdrop"
    ground = f"on {article(colour)} background"
    if scene.arrangement == "next":
        return [
            f"{a} next to {b} {behind}",
            f"{a} next to {b} {ground}",
            f"{a} and {b} side by side, {colour} background",
            f"{a} at the left and {b} at the right, {colour} background",
            f"{a} to the left of {b} {ground}",
            f"{b} to the right of {a} {ground}",
            f"two things on plain {colour}: {a} at the left, {b} at the right",
            f"a 3d render of {a} beside {b}, plain {colour} backdrop",
            f"{a} and {b}",
        ]
    if scene.arrangement == "above":
        return [
            f"{a} above {b} {behind}",
            f"{a} above {b} {ground}",
            f"{b} below {a} {ground}",
            f"{a} at the top and {b} at the bottom, {colour} background",
            f"{a} over {b}, plain {colour} background",
            f"two things on plain {colour}: {a} at the top, {b} at the bottom",
            f"a 3d render of {a} above {b}, plain {colour} backdrop",
        ]
    side, other = ("left", "right")
    if scene.items[0].x > scene.items[1].x:
        side, other = other, side
    return [
        f"{a} behind {b}, {colour} background",
        f"{b} in front of {a}, {colour} background",
        f"{a} behind {b} {ground}",
        f"{a} partly hidden behind {b}, {colour} background",
        f"{b} at the {other} in front of {a} at the {side}, plain {colour} background",
        f"{article(colour)} background with {b} standing in front of {a}",
        f"a 3d render of {a} behind {b}, plain {colour} backdrop",
    ]


def _number(scene: Scene, thing: SceneObject) -> list[str]:
    colour, number = scene.colour, _NUMBERS[len(scene.items)]
    ground = f"on {article(colour)} background"
    lined = "in a row" if scene.arrangement == "row" else "in a column"
    if len(scene.items) == 2:
        lined = "side by side" if scene.arrangement == "row" else "one above the other"
    return [
        f"{number} {thing.plural} {ground}",
        f"{number} {thing.plural} {lined} {ground}",
        f"{number} {thing.plural} {lined}, {colour} background",
        f"{number} {thing.plural} in front of {article(colour)} backdrop",
        f"{number} {thing.plural} on plain {colour}",
        f"a group of {number} {thing.plural}, {colour} background",
        f"{article(colour)} background with {number} {thing.plural} {lined}",
        f"a 3d render of {number} {thing.plural} {lined}, plain {colour} backdrop",
    ]
