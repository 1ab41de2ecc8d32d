"""Pictures from outside: checked, turned upright, kept by content. Every byte is hostile."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from lora_manager import folders
from pipelines import files, picture_parts
from pipelines.errors import RecipeError, RequestError, SaveError, printable

MAX_BYTES = 32_000_000
MAX_PIXELS = 40_000_000
MAX_KEPT_SIDE = 4096
FORMATS = ("PNG", "JPEG", "WEBP")
WAY_OUT = "Use a PNG, JPEG or WebP file."
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
)
_NOTED_SECONDS = 600.0
_NAME = re.compile(r"[0-9a-f]{16}\.png")
_WAYS_UP = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From how the camera was held, as EXIF numbers it, to what turns the picture upright."""
# How the files of other kinds begin that people do have among their pictures.
_OTHER_KINDS = re.compile(
    rb"GIF8|BM.{4}\x00\x00|II\*\x00|MM\x00\*|8BPS|%!PS|%PDF|\x00\x00\x01\x00|\xff\x0a|.{4}ftyp"
    rb"|\s*<(svg|\?xml)",
    re.DOTALL,
)


class PictureError(RecipeError):
    """A file that is no usable picture. `code` says why, for programs.

    Codes: "empty", "too-many-pixels", "truncated", "unsupported" (a picture of another kind) and
    "unreadable".
    """

    def __init__(self, code: str, message: str, way_out: str = "") -> None:
        super().__init__(message, way_out)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture as upright 8-bit RGB on white, and codes of what had to be handled for that.

    Notes: "rotated", "cmyk", "16-bit", "alpha", "animated" (only the first frame is used).
    """

    picture: Image.Image
    notes: tuple[str, ...]


def load(file: Path) -> Image.Image:
    """The first frame of a PNG, JPEG or WebP as upright RGB on white. Raises RecipeError."""
    data = _read(file)
    # Pillow warns of large pictures and damaged notes, which are told or repaired here.
    with warnings.catch_warnings(action="ignore"):
        return decode(data, file.name).picture


def may_be_picture(head: bytes) -> bool:
    """Whether a file that begins so, with 12 bytes or more, is of a kind that `load` reads."""
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return webp or head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def decode(data: bytes, name: str) -> Decoded:
    """The first frame of a PNG, JPEG or WebP; `name` is for the sentences. Raises PictureError.

    Pillow's warnings are the caller's to silence: doing that is not safe in several threads.
    """
    shown = printable(name)
    if not data:
        raise PictureError("empty", f"“{shown}” is empty.", WAY_OUT)
    try:
        lean = picture_parts.lean(data)
        # Only these decoders are tried: the file's name says nothing about what is inside.
        with Image.open(BytesIO(lean.data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    "too-many-pixels",
                    f"“{shown}” has {width}x{height} pixels, which is too many.",
                    f"The limit is {MAX_PIXELS // 1_000_000} million pixels.",
                )
            picture.load()
            notes = _notes(picture, data)
            upright: Image.Image = picture
            if lean.turn in _WAYS_UP:
                upright = picture.transpose(_WAYS_UP[lean.turn])
                notes = ("rotated", *notes)
            return Decoded(picture=_rgb(upright), notes=notes)
    except UnidentifiedImageError:
        code = "unsupported" if _OTHER_KINDS.match(data[:256]) else _damage(data)
        message = f"“{shown}” is not a picture that can be read."
        raise PictureError(code, message, WAY_OUT) from None
    except Image.DecompressionBombError:
        raise PictureError("too-many-pixels", f"“{shown}” has too many pixels.") from None
    except picture_parts.TooManyPartsError as error:
        message = f"“{shown}” has {error}, which no picture needs."
        raise PictureError("unreadable", message, WAY_OUT) from None
    # Pillow's decoders signal damage by many exception types.
    except _DAMAGE as error:
        message = f"“{shown}” is damaged ({printable(error, 80)})."
        raise PictureError(_damage(data), message, WAY_OUT) from None


def _damage(data: bytes) -> str:
    """ "truncated" where the end of the file is missing, else "unreadable"."""
    if data.startswith(b"\x89PNG"):
        whole = b"IEND" in data[-64:]
    elif data.startswith(b"\xff\xd8"):
        whole = b"\xff\xd9" in data[-64:]
    elif data.startswith(b"RIFF"):
        whole = len(data) >= int.from_bytes(data[4:8], "little") + 8
    else:
        whole = True
    return "unreadable" if whole else "truncated"


def _notes(picture: Image.Image, data: bytes) -> tuple[str, ...]:
    # Pillow itself cuts the channels of a 16-bit colour PNG to 8 bits: only its header tells.
    deep = picture.format == "PNG" and data[24:25] == b"\x10"
    # Several pictures in one JPEG are depth maps and such, and no film.
    film = picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1
    found = {
        "cmyk": picture.mode == "CMYK",
        "16-bit": deep or picture.mode.startswith("I"),
        "alpha": picture.has_transparency_data,
        "animated": film,
    }
    return tuple(code for code, is_so in found.items() if is_so)


def _rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB on white in the common colour space, without any metadata."""
    if picture.mode.startswith("I"):
        # 16 bits per pixel: Pillow's own conversion would cut them off at 255.
        values = np.asarray(picture, dtype=np.float64) / 257
        picture = Image.fromarray(values.round().clip(0, 255).astype("uint8"))
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
            picture = converted or picture
    layer = picture.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise RecipeError(f"There is no picture at {printable(file, 200)}.")
        if file.stat().st_size > MAX_BYTES:
            raise RecipeError(
                f"“{printable(file.name)}” is larger than {MAX_BYTES // 1_000_000} MB."
            )
        return file.read_bytes()
    except OSError as error:
        raise RecipeError(f"“{printable(file.name)}” cannot be read ({error.strerror}).") from None


def keep(file: Path, folder: Path) -> str:
    """Keeps a clean copy of `file` in `folder`; its name, made from its pixels.

    Metadata such as GPS never reaches the copy. Raises RecipeError, SaveError.
    """
    picture = load(file)
    picture.thumbnail((MAX_KEPT_SIDE, MAX_KEPT_SIDE), Image.Resampling.LANCZOS)
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    name = f"{digest[:16]}.png"
    target = folder / name
    if target.is_file():
        _use(target)
        return name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = folders.trouble(folder) or error.strerror
        raise SaveError(f"The picture cannot be kept in {folder} ({reason}).") from None
    files.write(target, png(picture))
    return name


def find(name: str, folder: Path) -> Path:
    """The kept picture called `name`. Raises RequestError."""
    path = folder / name
    if not _NAME.fullmatch(name) or not os.path.isfile(path):
        reason = folders.trouble(folder)
        lost = f"cannot be read in {folder} ({reason})" if reason else "is not there any more"
        raise RequestError("init", f"The picture to start from, “{printable(name)}”, {lost}.")
    _use(path)
    return path


def is_kept(file: Path) -> bool:
    """Whether `keep` has made the file, by its name."""
    return _NAME.fullmatch(file.name) is not None


def _use(path: Path) -> None:
    """Notes that a kept picture was used: one that nobody uses goes some day."""
    with suppress(OSError):
        # Not each time that somebody looks.
        if time.time() - path.stat().st_mtime > _NOTED_SECONDS:
            os.utime(path)


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file, without metadata."""
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
