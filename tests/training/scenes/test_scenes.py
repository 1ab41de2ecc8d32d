"""The preset, and scenes drawn with synthetic sprites."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.scenes.build import classes
from training.scenes.compose import CORNERS, KINDS, PLACES, Scene, draw, sample_scene
from training.scenes.grounds import (
    FLOOR,
    GRADIENT,
    PLAIN,
    Ground,
    all_colours,
    all_floors,
    all_gradients,
    draw_ground,
)
from training.scenes.objects import SceneObject, Sprite, all_objects, named, plural, preset

ASPECTS = st.sampled_from([0.25, 0.5, 0.8, 1.0, 1.3, 2.0, 4.0])
SEEDS = st.integers(0, 10**9)
KIND = st.sampled_from(KINDS)
# Names of the first preset, which the list of `train evaluate` asks for.
FIRST = (
    "cat, dog, red apple, green apple, slice of pizza, slice of watermelon, bunch of grapes, "
    "birthday cake, ice cream cone, red car, crescent moon, top hat, gift box, t-shirt, telephone, "
    "alarm clock, flame, game controller, snowman, palm tree"
)


def spans(scene: Scene, axis: int) -> list[tuple[float, float]]:
    """Where each item begins and ends along x (0) or y (1), in 0..1."""
    room = (max(1.0, scene.aspect), max(1.0, 1 / scene.aspect))[axis]
    result = []
    for item in scene.items:
        length = item.height * (item.sprite.aspect if axis == 0 else 1.0) / room
        middle = (item.x, item.y)[axis]
        result.append((middle - length / 2, middle + length / 2))
    return result


# ---- the preset ----


def test_objects_have_their_own_names_and_pictures() -> None:
    listed = [*all_objects(), *all_objects(held_out=True)]
    assert 190 <= len(all_objects()) <= 230
    assert len(all_objects(held_out=True)) == 8
    assert [thing.index for thing in listed] == list(range(len(listed)))
    emoji = [sprite.emoji for thing in listed for sprite in thing.sprites]
    assert len(set(emoji)) == len(emoji)
    assert all(thing.sprites for thing in listed)
    names = [name for thing in listed for name in thing.names]
    assert len(set(names)) == len(names)
    assert not set(classes()) & {thing.name for thing in all_objects(held_out=True)}


def test_no_name_means_two_things() -> None:
    """Neither a name, nor its plural, nor a colour with a name says another object too."""
    said: dict[str, str] = {}
    for thing in (*all_objects(), *all_objects(held_out=True)):
        own = {*thing.names, *map(plural, thing.names)}
        own |= {
            f"{sprite.colour} {name}"
            for sprite in thing.sprites
            for name in (thing.name, *thing.also, *sprite.also)
            if sprite.colour
        }
        for name in own:
            assert said.setdefault(name, thing.name) == thing.name, name


@pytest.mark.parametrize(
    "word",
    (
        "pizza apple car phone house tree robot heart star moon sun rainbow cake book ghost alien"
        " dragon unicorn horse tiger burger flower boat plane train cat dog fish bird truck castle"
        " mountain banana coffee beer cheese bread computer clock ball man woman girl boy wizard"
    ).split(),
)
def test_what_people_type_first_is_known(word: str) -> None:
    found = named(all_objects(), word)
    assert found is not None
    assert found.sprites


def test_names_find_their_pictures() -> None:
    things = all_objects()
    for name in FIRST.split(", "):
        assert named(things, name) is not None, name

    def shown(name: str) -> set[str]:
        found = named(things, name)
        return {sprite.emoji for sprite in found.sprites} if found else set()

    assert shown("blue heart") == {"1f499"}
    assert shown("heart") == {"2764-fe0f"}
    assert shown("green apple") == {"1f34f"}
    assert shown("polar bear") == {"1f43b-200d-2744-fe0f"}
    assert shown("black cat") == {"1f408-200d-2b1b"}
    # What nothing tells apart is shown by any of them.
    assert shown("cat") == {"1f431", "1f408"}
    assert shown("open book") == {"1f4d6"}
    assert shown("green heart face") == shown("blue cat") == set()


def test_colours_of_sprites_are_colours() -> None:
    for thing in (*all_objects(), *all_objects(held_out=True)):
        for sprite in thing.sprites:
            assert set(re.split(" and ", sprite.colour)) <= {"", *all_colours()}


def test_plurals() -> None:
    names = {
        name for thing in (*all_objects(), *all_objects(held_out=True)) for name in thing.names
    }
    known = {
        "apple": "apples",
        "rocket": "rockets",
        "fox": "foxes",
        "strawberry": "strawberries",
        "monkey": "monkeys",
        "key": "keys",
        "hourglass": "hourglasses",
        "slice of pizza": "slices of pizza",
        "fish": "fish",
        "tropical fish": "tropical fish",
        "mouse": "mice",
        "snowman": "snowmen",
        "loaf of bread": "loaves of bread",
        "woman": "women",
        "cactus": "cacti",
        "christmas tree": "christmas trees",
        "sheep": "sheep",
        "deer": "deer",
        "stag": "stags",
        "reindeer": "reindeer",
        "wolf": "wolves",
        "leaf": "leaves",
        "octopus": "octopuses",
        "bus": "buses",
        "tomato": "tomatoes",
        "volcano": "volcanoes",
        "man": "men",
    }
    assert set(known) <= names
    assert {name: plural(name) for name in known} == known
    # Every row of the table is one of these, so that none says what nobody has looked at.
    heads = {name.split(" of ")[0].split()[-1] for name in known}
    assert set(preset()["plurals"]) <= heads


def test_colours_stay_apart() -> None:
    """No shade of one colour comes nearer to another colour's middle than to its own."""
    colours = list(all_colours().values())
    assert len(colours) == 12
    draws = np.random.default_rng(0)
    middles = np.array([colour.rgb for colour in colours], dtype=float)
    for index, colour in enumerate(colours):
        shades = middles[index] + draws.uniform(-1, 1, (200, 1)) * colour.light
        shades = shades + draws.uniform(-1, 1, (200, 3)) * colour.tint
        far = np.linalg.norm(shades[:, None] - middles[None], axis=2)
        assert (far.argmin(axis=1) == index).all(), colour.name


