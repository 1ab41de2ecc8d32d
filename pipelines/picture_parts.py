"""The parts that a picture file is made of, found by their headers, before any decoder reads it.

Decoders read every note in a file, and some of them in steps of a few bytes or again and again: a
small file of millions of empty parts, of notes that unfold, or of a list that names the same bytes
thousands of times keeps them busy for minutes. So the parts are counted here, at one short read
each, and a decoder is given those only that the pixels and their colours need.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import BinaryIO

MOST_PARTS = 4096
BYTES_A_PART = 512
"""Files have at most so many parts, and one more for each so many bytes."""
MOST_SCANS = 64
"""Of a JPEG: each goes over the whole picture again. Encoders make about ten."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MAX_KEY = 79
# Not those between the pieces of a scan, D0 to D7: an honest file may have any number of them.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_SOI, _EOI, _SOS, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = (
    *(0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE),
)
_ALONE = (0x01, _SOI, _EOI)
_LENGTHS = range(0xC0, 0xFF)
_ICC = b"ICC_PROFILE\0"
_MOST_PROFILE_PARTS = 255
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_KEY = b"XML:com.adobe.xmp\0"
_XMP_TURN = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TURN = 0x0112
_MOST_TAGS = 512


class TooManyPartsError(ValueError):
    """The file has more parts, or scans, than any picture."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """`size` bytes of data at `start`; `kind` is a PNG or RIFF name or a JPEG marker's byte.

    A part of a file that was cut off claims more bytes than there are.
    """

    kind: bytes
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Lean:
    """A file without what a decoder can do without, and how its camera was held (EXIF, 1 to 8)."""

    data: bytes
    turn: int


def lean(data: bytes) -> Lean:
    """`data` without notes. What is no PNG, JPEG or WebP stays as it is. Raises
    TooManyPartsError."""
    if data.startswith(_PNG):
        return _lean_png(data)
    if data.startswith(_JPEG):
        return _lean_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _lean_webp(data)
    return Lean(data=data, turn=1)


def png_text(stream: BinaryIO, key: str, longest: int) -> bytes | None:
    """A PNG of nothing but the header and the text called `key`, for a decoder to read; None where
    there is no such text before the pixels.

    Raises TooManyPartsError, and ValueError for a text of more than `longest` bytes or no PNG.
    """
    if stream.read(8) != _PNG:
        raise ValueError("no PNG")
    header = b""
    size = stream.seek(0, 2)
    for part in _counted(_chunks(stream, size), size):
        if part.kind == b"IHDR" and not header and part.size == 13:
            header = _at(stream, part.start - 8, part.size + 12)
        elif part.kind in _PNG_TEXTS:
            if _at(stream, part.start, min(part.size, _MAX_KEY + 1)).startswith(
                key.encode("latin-1") + b"\0"
            ):
                if part.size > longest:
                    raise ValueError("too long")
                text = _at(stream, part.start - 8, part.size + 12)
                return _PNG + header + text + _EMPTY_PIXELS
        elif part.kind in (b"IDAT", b"IEND"):
            break
    if not header:
        raise ValueError("no header")
    return None


_EMPTY_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"


def _counted(parts: Iterator[Chunk], size: int) -> Iterator[Chunk]:
    """The parts of a file of `size` bytes. Raises TooManyPartsError."""
    most = MOST_PARTS + size // BYTES_A_PART
    yield from islice(parts, most)
    if next(parts, None) is not None:
        raise TooManyPartsError(f"more than {most:,} parts")


def _at(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


# PNG


def _chunks(stream: BinaryIO, size: int) -> Iterator[Chunk]:
    start = 8
    while start + 8 <= size:
        length, kind = struct.unpack(">I4s", _at(stream, start, 8))
        yield Chunk(kind=kind, start=start + 8, size=length)
        if kind == b"IEND":
            return
        start += 12 + length


def _lean_png(data: bytes) -> Lean:
    view = memoryview(data)
    kept: list[bytes | memoryview] = [_PNG]
    turn, profiles = 1, 0
    for part in _counted(_chunks(BytesIO(data), len(data)), len(data)):
        held = view[part.start : part.start + part.size]
        if part.kind == b"eXIf":
            turn = _exif_turn(bytes(held[: 1 << 16]))
        elif part.kind == b"iTXt" and turn == 1 and held[: len(_XMP_KEY)] == _XMP_KEY:
            turn = _xmp_turn(held)
        profiles += part.kind == b"iCCP"
        first_profile = part.kind == b"iCCP" and profiles == 1
        # A name that is none is damage, which a decoder is to see.
        if part.kind in _PNG_KEPT or first_profile or not part.kind.isalpha():
            kept.append(view[part.start - 8 : part.start + part.size + 4])
    return Lean(data=b"".join(kept), turn=turn)


# JPEG


def _segments(data: bytes) -> Iterator[Chunk]:
    """Up to the end of the picture; `size` is 0 for markers without data."""
    place = 2
    while found := _MARKER.search(data, place):
        kind, place = found[1], found.end()
        length = 2
        if kind[0] not in _ALONE:
            length = int.from_bytes(data[place : place + 2], "big")
        yield Chunk(kind=kind, start=place + 2, size=max(0, length - 2))
        if kind[0] == _EOI:
            return
        if kind[0] not in _ALONE:
            place += max(2, length)


def _lean_jpeg(data: bytes) -> Lean:
    view, begun = memoryview(data), len(data)
    kept: list[bytes | memoryview] = [_JPEG]
    turn = xmp_turn = scans = profiles = 0
    for part in _counted(_segments(data), len(data)):
        kind, held = part.kind[0], view[part.start : part.start + part.size]
        if kind == _SOS:
            scans += 1
            begun = min(begun, part.start - 4)
            if scans > MOST_SCANS:
                raise TooManyPartsError(f"more than {MOST_SCANS} scans")
        if scans or kind in _ALONE:
            continue
        if kind not in _LENGTHS:
            # Damage, which a decoder is to see.
            begun = part.start - 4
            break
        if kind == _APP1 and bytes(held[:6]) == b"Exif\0\0":
            turn = turn or _exif_turn(bytes(held))
        elif kind == _APP1 and bytes(held[: len(_XMP)]) == _XMP:
            xmp_turn = xmp_turn or _xmp_turn(held)
        profiles += kind == _APP2 and held[: len(_ICC)] == _ICC
        of_profile = held[: len(_ICC)] == _ICC and profiles <= _MOST_PROFILE_PARTS
        note = _APP0 <= kind <= _APP15 or kind == _COM
        if not note or kind in (_APP0, _APP14) or (kind == _APP2 and of_profile):
            kept.append(view[part.start - 4 : part.start + part.size])
    kept.append(view[begun:])
    return Lean(data=b"".join(kept), turn=turn if turn > 1 else xmp_turn or 1)


# WebP


def _riff_chunks(data: bytes) -> Iterator[Chunk]:
    start = 12
    while start + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, start)
        yield Chunk(kind=kind, start=start + 8, size=length)
        start += 8 + length + length % 2


def _lean_webp(data: bytes) -> Lean:
    """Only counted: its decoder reads notes when it is asked for them."""
    turn = xmp_turn = 0
    for part in _counted(_riff_chunks(data), len(data)):
        held = memoryview(data)[part.start : part.start + part.size]
        if part.kind == b"EXIF":
            turn = turn or _exif_turn(bytes(held[: 1 << 16]))
        elif part.kind == b"XMP ":
            xmp_turn = xmp_turn or _xmp_turn(held)
    return Lean(data=data, turn=turn if turn > 1 else xmp_turn or 1)


# how the camera was held


def _exif_turn(exif: bytes) -> int:
    """The orientation in the first directory of `exif`, 1 to 8; 1 where it does not say.

    Only this is read: a general reader follows lists that may name the same bytes again and again.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (tags,) = struct.unpack_from(f"{order}H", tiff, first)
        for number in range(min(tags, _MOST_TAGS)):
            tag, kind, _, turn = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * number)
            if tag == _TURN:
                return turn if kind == 3 and 1 <= turn <= 8 else 1
    except struct.error:
        return 1
    return 1


def _xmp_turn(xmp: memoryview) -> int:
    found = _XMP_TURN.search(xmp)
    return int(found[1]) if found else 1
