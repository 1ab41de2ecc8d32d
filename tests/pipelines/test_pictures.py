"""Pictures from outside."""

from __future__ import annotations

import io
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import pictures
from pipelines.errors import RecipeError, RequestError


def png(width: int, height: int) -> bytes:
    """A PNG that claims any size without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999))
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "in.png"
    if mode == "I;16":
        Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(file)
    else:
        Image.new("RGB", (9, 9), "red").convert(mode).save(file)
    loaded = pictures.load(file)
    assert loaded.mode == "RGB"
    grey = {"I;16": (156,) * 3, "L": (76,) * 3, "LA": (76,) * 3, "1": None}
    wanted = grey.get(mode, (255, 0, 0))
    assert wanted is None or loaded.getpixel((4, 4)) == wanted


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert pictures.load(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied_and_exif_is_dropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a secret place"
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    name = pictures.keep(tmp_path / "a.jpg", tmp_path / "inputs")
    kept = pictures.find(name, tmp_path / "inputs")
    assert pictures.load(kept).size == (20, 40)
    assert b"secret" not in kept.read_bytes()
    assert pictures.keep(kept, tmp_path / "inputs") == name


BAD = {
    "empty": b"",
    "text": b"hello",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "html": b"<html>",
    "claims 50000x50000": png(50_000, 50_000),
    "claims 13000x13000": png(13_000, 13_000),
    "claims 7000x7000": png(7000, 7000),
    "zero": png(0, 0),
    "gif": b"GIF89a" + b"\0" * 40,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pixels missing": png(900, 900),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_is_a_sentence(case: str, tmp_path: Path) -> None:
    file = tmp_path / "in.png"
    file.write_bytes(BAD[case])
    # The processor's time, which a busy machine leaves as it is.
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        pictures.keep(file, tmp_path / "inputs")
    assert time.process_time() - started < 5
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "inputs").glob("*"))


def test_a_damaged_note_about_rotation_is_no_reason_to_refuse(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="JPEG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"Exif") + 6
    for at in range(start, start + 20):
        for value in (0, 3, 127, 255):
            file = tmp_path / "a.jpg"
            file.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            assert pictures.load(file).size == (8, 8)


def test_the_same_picture_may_be_kept_twice_at_once(tmp_path: Path) -> None:
    Image.effect_noise((300, 300), 90).convert("RGB").save(tmp_path / "a.png")
    with ThreadPoolExecutor(6) as pool:
        kept = [pool.submit(pictures.keep, tmp_path / "a.png", tmp_path / "in") for _ in range(12)]
        names = {future.result() for future in kept}
    assert [file.name for file in (tmp_path / "in").iterdir()] == list(names)


def test_a_missing_file_and_a_folder_are_sentences(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(RecipeError, match="no picture"):
            pictures.load(path)


def test_only_names_that_keep_made_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    for name in ("secret.png", "../secret.png", "/etc/passwd", "", "a" * 16 + ".png"):
        with pytest.raises(RequestError, match="not there"):
            pictures.find(name, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.integers(0, 2000), st.integers(0, 255), st.integers(0, 2000))
def test_damaged_files_never_crash(tmp_path: Path, at: int, value: int, end: int) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 90).convert("RGB").save(buffer, format="JPEG")
    data = bytearray(buffer.getvalue())
    data[at % len(data)] = value
    file = tmp_path / "damaged.jpg"
    file.write_bytes(bytes(data[: max(4, end)]))
    try:
        pictures.load(file)
    except RecipeError as error:
        assert "\n" not in str(error)
