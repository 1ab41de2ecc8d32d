"""Sprites out of the npm package `@lobehub/fluent-emoji-3d`; its bytes are hostile.

It holds `package/assets/<emoji>.webp`, 256 px, on clear ground.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipelines.errors import RequestError, printable

PACKAGE = "@lobehub/fluent-emoji-3d"
MAX_SPRITE_BYTES = 1_000_000
MAX_SPRITE_SIDE = 1024
MAX_UNPACKED_BYTES = 100_000_000
MAX_MEMBERS = 20_000
WAY_OUT = (
    f"Get the pictures with “npm pack {PACKAGE}” and give the .tgz file or its unpacked folder."
)
_HEADER = "package/package.json"
# Fainter than this is the haze that the renderer left around an object.
_VISIBLE_ALPHA = 8


def package_version(source: Path) -> str:
    """The version that the package at `source` gives, "unknown" if none. Raises RequestError."""
    try:
        version = json.loads(_read(source, [_HEADER]).get(_HEADER, b"{}")).get("version")
    except (ValueError, AttributeError, RecursionError):
        version = None
    return printable(version, 40) if isinstance(version, str) else "unknown"


def read_sprites(source: Path, names: dict[str, str]) -> dict[str, tuple[Image.Image, ...]]:
    """Each of `names` (emoji -> what it shows) as a picture, premultiplied (mode "RGBa") and
    trimmed, and its halves. `source` is the packed .tgz or a folder that it was unpacked to.

    Raises RequestError.
    """
    wanted = {f"package/assets/{emoji}.webp": emoji for emoji in names}
    found = _read(source, wanted)
    for member, emoji in wanted.items():
        if member not in found:
            raise RequestError(
                "data",
                f"“{printable(source.name)}” holds no picture of “{names[emoji]}” ({member}).",
                WAY_OUT,
            )
    return {emoji: _levels(found[member], names[emoji]) for member, emoji in wanted.items()}


def _levels(data: bytes, name: str) -> tuple[Image.Image, ...]:
    """The sprite in `data`, trimmed, and its halves. Raises RequestError."""
    try:
        with Image.open(BytesIO(data), formats=("WEBP",)) as picture:
            if max(picture.size) > MAX_SPRITE_SIDE:
                raise RequestError("data", f"The picture of “{name}” is too large.", WAY_OUT)
            layer = picture.convert("RGBA")
    # Pillow's decoder signals damage by many exception types.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError):
        raise RequestError("data", f"The picture of “{name}” is damaged.", WAY_OUT) from None
    box = layer.getchannel("A").point(lambda a: 255 if a > _VISIBLE_ALPHA else 0).getbbox()
    if box is None:
        raise RequestError("data", f"The picture of “{name}” shows nothing.", WAY_OUT)
    levels = [layer.crop(box).convert("RGBa")]
    while min(levels[-1].size) >= 32:
        half = (levels[-1].width // 2, levels[-1].height // 2)
        levels.append(levels[0].resize(half, Image.Resampling.LANCZOS))
    return tuple(levels)


def _read(source: Path, members: Iterable[str]) -> dict[str, bytes]:
    """The named members that are there, as bytes in memory. Raises RequestError."""
    names = list(members)
    shown = printable(source.name or source)
    try:
        if source.is_dir():
            return _read_folder(source, names)
        if source.is_file():
            return _read_tgz(source, set(names))
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError):
        raise RequestError("data", f"“{shown}” is not a whole .tgz file.", WAY_OUT) from None
    except gzip.BadGzipFile:
        raise RequestError("data", f"“{shown}” is not a .tgz file.", WAY_OUT) from None
    except OSError as error:
        raise RequestError(
            "data", f"“{shown}” cannot be read ({error.strerror}).", WAY_OUT
        ) from None
    raise RequestError("data", f"There is no emoji package at {printable(source, 200)}.", WAY_OUT)


def _read_folder(source: Path, names: list[str]) -> dict[str, bytes]:
    root = source / "package" if (source / "package").is_dir() else source
    found = {}
    for name in names:
        file = root / name.removeprefix("package/")
        if file.is_file() and file.stat().st_size <= MAX_SPRITE_BYTES:
            found[name] = file.read_bytes()
    return found


def _read_tgz(source: Path, names: set[str]) -> dict[str, bytes]:
    """Regular members by their exact names, into memory: a member never says where it goes."""
    found: dict[str, bytes] = {}
    with _Limited(source) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for count, member in enumerate(archive):
            if count >= MAX_MEMBERS:
                raise tarfile.TarError("too many members")
            wanted = member.name in names and member.name not in found
            if not wanted or not member.isreg() or member.size > MAX_SPRITE_BYTES:
                continue
            content = archive.extractfile(member)
            if content is not None:
                found[member.name] = content.read()
            if len(found) == len(names):
                break
    return found


class _Limited(gzip.GzipFile):
    """Ends in an error after MAX_UNPACKED_BYTES: a small file may unpack to anything."""

    _left = MAX_UNPACKED_BYTES

    def read(self, size: int | None = -1) -> bytes:
        whole = size is None or size < 0
        data = super().read(self._left + 1 if whole else min(size or 0, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.TarError("too large when unpacked")
        return data
