"""The package of the emoji, hostile or not, and the data set that is drawn from it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import training.scenes.package as scene_package
from pipelines.errors import RequestError, SaveError
from training.scenes.build import Built, build, classes
from training.scenes.compose import KINDS, draw, sample_scene
from training.scenes.objects import all_objects, load_objects
from training.scenes.package import package_version

KINDS_EVEN = dict.fromkeys(KINDS, 1.0)


# ---- the package ----


def test_packed_and_unpacked_are_the_same(package: Path, packed: Path) -> None:
    for source in (package, package.parent, packed):
        assert package_version(source) == "9.8.7"
    one, other = load_objects(package), load_objects(packed)
    assert [o.name for o in one] == classes()
    for a, b in zip(one, other, strict=True):
        assert len(a.sprites) == len(b.sprites) >= 1
        for left, right in zip(a.sprites, b.sprites, strict=True):
            assert left.levels[0].tobytes() == right.levels[0].tobytes()
    held = load_objects(packed, held_out=True)
    assert all(thing.held_out for thing in held)
    # Trimmed to what is visible.
    assert one[0].sprites[1].levels[0].size == (73, 77)


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
    name = f"package/assets/{all_objects()[0].sprites[0].emoji}.webp"

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
        for emoji in (sprite.emoji for thing in all_objects() for sprite in thing.sprites):
            archive.addfile(_member(f"package/assets/{emoji}.webp", 4), io.BytesIO(b"RIFF"))

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
    monkeypatch.setattr(scene_package, "MAX_MEMBERS", 20)
    with pytest.raises(RequestError, match="not a whole"):
        load_objects(_tgz(tmp_path / "many.tgz", many))
    assert {file.suffix for file in tmp_path.iterdir()} == {".tgz"}
    monkeypatch.setattr(scene_package._Limited, "_left", 10_000)
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
        assert row["file_name"] == f"images/00/{index:06d}.webp"
        with Image.open(out / row["file_name"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGB", (32, 32))
        assert row["text"] == row["captions"][0]
        assert len(set(row["captions"])) == 3
        alone = row["scene"]["kind"] in ("single", "placed", "plain")
        assert (row["label"] is not None) == alone
        if alone:
            assert classes()[row["label_index"]] == row["label"]
            assert row["scene"]["items"][0]["object"] == row["label"]
    # Nothing is lost on the way to the disk.
    drawn = draw(sample_scene(listed[0]["scene"]["kind"], "3/0", load_objects(package)), 32, 32)
    with Image.open(out / listed[0]["file_name"]) as picture:
        assert picture.tobytes() == drawn.tobytes()
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
    half = cut / "images/00/000004.webp"
    half.write_bytes(half.read_bytes()[:-20])
    times = {file: file.stat().st_mtime_ns for file in (cut / "images").rglob("*.webp")}
    assert make(package, cut).complete
    assert everything(cut) == everything(whole)
    kept = [file.name for file, time in times.items() if file.stat().st_mtime_ns == time]
    assert sorted(kept) == [f"{n:06d}.webp" for n in range(4)]
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
