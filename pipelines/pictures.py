"""Pictures from outside: checked, turned upright, kept by content. Every byte is hostile."""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipelines import files
from pipelines.errors import RecipeError, RequestError, SaveError, printable

MAX_BYTES = 32_000_000
MAX_PIXELS = 40_000_000
MAX_KEPT_SIDE = 4096
FORMATS = ("PNG", "JPEG", "WEBP")
_WAY_OUT = "Use a PNG, JPEG or WebP file."
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
_NAME = re.compile(r"[0-9a-f]{16}\.png")


def load(file: Path) -> Image.Image:
    """The first frame of a PNG, JPEG or WebP as upright RGB on white. Raises RecipeError."""
    data = _read(file)
    shown = printable(file.name)
    try:
        # Only these decoders are tried: the file's name says nothing about what is inside. Pillow
        # warns of large pictures and damaged notes, which are told or mended here.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(BytesIO(data), formats=FORMATS) as picture,
        ):
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise RecipeError(
                    f"“{shown}” has {width}x{height} pixels, which is too many.",
                    f"The limit is {MAX_PIXELS // 1_000_000} million pixels.",
                )
            picture.load()
            return _rgb(_upright(picture))
    except UnidentifiedImageError:
        raise RecipeError(f"“{shown}” is not a picture that can be read.", _WAY_OUT) from None
    except Image.DecompressionBombError:
        raise RecipeError(f"“{shown}” has too many pixels.") from None
    # Pillow's decoders signal damage by many exception types.
    except _DAMAGE as error:
        raise RecipeError(f"“{shown}” is damaged ({printable(error, 80)}).", _WAY_OUT) from None


def _upright(picture: Image.Image) -> Image.Image:
    """`picture` as its camera was held; a damaged note about that is no reason to refuse it."""
    try:
        return ImageOps.exif_transpose(picture)
    except _DAMAGE:
        return picture


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
        return name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"The picture cannot be kept in {folder} ({error.strerror}).") from None
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    files.write(target, buffer.getvalue())
    return name


def find(name: str, folder: Path) -> Path:
    """The kept picture called `name`. Raises RequestError."""
    path = folder / name
    if not _NAME.fullmatch(name) or not path.is_file():
        raise RequestError(
            "init", f"The picture to start from, “{printable(name)}”, is not there any more."
        )
    return path
