"""Files that keep a decoder busy: what is counted is the work, never the time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from app.gallery import metadata, thumbnails
from app.gallery.index import GalleryIndex
from pipelines import picture_parts, pictures
from pipelines.errors import RecipeError
from pipelines.picture_parts import BYTES_A_PART, MOST_PARTS, MOST_SCANS, TooManyPartsError
from training.data import lint

BIG = 30_000_000
START = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    crc = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")


def png(*between: bytes, side: int = 8) -> bytes:
    """A grey PNG with `between` its header and its pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side + 1)))
    parts = (chunk(b"IHDR", header), *between, chunk(b"IDAT", pixels), chunk(b"IEND"))
    return START + b"".join(parts)


def jpeg(*between: bytes, **options: Any) -> bytes:
    """A JPEG with `between` its first marker and the rest."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    return data[:2] + b"".join(between) + data[2:]


def webp(*after: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "WEBP", exif=Image.Exif(), lossless=True)
    inside = buffer.getvalue()[12:] + b"".join(after)
    return b"RIFF" + (len(inside) + 4).to_bytes(4, "little") + b"WEBP" + inside


def segment(kind: int, data: bytes = b"") -> bytes:
    return bytes([0xFF, kind]) + (len(data) + 2).to_bytes(2, "big") + data


def filled(part: bytes) -> bytes:
    return part * (BIG // len(part))


def overlapping_exif(tags: int) -> bytes:
    """A directory whose every entry names the whole of it: a general reader copies it each time."""
    size = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack(">HHII", tag ^ 0x8000, 7, size, 0) for tag in range(tags))
    return b"MM\0*" + struct.pack(">IH", 8, tags) + entries + b"\0\0\0\0"


UNFOLDS = zlib.compress(b"x" * 1_000_000)
ENDLESS: dict[str, Callable[[], bytes]] = {
    "empty chunks": lambda: png(filled(chunk(b"teSt"))),
    "empty texts": lambda: png(filled(chunk(b"tEXt", b"a\0"))),
    "empty pixels": lambda: png(filled(chunk(b"IDAT"))),
    "profiles that unfold": lambda: png(filled(chunk(b"iCCP", b"a\0\0" + UNFOLDS))[:BIG]),
    "empty segments": lambda: jpeg(filled(segment(0xE5))),
    "empty comments": lambda: jpeg(filled(segment(0xFE))),
    "notes of a camera": lambda: jpeg(filled(segment(0xE1, b"Exif\0\0MM"))),
    "empty tables": lambda: jpeg(filled(segment(0xDB))),
    "markers alone": lambda: jpeg(filled(b"\xff\x01")),
    "empty parts of WebP": lambda: webp(filled(b"teSt\0\0\0\0")),
}
"""Files of 30 MB with more parts than any picture."""
USELESS: dict[str, Callable[[], bytes]] = {
    "texts that unfold": lambda: png(*[chunk(b"zTXt", b"a\0\0" + UNFOLDS)] * 2000),
    "profiles that unfold": lambda: png(*[chunk(b"iCCP", b"a\0\0" + UNFOLDS)] * 2000),
    "international texts that unfold": lambda: png(
        *[chunk(b"iTXt", b"a\0\1\0\0\0" + UNFOLDS)] * 2000
    ),
    "a text of 30 MB": lambda: png(chunk(b"tEXt", b"a\0" + bytes(BIG))),
    "tags that overlap": lambda: png(chunk(b"eXIf", overlapping_exif(65_535))),
    "tags that overlap in a JPEG": lambda: jpeg(
        segment(0xE1, b"Exif\0\0" + overlapping_exif(5000))
    ),
    "tags that overlap in a WebP": lambda: webp(
        b"EXIF" + (8 + 2 + 12 * 60_000 + 4).to_bytes(4, "little") + overlapping_exif(60_000)
    ),
    "tags of several pictures that overlap": lambda: jpeg(
        segment(0xE2, b"MPF\0" + overlapping_exif(5000))
    ),
    "fill bytes": lambda: jpeg(b"\xff" * BIG),
    "no markers": lambda: jpeg(bytes(BIG)),
    "notes of Photoshop": lambda: jpeg(
        *[segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5000)] * 400
    ),
}
"""Files of as many parts as they may have, with notes that a decoder works long on."""


class Work:
    """Counts what Pillow is given to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = 0
        self.steps = 0
        self.directories = 0
        inner_open = Image.open

        def opening(file: Any, *rest: Any, **named: Any) -> Image.Image:
            self.opened += len(file.getvalue()) if isinstance(file, io.BytesIO) else BIG
            return inner_open(file, *rest, **named)

        monkeypatch.setattr(Image, "open", opening)
        self._count(monkeypatch, PngImagePlugin.ChunkStream, "read", "steps")
        self._count(monkeypatch, TiffImagePlugin.ImageFileDirectory_v2, "load", "directories")
        handlers: dict[int, Any] = dict(JpegImagePlugin.MARKER)
        for marker, (short, long, handler) in handlers.items():
            if handler is not None:
                row = (short, long, self._counted(handler))
                monkeypatch.setitem(JpegImagePlugin.MARKER, marker, row)

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, what: str) -> None:
        inner = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            setattr(self, what, getattr(self, what) + 1)
            return inner(*arguments)

        monkeypatch.setattr(owner, name, counted)

    def _counted(self, inner: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any) -> None:
            self.steps += 1
            inner(*arguments)

        return counted


