"""Ground, mask, place and crops of pictures whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw

from training.evaluation.segmentation import (
    CROP_SIDE,
    crop,
    halves,
    lab,
    name_of,
    pieces,
    segment,
    shade_of,
    thirds,
)
from training.scenes.compose import PLACES, draw, sample_scene
from training.scenes.grounds import all_colours
from training.scenes.objects import SceneObject


def canvas(colour: str, *boxes: tuple[int, int, int, int], fill: str = "red") -> Image.Image:
    """128 px of a named colour with filled boxes (left, top, right, bottom)."""
    picture = Image.new("RGB", (128, 128), all_colours()[colour].rgb)
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill=fill)
    return picture


def test_lab_of_known_colours() -> None:
    known = [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
    ]
    for pixel, wanted in known:
        assert lab(np.array(pixel)) == pytest.approx(wanted, abs=0.05)


def test_every_shade_of_a_colour_has_its_name() -> None:
    draws = np.random.default_rng(0)
    for colour in all_colours().values():
        shades = draws.uniform(-1, 1, (100, 1)) * colour.light
        shades = colour.rgb + shades + draws.uniform(-1, 1, (100, 3)) * colour.tint
        for shade in shades.clip(0, 255):
            assert name_of(lab(shade)) == colour.name


def test_a_colour_like_no_named_one_has_no_name() -> None:
    for pixel in ((0, 255, 0), (0, 255, 255), (255, 0, 255), (0, 100, 100)):
        assert name_of(lab(np.array(pixel))) is None


@pytest.mark.parametrize("place", PLACES)
def test_places(things: tuple[SceneObject, ...], place: str) -> None:
    scenes = (sample_scene("placed", seed, things) for seed in range(90))
    plain = (scene for scene in scenes if scene.ground.kind == "plain")
    found = [segment(draw(s, 96, 96)).place for s in plain if s.arrangement == place]
    # A synthetic sprite may be of the colour of its ground; a wrong side is never seen.
    assert set(found) <= {place, ""}
    assert found.count(place) > 0.8 * len(found)


def test_the_middle_is_no_place() -> None:
    assert segment(canvas("blue", (50, 50, 80, 80))).place == "middle"


def test_masks_have_no_specks_no_holes_and_no_edge() -> None:
    picture = canvas("white", (30, 30, 90, 90), (110, 10, 112, 12), (0, 0, 1, 127))
    ImageDraw.Draw(picture).rectangle((50, 50, 60, 60), fill=all_colours()["white"].rgb)
    mask = np.zeros((128, 128), dtype=bool)
    mask[30:91, 30:91] = True
    found = segment(picture)
    assert found.colour == "white"
    # The filter rounds the four corners.
    assert np.count_nonzero(found.mask ^ mask) <= 4
    shown = crop(found)
    assert shown is not None
    assert shown.size == (CROP_SIDE, CROP_SIDE)
    assert shown.getpixel((0, 0)) == (128, 128, 128)
    assert shown.getpixel((12, 12)) == (255, 0, 0)


def test_halves_are_cut_at_the_gap() -> None:
    left, right = halves(segment(canvas("yellow", (10, 60, 44, 90), (52, 30, 118, 100))))
    assert np.flatnonzero(left.any(axis=0))[[0, -1]].tolist() == [10, 44]
    assert np.flatnonzero(right.any(axis=0))[[0, -1]].tolist() == [52, 118]
    # Two that touch: cut where they are thinnest.
    left, right = halves(
        segment(canvas("yellow", (10, 30, 50, 90), (50, 55, 70, 65), (70, 30, 99, 90)))
    )
    cut = int(np.flatnonzero(right.any(axis=0))[0])
    assert 50 < cut <= 70
    assert not (left & right).any()


def test_thirds_are_cut_at_both_gaps() -> None:
    found = segment(canvas("yellow", (6, 60, 34, 90), (48, 30, 78, 100), (88, 40, 120, 90)))
    ends = [np.flatnonzero(mask.any(axis=0))[[0, -1]].tolist() for mask in thirds(found)]
    assert ends == [[6, 34], [48, 78], [88, 120]]


def test_pieces_are_what_stands_apart() -> None:
    boxes = [(6, 60, 34, 90), (48, 30, 78, 100), (88, 40, 120, 90), (2, 2, 6, 6)]
    found = pieces(segment(canvas("white", *boxes)))
    # The largest first; a speck is none.
    assert [np.flatnonzero(mask.any(axis=0))[0] for mask in found] == [48, 88, 6]
    shade = shade_of(segment(canvas("white", *boxes)), found[0])
    assert shade == pytest.approx(lab(np.array((255, 0, 0))), abs=0.1)
    assert pieces(segment(canvas("white"))) == []
    assert shade_of(segment(canvas("white")), np.zeros((128, 128), dtype=bool)) is None


@pytest.mark.parametrize("kind", ["down", "across", "aslant", "floor"])
def test_things_are_seen_on_grounds_that_change(kind: str) -> None:
    one, other = np.array([250.0, 216, 52]), np.array([56.0, 160, 72])
    down, across = np.mgrid[0:128, 0:128] / 128
    part = {"down": down, "across": across, "aslant": (down + across) / 2}
    mixed = part.get(kind, (1 + np.tanh((down - 0.6) / 0.035)) / 2)[..., None]
    picture = Image.fromarray((one + mixed * (other - one)).astype(np.uint8))
    picture.paste((36, 80, 204), (40, 50, 90, 100))
    found = segment(picture)
    truth = np.zeros((128, 128), dtype=bool)
    truth[50:100, 40:90] = True
    assert found.colour is None
    assert np.count_nonzero(found.mask ^ truth) <= 12


@pytest.mark.parametrize("colour", ["white", "black", "purple"])
def test_a_ground_alone_shows_nothing(colour: str) -> None:
    found = segment(canvas(colour))
    assert (found.colour, found.place, found.empty) == (colour, "", True)
    assert crop(found) is None
    assert not any(half.any() for half in halves(found))


def test_noise_has_no_ground() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    found = segment(Image.fromarray(pixels))
    assert (found.colour, found.place, crop(found)) == (None, "", None)


@given(
    pixels=arrays.arrays(
        np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40), st.just(3)), fill=st.just(9)
    )
)
@settings(max_examples=60, deadline=None)
def test_no_picture_crashes(pixels: np.ndarray) -> None:
    found = segment(Image.fromarray(pixels))
    for mask in (found.mask, *halves(found), *thirds(found), *pieces(found)):
        shown = crop(found, mask)
        assert shown is None or shown.size == (CROP_SIDE, CROP_SIDE)
    assert found.place in (*PLACES, "middle", "")
