"""Pictures on disk: whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.gallery import metadata
from app.gallery.pictures import Gallery
from pipelines.catalog import Catalog
from pipelines.errors import RecipeError, SaveError
from pipelines.picture_record import Picture, PictureRecord
from pipelines.request import complete


def painted(prompt: str = "a red apple") -> Picture:
    request = complete({"prompt": prompt, "seed": 42}, Catalog())
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    return Picture(image=image, request=request, seconds=0.5, weights="0123456789")


def test_the_name_and_the_recipe(tmp_path: Path) -> None:
    picture = painted()
    file = Gallery(tmp_path / "outputs").add(picture)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d{6}-42-[0-9a-f]{6}\.png", file.name)
    assert file.path == tmp_path / "outputs" / file.name
    assert metadata.read(file.path) == PictureRecord(request=picture.request, weights="0123456789")
    with Image.open(file.path) as image:
        assert image.tobytes() == picture.image.tobytes()


def test_flat_folders_and_many_pictures(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, by_day=False)
    names = {gallery.add(painted()).path for _ in range(20)}
    assert len(names) == 20
    assert {path.parent for path in names} == {tmp_path}


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("in the way")
    with pytest.raises(SaveError, match="is a file"):
        Gallery(tmp_path / "outputs", by_day=False).add(painted())


@pytest.mark.parametrize(
    ("code", "sentence"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "cannot be written")]
)
@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_a_failed_write_leaves_nothing_and_keeps_earlier_pictures(
    code: int, sentence: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery(tmp_path, by_day=False)
    first = gallery.add(painted())

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if step == "sync":
            patch.setattr(os, "fsync", fail)
        elif step == "rename":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr("builtins.open", fail)
        with pytest.raises(SaveError, match=sentence):
            gallery.add(painted())
    assert sorted(tmp_path.iterdir()) == [first.path]
    assert metadata.read(first.path)


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    Gallery(tmp_path / "a" / "b", by_day=False).check_writable()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_picture_is_deleted_for_good(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    file = gallery.add(painted())
    gallery.remove(file.name)
    gallery.remove(file.name)
    assert not file.path.exists()


@pytest.mark.parametrize(
    "name", ["", "../x.png", "2026-01-01/x.png", "/2026-01-01/000001-1-abcdef.png"]
)
def test_only_pictures_are_deleted(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError):
        Gallery(tmp_path).remove(name)


def test_a_picture_that_stays_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    file = Gallery(tmp_path).add(painted())
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(SaveError, match="cannot be deleted"):
        Gallery(tmp_path).remove(file.name)


def test_the_newest_pictures_come_first_and_strange_files_do_not_count(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    for day, clock, prompt in (
        ("2026-01-02", "000001", "second"),
        ("2026-01-01", "235959", "first"),
        ("2026-01-02", "000002", "third"),
    ):
        file = gallery.add(painted("a " + prompt)).path
        (tmp_path / day).mkdir(exist_ok=True)
        file.rename(tmp_path / day / f"{clock}-42-abcdef.png")
    (tmp_path / "2026-01-03").mkdir()
    (tmp_path / "2026-01-03" / "holiday.png").write_bytes(b"no picture")
    assert [r.prompt for r in gallery.newest(9)] == ["a third", "a second", "a first"]
    assert [r.prompt for r in gallery.newest(2)] == ["a third", "a second"]
    assert list(Gallery(tmp_path / "missing").newest(2)) == []