class Counted(io.BytesIO):
    """A file that counts how often it is read, and how much."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = self.bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.reads += 1
        self.bytes += len(found)
        return found


@pytest.mark.parametrize("case", ENDLESS)
def test_a_file_of_endless_parts_never_reaches_a_decoder(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "in.png"
    file.write_bytes(ENDLESS[case]())
    assert file.stat().st_size > BIG * 0.9
    work = Work(monkeypatch)
    if case == "profiles that unfold":
        # As few as they are, they are let through without being looked into.
        assert pictures.load(file).size == (8, 8)
    else:
        with pytest.raises(RecipeError, match="parts, which no picture needs") as caught:
            pictures.load(file)
        assert "\n" not in str(caught.value)
        assert work.opened == 0
    assert work.steps < 10


@pytest.mark.parametrize("case", USELESS)
def test_notes_never_reach_a_decoder(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "in.png"
    file.write_bytes(USELESS[case]())
    work = Work(monkeypatch)
    assert pictures.load(file).size in ((8, 8), (16, 16))
    assert work.steps < 20
    assert work.directories == 0
    assert work.opened < 2_000_000


@pytest.mark.parametrize("case", ["empty chunks", "empty texts", "empty pixels"])
@pytest.mark.parametrize("reader", ["recipe", "gallery", "thumbnail", "training"])
def test_every_place_that_opens_pictures_refuses_them(
    case: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = tmp_path / "2026-01-01"
    day.mkdir()
    file = day / "000000-1-abcdef.png"
    file.write_bytes(ENDLESS[case]())
    work = Work(monkeypatch)
    if reader == "recipe":
        with pytest.raises(RecipeError):
            metadata.read(file)
    elif reader == "gallery":
        index = GalleryIndex(tmp_path, tmp_path / "gallery.db", lambda names: None)
        index.sync()
        (entry,) = index.search().entries
        assert entry.request is None
        assert entry.problem
    elif reader == "thumbnail":
        with pytest.raises(RecipeError):
            thumbnails.read(file, "2026-01-01/000000-1-abcdef.png", tmp_path / "thumbs")
    else:
        assert vars(lint)["decode"] is pictures.decode
    assert (work.opened, work.steps) == (0, 0)


def test_a_recipe_is_found_with_a_few_short_reads() -> None:
    notes = [chunk(b"tEXt", b"other\0" + b"x" * 100)] * 500
    notes += [chunk(b"iTXt", b"mine\0\0\0\0\0found"), chunk(b"tEXt", b"last\0" + bytes(BIG))]
    stream = Counted(png(*notes))
    found = picture_parts.png_text(stream, "mine", 1000)
    assert found is not None
    with Image.open(io.BytesIO(found)) as picture:
        assert picture.info["mine"] == "found"
    assert stream.reads < 2 * len(notes) + 10
    assert stream.bytes < 100 * len(notes)


def test_a_recipe_is_not_read_where_there_are_too_many_parts() -> None:
    most = MOST_PARTS + BIG // BYTES_A_PART
    for part in (chunk(b"teSt"), chunk(b"tEXt", b"m\0"), chunk(b"iTXt", b"mine2\0\0\0\0\0")):
        stream = Counted(png(filled(part)))
        with pytest.raises(TooManyPartsError):
            picture_parts.png_text(stream, "mine", 1000)
        assert stream.reads < 2.1 * most
        assert stream.bytes < 100 * most


@pytest.mark.parametrize("claimed", [2**31, 2**32 - 1, 2_000_001])
def test_a_text_that_claims_a_giant_length_is_not_read(claimed: int) -> None:
    data = png(claimed.to_bytes(4, "big") + b"tEXtmine\0" + bytes(100))
    stream = Counted(data)
    with pytest.raises(ValueError, match="too long"):
        picture_parts.png_text(stream, "mine", 2_000_000)
    assert stream.bytes < 300


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iCCP", b"IDAT", b"PLTE", b"teSt"])
@pytest.mark.parametrize("claimed", [2**31 - 1, 2**31, 2**32 - 1])
def test_a_part_that_claims_a_giant_length_is_a_sentence(
    kind: bytes, claimed: int, tmp_path: Path
) -> None:
    file = tmp_path / "in.png"
    file.write_bytes(png(claimed.to_bytes(4, "big") + kind + bytes(100)))
    with pytest.raises(RecipeError) as caught:
        pictures.load(file)
    assert "\n" not in str(caught.value)


def test_a_jpeg_of_endless_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 20)]
    work = Work(monkeypatch)
    with pytest.raises(RecipeError, match=f"more than {MOST_SCANS} scans"):
        pictures.decode(data[:-2] + scan * MOST_SCANS + data[-2:], "in.jpg")
    assert work.opened == 0
    assert pictures.decode(data, "in.jpg").picture.size == (16, 16)


@pytest.mark.slow
def test_large_honest_pictures_are_read(tmp_path: Path) -> None:
    noise = Image.effect_noise((2400, 2400), 99)
    pixels = {}
    formats: tuple[tuple[str, dict[str, Any]], ...] = (
        ("a.png", {"compress_level": 0}),
        ("a.jpg", {"progressive": True, "quality": 100, "restart_marker_blocks": 1}),
        ("a.webp", {"lossless": True, "method": 0, "quality": 0}),
    )
    for name, options in formats:
        noise.save(tmp_path / name, **options)
        pixels[name] = np.asarray(pictures.load(tmp_path / name).convert("L"))
        with Image.open(tmp_path / name) as expected:
            wanted = np.asarray(expected.convert("RGB").convert("L"))
        np.testing.assert_array_equal(pixels[name], wanted)


def test_small_parts_of_an_honest_writer_are_no_reason_to_refuse(tmp_path: Path) -> None:
    # Some writers cut the pixels into pieces of a kilobyte.
    raw = b"".join(b"\0" + bytes(np.random.default_rng(row).bytes(3000)) for row in range(3000))
    data = zlib.compress(raw, 0)
    pieces = [chunk(b"IDAT", data[i : i + 1024]) for i in range(0, len(data), 1024)]
    header = struct.pack(">IIBBBBB", 3000, 3000, 8, 0, 0, 0, 0)
    whole = START + chunk(b"IHDR", header) + b"".join(pieces) + chunk(b"IEND")
    assert len(pieces) > MOST_PARTS
    assert pictures.decode(whole, "in.png").picture.size == (3000, 3000)


@pytest.mark.parametrize("turn", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_as_pillow_turns_them(turn: int, kind: str) -> None:
    noise = np.random.default_rng(2).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010E] = "a description that stands before and after"
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, exif=exif)
    decoded = pictures.decode(buffer.getvalue(), "in")
    with Image.open(buffer) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decoded.picture), np.asarray(upright))
    assert ("rotated" in decoded.notes) == (turn >= 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turn_that_only_xmp_tells_is_heard(kind: str) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    buffer = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    options = {"pnginfo": info} if kind == "PNG" else {"xmp": xmp}
    Image.new("RGB", (40, 24)).save(buffer, kind, **options)
    assert pictures.decode(buffer.getvalue(), "in").picture.size == (24, 40)


def test_profiles_colours_and_transparency_stay(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 10, 20])
    picture.save(tmp_path / "a.png", transparency=0, icc_profile=profile)
    lean = picture_parts.lean((tmp_path / "a.png").read_bytes())
    assert b"iCCP" in lean.data
    assert b"tRNS" in lean.data
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=profile)
    lean = picture_parts.lean((tmp_path / "a.jpg").read_bytes())
    assert b"Adobe" in lean.data
    assert b"ICC_PROFILE" in lean.data
    assert pictures.load(tmp_path / "a.png").getpixel((0, 0)) == (200, 10, 20)
    red = np.asarray(pictures.load(tmp_path / "a.jpg"))[0, 0]
    assert red[0] > 200 > red[1]
