"""Thumbnails: made once, small, and not needed by anybody."""

from __future__ import annotations

import os
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from app.gallery import thumbnails
from pipelines.errors import RecipeError

NAME = "2025-01-01/000000-1-000000.png"


def test_a_thumbnail_keeps_the_shape_and_is_made_once(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (1024, 512), (200, 30, 30)).save(picture)
    data = thumbnails.read(picture, NAME, tmp_path / "thumbs")
    with Image.open(BytesIO(data)) as small:
        assert (small.format, small.size) == ("WEBP", (thumbnails.SIDE, thumbnails.SIDE // 2))
        red, green, _ = small.convert("RGB").getpixel((50, 50))  # type: ignore[misc]
    assert red > 180
    assert green < 50
    assert thumbnails.file(NAME, tmp_path / "thumbs").read_bytes() == data
    Image.new("RGB", (64, 64)).save(picture)
    os.utime(picture, (0, 0))
    assert thumbnails.read(picture, NAME, tmp_path / "thumbs") == data
    later = time.time() + 10
    os.utime(picture, (later, later))
    assert thumbnails.read(picture, NAME, tmp_path / "thumbs") != data, "it was changed since"


def test_thumbnails_go_with_their_pictures(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(picture)
    thumbnails.read(picture, NAME, tmp_path / "thumbs")
    thumbnails.forget([NAME, "2025-01-01/000000-1-000001.png"], tmp_path / "thumbs")
    assert not list((tmp_path / "thumbs").rglob("*.webp"))


def test_a_small_picture_is_not_blown_up(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 32)).save(picture)
    with Image.open(BytesIO(thumbnails.read(picture, NAME, tmp_path / "thumbs"))) as small:
        assert small.size == (64, 32)


def test_a_disk_that_refuses_costs_only_the_memory_of_it(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 32)).save(picture)
    (tmp_path / "thumbs").write_bytes(b"a file where a folder should be")
    assert thumbnails.read(picture, NAME, tmp_path / "thumbs")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(RecipeError):
        thumbnails.read(tmp_path / "picture.png", NAME, tmp_path / "thumbs")
    assert not (tmp_path / "thumbs").exists()
