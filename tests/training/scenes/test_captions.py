"""Captions say what is there, and nothing that is not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.scenes.captions import article, caption, several
from training.scenes.compose import KINDS, Placement, Scene, sample_scene
from training.scenes.grounds import all_colours, all_floors
from training.scenes.objects import SceneObject, plural

ASPECTS = st.sampled_from([0.25, 0.5, 0.8, 1.0, 1.3, 2.0, 4.0])
SEEDS = st.integers(0, 10**9)
KIND = st.sampled_from(KINDS)
MANY = 24
MOST_TOKENS = 40
COLOUR_WORDS = {
    word: name for name, colour in all_colours().items() for word in (name, *colour.also)
}
COLOUR = "|".join(sorted(COLOUR_WORDS, key=len, reverse=True))


def nouns(item: Placement) -> list[str]:
    names = (item.object.name, *item.object.also, *item.sprite.also)
    both = [*names, *map(plural, names)]
    return sorted(both, key=len, reverse=True)


# An orange is a thing, and the colour of a ground.
NO_GROUND = "(?! (?:background|backdrop|ground))"


def without_things(scene: Scene, text: str) -> tuple[str, dict[int, list[tuple[str, str]]]]:
    """`text` with each thing as "#", "##" or "###", and (colour, name) of each that was said."""
    said: dict[int, list[tuple[str, str]]] = {number: [] for number in range(len(scene.items))}
    order = sorted(range(len(scene.items)), key=lambda n: -len(nouns(scene.items[n])[0]))
    for number in order:
        item = scene.items[number]
        colours = [w for w, name in COLOUR_WORDS.items() if name == item.sprite.colour]
        colours += [item.sprite.colour] if " and " in item.sprite.colour else []
        words = "|".join(re.escape(name) for name in nouns(item))
        first = "|".join(sorted(colours, key=len, reverse=True)) or "(?!)"
        # With its colour, if that is said anywhere: another one may have the same name.
        found = re.search(rf"(?<![\w-])({first}) ({words})(?![\w-])", text)
        found = found or re.search(rf"(?<![\w-])()({words})(?![\w-]){NO_GROUND}", text)
        if found is not None:
            said[number].append((found[1] or "", found[2]))
            text = text[: found.start()] + "#" * (number + 1) + text[found.end() :]
    return text, said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red apple", "a red apple"),
        ("orange background", "an orange background"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("ufo", "a ufo"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
    ],
)
def test_article(name: str, said: str) -> None:
    assert article(name) == said


@given(kind=KIND, seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=250, deadline=None)
def test_captions_say_what_is_there(
    things: tuple[SceneObject, ...], kind: str, seed: int, aspect: float
) -> None:
    scene = sample_scene(kind, seed, things, aspect)
    forms = several(scene, seed, MANY)
    assert len(forms) == len(set(forms)) == MANY
    assert forms[0] == caption(scene, seed)
    assert several(scene, seed, 3) == forms[:3]
    for form in forms:
        assert form == form.lower().strip()
        assert len(re.findall(r"[^\s,:]+|[,:]", form)) < MOST_TOKENS
        assert not re.search(r"\ba [aeio]", form), form
        assert not re.search(r"\ban [^aeiouh]", form), form
        rest, said = without_things(scene, form)
        twice = len({(i.object.name, i.sprite.emoji) for i in scene.items}) < len(scene.items)
        for number, item in enumerate(scene.items):
            told = said[number]
            if not told:
                # Of several the same, one plural stands for all.
                assert twice
                continue
            colour, name = told[0]
            if item.object.must_tell(item.sprite):
                assert colour or name in (*item.sprite.also, *map(plural, item.sprite.also)), form
        # A colour that stands before no thing is the ground's.
        ground = {COLOUR_WORDS[word] for word in re.findall(rf"\b(?:{COLOUR})\b", rest)}
        allowed = set(scene.ground.colours)
        if scene.ground.name:
            phrases = " ".join(all_floors()[scene.ground.name].said)
            allowed |= {COLOUR_WORDS[w] for w in re.findall(rf"\b(?:{COLOUR})\b", phrases)}
        assert ground <= allowed, (form, scene.ground)


@given(kind=KIND, seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=250, deadline=None)
def test_sizes_numbers_and_grounds_are_true(
    things: tuple[SceneObject, ...], kind: str, seed: int, aspect: float
) -> None:
    scene = sample_scene(kind, seed, things, aspect)
    ground = scene.ground
    longest = max(item.extent for item in scene.items)
    for form in several(scene, seed, MANY):
        rest = re.sub("sky blue", "light blue", without_things(scene, form)[0])
        words = set(re.findall(r"[\w'-]+", rest))
        if words & {"small", "tiny", "little"}:
            assert min(item.extent for item in scene.items) <= 0.5
        if "tiny" in words:
            assert longest <= 0.32
        if words & {"big", "large", "huge", "filling"}:
            assert longest >= 0.75
        if words & {"huge", "filling"}:
            assert longest >= 0.85
        counts = words & {"two", "2", "three", "3", "four", "4", "pair"} - {"rows"}
        if kind == "number" and not re.search("in two rows", form):
            number = {2: {"two", "2", "pair"}, 3: {"three", "3"}, 4: {"four", "4"}}
            assert counts <= number[len(scene.items)], form
            assert counts
        if "gradient" in words:
            assert ground.kind == "gradient"
        if words & {"floor", "wall", "ground", "surface", "sky", "grass", "snow", "sand"}:
            assert ground.kind == "floor"
        if re.search("background [^#]* at the top and [^#]* at the bottom", rest):
            assert ground.way == "down"
            assert f"background {ground.colours[0]}" in form.replace("sky", "light").replace(
                "violet", "purple"
            ).replace("grey", "gray")


@given(seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_places_are_true(things: tuple[SceneObject, ...], seed: int, aspect: float) -> None:
    scene = sample_scene("placed", seed, things, aspect)
    for form in several(scene, seed, MANY):
        rest = without_things(scene, form)[0]
        rest = re.sub(r", background \w.*$", "", rest)
        found = re.search(r"# (?:at|on|in|to) the ((?:top|bottom)? ?(?:left|right)?)\b", rest)
        assert found is not None, form
        assert found[1].strip() == scene.arrangement


# What a wording says of the things that it names first and second: the axis, and which is less.
RELATIONS = {
    r"# (?:next to|beside|left of|to the left of) .*##": (0, True),
    r"## (?:right of|to the right of) .*#": (0, True),
    r"# (?:above|over) .*##": (1, True),
    r"## (?:below|under) .*#": (1, True),
    r"# .*behind .*##": (1, True),
    r"## .*in front of .*#": (1, True),
}


@given(seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_pairs_stand_as_they_are_said_to(
    things: tuple[SceneObject, ...], seed: int, aspect: float
) -> None:
    scene = sample_scene("pair", seed, things, aspect)
    first, second = scene.items
    told = 0
    for form in several(scene, seed, MANY):
        rest = without_things(scene, form)[0]
        if re.search("under .*sky", rest):
            continue
        for pattern, (axis, less) in RELATIONS.items():
            if re.search(rf"(?<!#){pattern}(?!#)", rest):
                told += 1
                a, b = (first.x, second.x) if axis == 0 else (first.y, second.y)
                assert (a < b) == less, form
        for side, item in re.findall(r"(?<!#)(#+) (?:at|on) the (left|right)\b", rest):
            assert (first.x < second.x) == ((len(side) == 1) == (item == "left")), form
    assert told


@given(seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_of_three_the_middle_one_is_between(
    things: tuple[SceneObject, ...], seed: int, aspect: float
) -> None:
    scene = sample_scene("trio", seed, things, aspect)
    places = [item.x if scene.arrangement == "row" else item.y for item in scene.items]
    assert places == sorted(places)
    two_alike = scene.items[0].sprite == scene.items[1].sprite
    for form in several(scene, seed, MANY):
        assert two_alike == bool(re.match(r"(?:.* )?(?:two|2) ", form)), form
        rest = without_things(scene, form)[0]
        if not two_alike and " between " in rest:
            assert re.search(r"(?<!#)##(?!#) between .*(?<!#)#(?!#).* and .*###", rest), form


def test_bare_and_full_wordings_all_come(things: tuple[SceneObject, ...]) -> None:
    """What people type: with and without article, ground, colour; of each some hundredths."""
    cats = [thing for thing in things if thing.name == "cat"]
    told = [caption(sample_scene("single", seed, cats), seed) for seed in range(4000)]
    for pattern in (
        r"^cat$",
        r"^a cat$",
        r"^an orange cat$",
        r"^black cat$",
        r"^cat on (\w+|light blue)$",
        r"^a black cat on an? (\w+|light blue) background$",
        r"^an? (\w+|light blue) background with a black cat$",
        r"^black cat, (\w+|light blue) background$",
        r"^a cat on a gradient from ",
        r"^a cat on grass$",
        r"^a picture of a cat ",
        r"^a kitten ",
    ):
        assert sum(bool(re.search(pattern, form)) for form in told) >= 2, pattern
    named = sum(bool(re.search("background|backdrop| on | against ", form)) for form in told)
    assert 0.75 < named / len(told) < 0.9


def test_a_colour_stands_before_a_thing_on_a_ground_of_another(
    things: tuple[SceneObject, ...],
) -> None:
    """What binds colours to what they stand before: a good share of all captions."""
    both = 0
    for seed in range(1500):
        scene = sample_scene("single", seed, things)
        if scene.ground.kind == "plain" and scene.items[0].sprite.colour:
            rest, said = without_things(scene, caption(scene, seed))
            both += bool(said[0][0][0]) and bool(re.search(rf"\b(?:{COLOUR})\b", rest))
    assert both >= 150
