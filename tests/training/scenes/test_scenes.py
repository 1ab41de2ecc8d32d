"""Scenes and their captions, with synthetic sprites laid out as the npm package is."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipelines.errors import RequestError, SaveError
from training.scenes import objects
from training.scenes.build import Built, build, classes
from training.scenes.captions import article, caption, phrasings, several
from training.scenes.compose import KINDS, Scene, draw, sample_scene
from training.scenes.objects import (
    SceneObject,
    all_colours,
    all_objects,
    load_objects,
    package_version,
)

ASPECTS = st.sampled_from([0.25, 0.5, 0.8, 1.0, 1.3, 2.0, 4.0])
SEEDS = st.integers(0, 10**9)
KIND = st.sampled_from(KINDS)
KINDS_EVEN = dict.fromkeys(KINDS, 1.0)


def sprite(index: int) -> bytes:
    """A block of its own colour and shape, with clear room around it and a soft rim."""
    wide, high = 60 + 13 * (index % 9), 60 + 17 * (index % 7)
    picture = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    colour = (37 * index % 256, 91 * index % 256, 151 * index % 256, 255)
    box = (20, 10, 20 + wide - 1, 10 + high - 1)
    ImageDraw.Draw(picture).rectangle(box, fill=colour)
    data = io.BytesIO()
    picture.save(data, format="WEBP", lossless=True)
    return data.getvalue()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("npm") / "package"
    (root / "assets").mkdir(parents=True)
    (root / "package.json").write_text('{"version": "9.8.7"}')
    for thing in (*all_objects(), *all_objects(held_out=True)):
        (root / "assets" / f"{thing.emoji}.webp").write_bytes(sprite(thing.index))
    return root


@pytest.fixture(scope="module")
def packed(package: Path) -> Path:
    file = package.parent / "emoji-9.8.7.tgz"
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        archive.add(package, "package")
    return file


@pytest.fixture(scope="module")
def things(package: Path) -> tuple[SceneObject, ...]:
    return load_objects(package)


def spans(scene: Scene, axis: int) -> list[tuple[float, float]]:
    """Where each item begins and ends along x (0) or y (1), in 0..1."""
    room = (max(1.0, scene.aspect), max(1.0, 1 / scene.aspect))[axis]
    result = []
    for item in scene.items:
        length = item.height * (item.object.aspect if axis == 0 else 1.0) / room
        middle = (item.x, item.y)[axis]
        result.append((middle - length / 2, middle + length / 2))
    return result


# ---- the preset ----


def test_objects_have_their_own_names_and_pictures() -> None:
    listed = [*all_objects(), *all_objects(held_out=True)]
    assert 110 <= len(all_objects()) <= 130
    assert len(all_objects(held_out=True)) == 8
    assert [thing.index for thing in listed] == list(range(len(listed)))
    assert len({thing.emoji for thing in listed}) == len(listed)
    names = [name for thing in listed for name in (thing.name, *thing.also)]
    assert len(set(names)) == len(names)
    wanted = {"cat", "dog", "tractor", "castle", "red apple", "top hat", "rocket"}
    assert wanted <= set(classes())
    assert not set(classes()) & {thing.name for thing in all_objects(held_out=True)}


def test_plurals() -> None:
    plurals = {thing.name: thing.plural for thing in all_objects()}
    for name, plural in {
        "red apple": "red apples",
        "rocket": "rockets",
        "fox": "foxes",
        "strawberry": "strawberries",
        "donkey": "donkeys",
        "key": "keys",
        "hourglass": "hourglasses",
        "slice of pizza": "slices of pizza",
        "fish": "fish",
    }.items():
        assert plurals.get(name, plural) == plural
    assert plurals["key"] == "keys"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red apple", "a red apple"),
        ("orange background", "an orange background"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
    ],
)
def test_article(name: str, said: str) -> None:
    assert article(name) == said


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
    colour = all_colours()[scene.colour]
    for value, middle in zip(scene.rgb, colour.rgb, strict=True):
        assert abs(value - middle) <= colour.light + colour.tint + 1
    assert len(scene.items) in {"pair": (2,), "number": (2, 3)}.get(kind, (1,))


@given(seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=150, deadline=None)
def test_pairs_stand_as_they_are_said_to(
    things: tuple[SceneObject, ...], seed: int, aspect: float
) -> None:
    scene = sample_scene("pair", seed, things, aspect)
    first, second = scene.items
    assert first.object != second.object
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
@settings(max_examples=100, deadline=None)
def test_numbers_and_places(things: tuple[SceneObject, ...], seed: int, aspect: float) -> None:
    scene = sample_scene("number", seed, things, aspect)
    assert len({item.object.name for item in scene.items}) == 1
    along = spans(scene, 0 if scene.arrangement == "row" else 1)
    assert all(a[1] <= b[0] for a, b in pairwise(along))
    scene = sample_scene("placed", seed, things, aspect)
    item = scene.items[0]
    assert 0.3 <= item.extent + 1e-3
    assert item.extent - 1e-3 <= 0.5
    off = {"left": -item.x, "right": item.x - 1, "top": -item.y, "bottom": item.y - 1}
    assert -0.36 < off[scene.arrangement] < 0
    assert 0.55 <= sample_scene("single", seed, things, aspect).items[0].extent + 1e-3


@pytest.mark.parametrize("size", [(128, 128), (200, 80), (64, 256)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_show_the_objects_where_the_scene_says(
    things: tuple[SceneObject, ...], kind: str, size: tuple[int, int]
) -> None:
    for seed in range(5):
        scene = sample_scene(kind, seed, things, size[0] / size[1])
        picture = draw(scene, *size)
        assert (picture.mode, picture.size) == ("RGB", size)
        assert picture.tobytes() == draw(scene, *size).tobytes()
        top = max(item.layer for item in scene.items)
        for item in scene.items:
            if item.layer == top:
                shown = picture.getpixel((int(item.x * size[0]), int(item.y * size[1])))
                middle = item.object.levels[0].getpixel((20, 20))
                assert isinstance(shown, tuple)
                assert isinstance(middle, tuple)
                assert max(abs(a - b) for a, b in zip(shown, middle[:3], strict=True)) <= 3
    corner = np.asarray(draw(sample_scene("single", 1, things), 128, 128))[0, 0]
    ground = np.array(sample_scene("single", 1, things).rgb)
    assert np.abs(corner - ground).max() <= 0.07 * 255


def test_clear_pixels_leave_no_rim() -> None:
    """Colours are weighted by alpha when a sprite shrinks: gray on the same gray stays gray."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((140, 140, 142, 255), (0, 0, 33, 64))
    gray = SceneObject(name="x", index=0, emoji="x", plural="xs", levels=(picture.convert("RGBa"),))
    scene = next(
        scene
        for scene in (sample_scene("single", seed, [gray]) for seed in range(200))
        if scene.colour == "gray"
    )
    row = np.asarray(draw(scene, 61, 61)).astype(int)[int(scene.items[0].y * 61)]
    assert np.abs(row - 140).max() <= 30


