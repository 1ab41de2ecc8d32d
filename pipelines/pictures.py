"""Pictures from outside: checked, turned upright, kept by content. Every byte is hostile."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import RecipeError, RequestError, SaveError, printable

MAX_BYTES = 32_000_000
MAX_PIXELS = 40_000_000
MAX_KEPT_SIDE = 4096
FORMATS = ("PNG", "JPEG", "WEBP")
_NAME = re.compile(r"[0-9a-f]{16}\.png")


def load(file: Path) -> Image.Image:
    """The first frame of a PNG, JPEG or WebP as upright RGB on white. Raises RecipeError."""
    data = _read(file)
    # Only these decoders are tried: the file's name says nothing about what is inside.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise RecipeError(
                        f"This picture has {width}x{height} pixels, which is too many.",
                        f"The limit is {MAX_PIXELS // 1_000_000} million pixels.",
                    )
                upright = ImageOps.exif_transpose(picture)
                if upright.mode == "RGB":
                    return upright.copy()
                alpha = upright.convert("RGBA")
                ground = Image.new("RGBA", alpha.size, "white")
                return Image.alpha_composite(ground, alpha).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RecipeError("This picture has too many pixels.") from None
    except UnidentifiedImageError:
        raise RecipeError(
            f"“{printable(file.name)}” is not a picture that can be read.",
            "Use a PNG, JPEG or WebP file.",
        ) from None
    # Pillow's decoders signal damage by many exception types.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise RecipeError(
            f"“{printable(file.name)}” is not a picture that can be read ({printable(error, 80)}).",
            "Use a PNG, JPEG or WebP file.",
        ) from None


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
        part = target.with_suffix(f".{os.getpid()}.part")
        picture.save(part, format="PNG")
        part.replace(target)
    except OSError as error:
        raise SaveError(f"The picture cannot be kept in {folder} ({error.strerror}).") from None
    return name


def find(name: str, folder: Path) -> Path:
    """The kept picture called `name`. Raises RequestError."""
    path = folder / name
    if not _NAME.fullmatch(name) or not path.is_file():
        raise RequestError(
            "init", f"The picture to start from, “{printable(name)}”, is not there any more."
        )
    return path