def test_grounds_are_of_known_colours() -> None:
    for pair in all_gradients():
        assert len({*pair} & {*all_colours()}) == 2
    for floor in all_floors().values():
        assert {floor.above, floor.below} <= {*all_colours()}
        assert floor.said


# ---- scenes ----


@given(kind=KIND, seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_scenes_are_the_same_for_the_same_seed_and_stay_inside(
    things: tuple[SceneObject, ...], kind: str, seed: int, aspect: float
) -> None:
    scene = sample_scene(kind, seed, things, aspect)
    assert scene == sample_scene(kind, seed, things, aspect)
    for axis in (0, 1):
        for start, end in spans(scene, axis):
            assert start >= -0.005
            assert end <= 1.005
    assert all(item.sprite in item.object.sprites for item in scene.items)
    counts = {"pair": (2,), "number": (2, 3, 4), "trio": (3,)}
    assert len(scene.items) in counts.get(kind, (1,))


@given(kind=KIND, seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_grounds_have_their_colours_and_carry_what_stands_on_them(
    things: tuple[SceneObject, ...], kind: str, seed: int, aspect: float
) -> None:
    scene = sample_scene(kind, seed, things, aspect)
    ground = scene.ground
    assert len(ground.colours) == {PLAIN: 1, GRADIENT: 2}.get(ground.kind, len(ground.colours))
    for name, rgb in zip(ground.colours, ground.rgbs, strict=False):
        colour = all_colours()[name]
        for value, middle in zip(rgb, colour.rgb, strict=True):
            assert abs(value - middle) <= colour.light + colour.tint + 1
    if ground.kind == FLOOR:
        feet = [end for _, end in spans(scene, 1)]
        assert ground.horizon < min(feet)
        assert scene.arrangement not in ("above", "column", "grid")
    if ground.kind == GRADIENT:
        assert ground.colours in all_gradients() or ground.colours[::-1] in all_gradients()


@given(seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_pairs_stand_as_they_are_arranged(
    things: tuple[SceneObject, ...], seed: int, aspect: float
) -> None:
    scene = sample_scene("pair", seed, things, aspect)
    first, second = scene.items
    if first.object == second.object:
        assert first.sprite.colour != second.sprite.colour
        assert first.sprite.colour
        assert second.sprite.colour
    across, down = spans(scene, 0), spans(scene, 1)
    if scene.arrangement == "next":
        assert across[0][1] <= across[1][0]
    elif scene.arrangement == "above":
        assert down[0][1] <= down[1][0]
    else:
        assert scene.arrangement == "behind"
        assert first.layer < second.layer
        assert first.y < second.y
        hidden = [
            (min(spans[0][1], spans[1][1]) - max(spans[0][0], spans[1][0]))
            / (spans[0][1] - spans[0][0])
            for spans in (across, down)
        ]
        assert min(hidden) > 0
        assert hidden[0] * hidden[1] < 0.6


@given(seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_numbers_trios_and_places(
    things: tuple[SceneObject, ...], seed: int, aspect: float
) -> None:
    scene = sample_scene("number", seed, things, aspect)
    assert len({(item.object.name, item.sprite.emoji) for item in scene.items}) == 1
    assert scene.items[0].object.article
    if scene.arrangement == "grid":
        across, down = spans(scene, 0), spans(scene, 1)
        assert across[0][1] <= across[1][0]
        assert across[2][1] <= across[3][0]
        assert down[0][1] <= down[2][0]
        assert down[1][1] <= down[3][0]
    else:
        along = spans(scene, 0 if scene.arrangement == "row" else 1)
        assert all(a[1] <= b[0] for a, b in pairwise(along))
    scene = sample_scene("trio", seed, things, aspect)
    along = spans(scene, 0 if scene.arrangement == "row" else 1)
    assert all(a[1] <= b[0] for a, b in pairwise(along))
    assert scene.items[1].object != scene.items[2].object
    if scene.items[0].object == scene.items[1].object:
        assert scene.items[0].sprite == scene.items[1].sprite
        assert scene.items[0].object.article
    scene = sample_scene("placed", seed, things, aspect)
    item = scene.items[0]
    assert 0.3 <= item.extent + 1e-3
    assert item.extent - 1e-3 <= 0.5
    assert scene.arrangement in (*PLACES, *CORNERS)
    off = {"left": -item.x, "right": item.x - 1, "top": -item.y, "bottom": item.y - 1}
    for side in scene.arrangement.split():
        assert -0.36 < off[side] < 0
    assert 0.55 <= sample_scene("single", seed, things, aspect).items[0].extent + 1e-3


@pytest.mark.parametrize("size", [(128, 128), (200, 80), (64, 256)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_show_the_objects_where_the_scene_says(
    things: tuple[SceneObject, ...], kind: str, size: tuple[int, int]
) -> None:
    for seed in range(6):
        scene = sample_scene(kind, seed, things, size[0] / size[1])
        picture = draw(scene, *size)
        assert (picture.mode, picture.size) == ("RGB", size)
        assert picture.tobytes() == draw(scene, *size).tobytes()
        top = max(item.layer for item in scene.items)
        for item in scene.items:
            if item.layer == top:
                shown = picture.getpixel((int(item.x * size[0]), int(item.y * size[1])))
                middle = item.sprite.levels[0].getpixel((20, 20))
                assert isinstance(shown, tuple)
                assert isinstance(middle, tuple)
                assert max(abs(a - b) for a, b in zip(shown, middle[:3], strict=True)) <= 3


def ground(kind: str, **changes: Any) -> Ground:
    values: dict[str, Any] = {
        "kind": kind,
        "colours": ("red", "blue"),
        "rgbs": ((200, 40, 40), (40, 80, 200)),
        "light": (0.0, 0.0),
        **changes,
    }
    return Ground(**values)


def test_grounds_are_drawn_as_they_say() -> None:
    plain = draw_ground(ground(PLAIN, light=(0.06, -0.06)), 40, 30)
    assert plain.shape == (30, 40, 3)
    assert np.abs(plain / [200, 40, 40] - 1).max() <= 0.061
    assert plain[0, -1, 0] > plain[-1, 0, 0]
    floor = draw_ground(ground(FLOOR, horizon=0.7), 40, 100)
    assert np.abs(floor[:60] - [200, 40, 40]).max() < 2
    assert np.abs(floor[82:] - [40, 80, 200]).max() < 2
    for way, first, last in (
        ("down", (0, 20), (99, 20)),
        ("across", (50, 0), (50, 39)),
        ("aslant", (0, 0), (99, 39)),
    ):
        drawn = draw_ground(ground(GRADIENT, way=way), 40, 100)
        assert np.abs(drawn[first] - [200, 40, 40]).max() < 2
        assert np.abs(drawn[last] - [40, 80, 200]).max() < 2
        assert np.abs(drawn[50, 20] - [120, 60, 120]).max() < 5


def test_a_thing_on_a_floor_has_a_deeper_shadow(things: tuple[SceneObject, ...]) -> None:
    depth = {}
    for kind in (PLAIN, FLOOR):
        below = []
        for seed in range(300):
            scene = sample_scene("single", seed, things)
            item = scene.items[0]
            row = int((item.y + item.height / 2) * 128) + 2
            if scene.ground.kind == kind and len(scene.ground.colours) == 1 and row < 127:
                picture = np.asarray(draw(scene, 128, 128), dtype=float)
                bare = draw_ground(scene.ground, 128, 128)
                column = int(item.x * 128)
                below.append(
                    float(np.mean(picture[row, column] / np.maximum(1, bare[row, column])))
                )
        depth[kind] = np.median(below)
    assert depth[FLOOR] < depth[PLAIN] - 0.05
    assert depth[PLAIN] < 0.95


def test_clear_pixels_leave_no_rim() -> None:
    """Colours are weighted by alpha when a sprite shrinks: gray on the same gray stays gray."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((140, 140, 142, 255), (0, 0, 33, 64))
    sprite = Sprite(emoji="x", levels=(picture.convert("RGBa"),))
    gray = SceneObject(name="x", index=0, sprites=(sprite,))
    scene = next(
        scene
        for scene in (sample_scene("single", seed, [gray]) for seed in range(500))
        if scene.ground.colours == ("gray",) and scene.ground.kind == PLAIN
    )
    row = np.asarray(draw(scene, 61, 61)).astype(int)[int(scene.items[0].y * 61)]
    assert np.abs(row - 140).max() <= 30


def test_an_unknown_kind_is_our_own_fault(things: tuple[SceneObject, ...]) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        sample_scene("quartet", 0, things)