def test_an_unknown_kind_is_our_own_fault(things: tuple[SceneObject, ...]) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        sample_scene("triple", 0, things)


# ---- captions ----


@given(kind=KIND, seed=SEEDS, aspect=ASPECTS)
@settings(max_examples=200, deadline=None)
def test_captions_say_what_is_there(
    things: tuple[SceneObject, ...], kind: str, seed: int, aspect: float
) -> None:
    scene = sample_scene(kind, seed, things, aspect)
    forms = phrasings(scene)
    assert len(forms) == len(set(forms)) >= 3
    for form in forms:
        assert form == form.lower()
        assert len(form.split()) <= 24
        for item in scene.items:
            known = (item.object.name, item.object.plural, *item.object.also)
            assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", form) for name in known)
        assert not re.search(r"\ba [aeio]", form), form
        assert not re.search(r"\ban [^aeiouh]", form), form
    # At most one form says nothing of the ground, and it is not the first.
    silent = [form for form in forms if not re.search(rf"\b{scene.colour}\b", form)]
    assert len(silent) <= 1
    assert forms[0] not in silent
    assert caption(scene, seed) == caption(scene, seed)
    three = several(scene, seed, 3)
    assert three[0] == caption(scene, seed)
    assert len(set(three)) == 3
    assert set(three) <= set(forms)


