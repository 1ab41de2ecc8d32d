"""Ground, mask, place and crops of pictures whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw

from training.evaluation.sight import CROP_SIDE, crop, halves, lab, look, name_of
from training.scenes.compose import PLACES, draw, sample_scene
from training.scenes.objects import SceneObject, all_colours


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
    scenes = (sample_scene("placed", seed, things) for seed in range(60))
    found = [look(draw(s, 96, 96)).place for s in scenes if s.arrangement == place]
    # A synthetic sprite may be of the colour of its ground; a wrong side is never seen.
    assert set(found) <= {place, ""}
    assert found.count(place) > 0.8 * len(found)


def test_the_middle_is_no_place() -> None:
    assert look(canvas("blue", (50, 50, 80, 80))).place == "middle"


def test_masks_have_no_specks_no_holes_and_no_edge() -> None:
    picture = canvas("white", (30, 30, 90, 90), (110, 10, 112, 12), (0, 0, 1, 127))
    ImageDraw.Draw(picture).rectangle((50, 50, 60, 60), fill=all_colours()["white"].rgb)
    mask = np.zeros((128, 128), dtype=bool)
    mask[30:91, 30:91] = True
    found = look(picture)
    assert found.colour == "white"
    # The filter rounds the four corners.
    assert np.count_nonzero(found.mask ^ mask) <= 4
    shown = crop(found)
    assert shown is not None
    assert shown.size == (CROP_SIDE, CROP_SIDE)
    assert shown.getpixel((0, 0)) == (128, 128, 128)
    assert shown.getpixel((12, 12)) == (255, 0, 0)


def test_halves_are_cut_at_the_gap() -> None:
    left, right = halves(look(canvas("yellow", (10, 60, 44, 90), (52, 30, 118, 100))))
    assert np.flatnonzero(left.any(axis=0))[[0, -1]].tolist() == [10, 44]
    assert np.flatnonzero(right.any(axis=0))[[0, -1]].tolist() == [52, 118]
    # Two that touch: cut where they are thinnest.
    left, right = halves(
        look(canvas("yellow", (10, 30, 50, 90), (50, 55, 70, 65), (70, 30, 99, 90)))
    )
    cut = int(np.flatnonzero(right.any(axis=0))[0])
    assert 50 < cut <= 70
    assert not (left & right).any()


@pytest.mark.parametrize("colour", ["white", "black", "purple"])
def test_a_ground_alone_shows_nothing(colour: str) -> None:
    found = look(canvas(colour))
    assert (found.colour, found.place, found.empty) == (colour, "", True)
    assert crop(found) is None
    assert not any(half.any() for half in halves(found))


def test_noise_has_no_ground() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    found = look(Image.fromarray(pixels))
    assert (found.colour, found.place, crop(found)) == (None, "", None)


@given(
    pixels=arrays.arrays(
        np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40), st.just(3)), fill=st.just(9)
    )
)
@settings(max_examples=60, deadline=None)
def test_no_picture_crashes(pixels: np.ndarray) -> None:
    found = look(Image.fromarray(pixels))
    for mask in (found.mask, *halves(found)):
        shown = crop(found, mask)
        assert shown is None or shown.size == (CROP_SIDE, CROP_SIDE)
    assert found.place in (*PLACES, "middle", "")
