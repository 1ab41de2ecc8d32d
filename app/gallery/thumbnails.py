"""Small versions of the pictures of the gallery, made when they are first looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipelines import files, pictures
from pipelines.errors import SaveError

SIDE = 384
"""Pixels of the longer side: a thumbnail is half as large on the page, screens are dense."""
_QUALITY = 82


def read(picture: Path, name: str, folder: Path) -> bytes:
    """The thumbnail of a picture as WebP, out of `folder` where it is kept by `name`.

    A disk that refuses costs only the memory of it. Raises RecipeError for what is no picture.
    """
    kept = file(name, folder)
    with suppress(OSError):
        # A file that was changed under its name has another face.
        if kept.stat().st_mtime_ns >= picture.stat().st_mtime_ns:
            return kept.read_bytes()
    small = pictures.load(picture)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = BytesIO()
    small.save(stream, "WEBP", quality=_QUALITY)
    with suppress(OSError, SaveError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, stream.getvalue())
    return stream.getvalue()


def file(name: str, folder: Path) -> Path:
    """Where the thumbnail of the picture "YYYY-MM-DD/....png" is kept."""
    return (folder / name).with_suffix(".webp")


def forget(names: Iterable[str], folder: Path) -> None:
    """Deletes the thumbnails of pictures that are gone; what stays only takes room."""
    for name in names:
        with suppress(OSError):
            file(name, folder).unlink(missing_ok=True)