@given(seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_the_first_models_three_forms_come_first(
    things: tuple[SceneObject, ...], seed: int
) -> None:
    scene = sample_scene("single", seed, things)
    name, colour = scene.items[0].object.name, scene.colour
    assert phrasings(scene)[0] == f"{article(name)} on {article(colour)} background"
    scene = sample_scene("placed", seed, things)
    name, colour = scene.items[0].object.name, scene.colour
    place = "left" if scene.items[0].x < 0.37 else "right" if scene.items[0].x > 0.63 else ""
    place = place or ("top" if scene.items[0].y < 0.5 else "bottom")
    assert phrasings(scene)[0] == f"a small {name} at the {place}, {colour} background"
    scene = sample_scene("pair", seed, things)
    if scene.arrangement == "next":
        left, right = sorted(scene.items, key=lambda item: item.x)
        assert phrasings(scene)[0] == (
            f"{article(left.object.name)} next to {article(right.object.name)} "
            f"in front of {article(scene.colour)} backdrop"
        )
    scene = sample_scene("number", seed, things)
    count = {2: "two", 3: "three"}[len(scene.items)]
    assert phrasings(scene)[0].startswith(f"{count} {scene.items[0].object.plural} on ")


# ---- the package ----


def test_packed_and_unpacked_are_the_same(package: Path, packed: Path) -> None:
    for source in (package, package.parent, packed):
        assert package_version(source) == "9.8.7"
    one, other = load_objects(package), load_objects(packed)
    assert [o.name for o in one] == classes()
    for a, b in zip(one, other, strict=True):
        assert a.levels[0].tobytes() == b.levels[0].tobytes()
    held = load_objects(packed, held_out=True)
    assert all(thing.held_out for thing in held)
    # Trimmed to what is visible.
    assert one[1].levels[0].size == (73, 77)


def test_a_missing_package_is_a_sentence(tmp_path: Path, package: Path) -> None:
    for source in (tmp_path / "none.tgz", tmp_path):
        with pytest.raises(RequestError, match="npm pack @lobehub/fluent-emoji-3d") as caught:
            load_objects(source)
        assert caught.value.field == "data"
    assert package_version(tmp_path) == "unknown"


def _tgz(file: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        fill(archive)
    return file


def _member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "/etc/passwd"
    return info


def test_hostile_archives(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"package/assets/{all_objects()[0].emoji}.webp"

    def links(archive: tarfile.TarFile) -> None:
        archive.addfile(_member("../../evil.webp", 4), io.BytesIO(b"evil"))
        archive.addfile(_member("/tmp/evil.webp", 4), io.BytesIO(b"evil"))
        archive.addfile(_member(name, kind=tarfile.SYMTYPE))

    def large(archive: tarfile.TarFile) -> None:
        archive.addfile(_member(name, 2_000_000), io.BytesIO(bytes(2_000_000)))

    def many(archive: tarfile.TarFile) -> None:
        for index in range(50):
            archive.addfile(_member(f"package/{index}"))

    def damaged(archive: tarfile.TarFile) -> None:
        for thing in all_objects():
            archive.addfile(_member(f"package/assets/{thing.emoji}.webp", 4), io.BytesIO(b"RIFF"))

    (tmp_path / "cut.tgz").write_bytes(packed.read_bytes()[:4000])
    (tmp_path / "noise.tgz").write_bytes(b"no archive at all")
    (tmp_path / "empty.tgz").write_bytes(b"")
    (tmp_path / "inner.tgz").write_bytes(gzip.compress(b"\x01" * 5000))
    _tgz(tmp_path / "links.tgz", links)
    _tgz(tmp_path / "large.tgz", large)
    _tgz(tmp_path / "damaged.tgz", damaged)
    for file in sorted(tmp_path.glob("*.tgz")):
        with pytest.raises(RequestError, match="npm pack"):
            load_objects(file)
    monkeypatch.setattr(objects, "MAX_MEMBERS", 20)
    with pytest.raises(RequestError, match="not a whole"):
        load_objects(_tgz(tmp_path / "many.tgz", many))
    assert {file.suffix for file in tmp_path.iterdir()} == {".tgz"}
    monkeypatch.setattr(objects._Limited, "_left", 10_000)
    with pytest.raises(RequestError, match="not a whole"):
        load_objects(packed)


def test_hostile_versions(tmp_path: Path) -> None:
    for text in ("[1]", "{", '{"version": 3}', '{"version": "1\\n2' + "x" * 90 + '"}', "\xff"):
        (tmp_path / "package.json").write_text(text, "latin-1")
        assert len(package_version(tmp_path)) <= 40
        assert package_version(tmp_path).isprintable()


# ---- the data set ----


def make(source: Path, out: Path, **changes: Any) -> Built:
    arguments: dict[str, Any] = {
        "count": 12,
        "size": 32,
        "kinds": KINDS_EVEN,
        "seed": 3,
        "report": lambda done, total: None,
        "should_stop": lambda: False,
        **changes,
    }
    return build(source, out, **arguments)


def everything(out: Path) -> dict[str, bytes]:
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text("utf-8").splitlines()]


def test_the_folder_that_build_makes(package: Path, packed: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "a"
    built = make(package, out, report=lambda done, total: seen.append((done, total)))
    assert built.complete
    assert seen == [(n, 12) for n in range(1, 13)]
    listed = rows(out)
    assert len(listed) == 12
    for index, row in enumerate(listed):
        assert row["file_name"] == f"images/00/{index:06d}.png"
        with Image.open(out / row["file_name"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (32, 32))
        assert row["text"] == row["captions"][0]
        assert len(set(row["captions"])) == 3
        alone = row["scene"]["kind"] in ("single", "placed", "plain")
        assert (row["label"] is not None) == alone
        if alone:
            assert classes()[row["label_index"]] == row["label"]
            assert row["scene"]["items"][0]["object"] == row["label"]
    card = json.loads((out / "dataset.json").read_bytes())
    assert card["complete"] is True
    assert card["count"] == 12
    assert card["source"]["version"] == "9.8.7"
    assert "MIT" in card["licence"]
    make(packed, tmp_path / "b")
    assert everything(out) == everything(tmp_path / "b")
    make(package, tmp_path / "c", seed=4)
    assert everything(out) != everything(tmp_path / "c")


def test_a_stopped_build_goes_on_where_it_was(package: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    make(package, whole)
    done: list[int] = []
    built = make(
        package,
        cut,
        report=lambda n, total: done.append(n),
        should_stop=lambda: len(done) == 5,
    )
    assert (built.done, built.complete) == (5, False)
    assert not (cut / "metadata.jsonl").exists()
    # Cut off in the middle of a picture, as when the power fails.
    half = cut / "images/00/000004.png"
    half.write_bytes(half.read_bytes()[:-20])
    times = {file: file.stat().st_mtime_ns for file in (cut / "images").rglob("*.png")}
    assert make(package, cut).complete
    assert everything(cut) == everything(whole)
    kept = [file.name for file, time in times.items() if file.stat().st_mtime_ns == time]
    assert sorted(kept) == [f"{n:06d}.png" for n in range(4)]
    before = everything(cut)
    make(package, cut)
    assert everything(cut) == before


def test_more_of_the_same_but_nothing_else(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(package, out, count=4)
    make(package, out, count=6)
    assert len(rows(out)) == 6
    for changes in ({"seed": 9}, {"size": 48}, {"kinds": {"pair": 1}}, {"held_out": True}):
        with pytest.raises(RequestError, match="in another way"):
            make(package, out, **{"count": 6, **changes})
    with pytest.raises(RequestError, match="which is more"):
        make(package, out, count=5)
    (out / "dataset.json").write_text("[]")
    with pytest.raises(RequestError, match="in another way"):
        make(package, out)
    (out / "dataset.json").unlink()
    with pytest.raises(RequestError, match="holds other pictures"):
        make(package, out)


def test_bins_and_held_out_objects(package: Path, tmp_path: Path) -> None:
    bins = [(48, 24), (24, 48), (32, 32)]
    make(package, tmp_path / "bins", bins=bins, count=24)
    sizes = set()
    for row in rows(tmp_path / "bins"):
        with Image.open(tmp_path / "bins" / row["file_name"]) as picture:
            sizes.add(picture.size)
            assert row["scene"]["aspect"] == round(picture.width / picture.height, 4)
    assert sizes == set(bins)
    make(package, tmp_path / "held", held_out=True, kinds={"single": 1, "pair": 0})
    names = [thing.name for thing in all_objects(held_out=True)]
    for row in rows(tmp_path / "held"):
        assert row["label"] in names
        assert row["label_index"] == len(classes()) + names.index(row["label"])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 10**9}, "count"),
        ({"size": 4}, "size"),
        ({"bins": [(64, 99999)]}, "size"),
        ({"kinds": {}}, "kinds"),
        ({"kinds": {"single": 0}}, "kinds"),
        ({"kinds": {"singel": 1}}, "kinds"),
        ({"kinds": {"single": -1}}, "kinds"),
        ({"kinds": {"single": float("nan")}}, "kinds"),
    ],
)
def test_values_that_cannot_be_built(
    package: Path, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        make(package, tmp_path / "out", **changes)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be made"):
        make(package, tmp_path / "file" / "out")
