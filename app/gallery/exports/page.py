"""One file of HTML that shows pictures and their recipes, and needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from app.gallery import recipe_rows
from app.gallery.index import IndexedPicture
from app.markup import render
from app.settings import VERSION
from pipelines.request import GenerationRequest

MAX_SIDE = 1024
"""Pixels of the longest side that a picture has in the page."""
_QUALITY = 85
# The number of pictures is known at the end only; until then this many bytes are kept for it.
_ROOM = 120
_ALT = 240
"""Characters of a prompt that are read aloud; all of it stands in the recipe."""

_MARKUP = "gallery/exports/page.html"


def write(
    draft: Path, pictures: Iterable[tuple[IndexedPicture, Image.Image]], *, recipes: bool = True
) -> None:
    """Writes the page to `draft`, picture by picture; without `recipes` nothing but pictures.

    Raises OSError.
    """
    with open(draft, "xb") as stream:
        stream.write(render(_MARKUP, "head", version=VERSION).encode())
        place = stream.tell()
        stream.write(b" " * _ROOM + render(_MARKUP, "middle").encode())
        count, first, last = 0, "9", ""
        for entry, picture in pictures:
            count += 1
            first, last = min(first, entry.name[:10]), max(last, entry.name[:10])
            figure = _figure(entry, picture, count, recipes=recipes)
            stream.write(f"{figure}\n".encode("utf-8", "replace"))
        stream.write(render(_MARKUP, "end").encode())
        stream.seek(place)
        about = f"{count:,} picture{'s' * (count != 1)}"
        days = first if first == last else f"{first} – {last}"
        said = render(_MARKUP, "about", words=f"{days} · {about}" if recipes else about)
        stream.write(said.encode()[:_ROOM])


def _figure(entry: IndexedPicture, picture: Image.Image, number: int, *, recipes: bool) -> str:
    request = entry.request if recipes else None
    alt = f"Picture {number}"
    if request is not None:
        words = " ".join(request.prompt.split())
        alt = words if len(words) <= _ALT else f"{words[: _ALT - 1]}…"
    image, width, height = _embedded(picture)
    return render(
        _MARKUP,
        "figure",
        number=number,
        alt=alt,
        width=width,
        height=height,
        image=image,
        recipes=recipes,
        created=entry.created,
        prompt=request.prompt if request is not None else None,
        rows=_rows(entry, request) if request is not None else (),
    )


def _embedded(picture: Image.Image) -> tuple[str, int, int]:
    """The picture as an address of its own data, with its width and height."""
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/webp;base64,{data}", picture.width, picture.height


def _rows(entry: IndexedPicture, request: GenerationRequest) -> list[tuple[str, str]]:
    rows = [
        ("Prompt", request.prompt),
        ("Negative", request.negative),
        *recipe_rows.of(request),
        ("Painted", entry.created),
        ("File", entry.name),
    ]
    return [(label, value) for label, value in rows if value]
