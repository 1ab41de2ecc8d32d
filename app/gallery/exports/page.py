"""One file of HTML that shows pictures and their recipes, and needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from app.gallery.index import IndexedPicture
from app.settings import VERSION
from pipelines.denoising import samplers
from pipelines.errors import UnknownNameError
from pipelines.request import GenerationRequest
from pipelines.text.styles import NO_STYLE

MAX_SIDE = 1024
"""Pixels of the longest side that a picture has in the page."""
_QUALITY = 85
# The number of pictures is known at the end only; until then this many bytes are kept for it.
_ROOM = 120
_ALT = 240
"""Characters of a prompt that are read aloud; all of it stands in the recipe."""

# No script at all, so that nothing in a prompt can ever become one; and nothing is fetched.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="PixArt Studio {version}">
<meta name="color-scheme" content="dark light">
<title>Pictures · PixArt Studio</title>
<style>{style}</style>
</head>
<body>
<header><h1>PixArt Studio</h1><p>"""
_MIDDLE = """</p></header>
<main>
"""
_END = """</main>
</body>
</html>
"""
_STYLE = """
:root {
  --ground: #0b0b0f; --panel: #121218; --line: #26262f; --line-2: #363642; --text: #ececf1;
  --text-2: #a9a9b6; --canvas: #08080b; --ring: #a78bfa; color-scheme: dark;
}
@media (prefers-color-scheme: light) {
  :root {
    --ground: #f6f6f8; --panel: #ffffff; --line: #e1e1e8; --line-2: #c6c6d0; --text: #1b1b21;
    --text-2: #595966; --canvas: #ececf1; --ring: #6d3cf5; color-scheme: light;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1760px; padding: 0 clamp(16px, 3vw, 44px) 56px;
  background: var(--ground); color: var(--text);
  font: 15px/1.5 InterVariable, Inter, system-ui, sans-serif;
}
header {
  display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between;
  gap: 4px 20px; padding: clamp(24px, 4vw, 44px) 0 clamp(18px, 2.4vw, 28px);
}
h1 { margin: 0; font-size: 22px; font-weight: 650; letter-spacing: -.012em; line-height: 1.2; }
header p { margin: 0; color: var(--text-2); font-variant-numeric: tabular-nums; }
main {
  display: grid; gap: clamp(16px, 1.6vw, 24px); align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr));
}
figure {
  margin: 0; min-width: 0; background: var(--panel); border: 1px solid var(--line);
  border-radius: 14px; overflow: hidden; scroll-margin: 16px;
}
.look { display: block; background: var(--canvas); aspect-ratio: 1; }
.look img { display: block; width: 100%; height: 100%; object-fit: contain; }
figure:target { grid-column: 1 / -1; }
figure:target .look { aspect-ratio: auto; }
figure:target img { width: auto; max-width: 100%; height: auto; max-height: 92vh; margin: 0 auto; }
.back { display: none; }
figure:target .back {
  display: block; padding: 10px 16px; color: var(--text-2); border-bottom: 1px solid var(--line);
}
:is(a, summary):focus-visible { outline: 2px solid var(--ring); outline-offset: -2px; }
figcaption { padding: 12px 16px 14px; overflow-wrap: anywhere; scroll-margin: 50vh; }
figcaption > p {
  margin: 0 0 6px; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  line-clamp: 3; overflow: hidden;
}
figcaption > small { color: var(--text-2); font-size: 13px; }
summary { color: var(--text-2); font-size: 13px; cursor: pointer; padding: 3px 0; }
summary:hover { color: var(--text); }
dl {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 6px 14px;
  margin: 8px 0 0; padding-top: 12px; border-top: 1px solid var(--line); font-size: 13px;
}
dt { color: var(--text-2); }
dd { margin: 0; white-space: pre-wrap; max-height: 20em; overflow: auto; }
@media (max-width: 620px) {
  .look { aspect-ratio: auto; }
  .look img { height: auto; }
}
@media print {
  figure { break-inside: avoid; }
  details:not([open]) { display: none; }
}
"""


def write(
    draft: Path, pictures: Iterable[tuple[IndexedPicture, Image.Image]], *, recipes: bool = True
) -> None:
    """Writes the page to `draft`, picture by picture; without `recipes` nothing but pictures.

    Raises OSError.
    """
    with open(draft, "xb") as stream:
        stream.write(_HEAD.format(version=VERSION, style=_STYLE).encode())
        place = stream.tell()
        stream.write(b" " * _ROOM + _MIDDLE.encode())
        count, first, last = 0, "9", ""
        for entry, picture in pictures:
            count += 1
            first, last = min(first, entry.name[:10]), max(last, entry.name[:10])
            stream.write(_figure(entry, picture, count, recipes=recipes).encode("utf-8", "replace"))
        stream.write(_END.encode())
        stream.seek(place)
        about = f"{count:,} picture{'s' * (count != 1)}"
        days = first if first == last else f"{first} – {last}"
        stream.write((f"{escape(days)} · {about}" if recipes else about).encode()[:_ROOM])


def _figure(entry: IndexedPicture, picture: Image.Image, number: int, *, recipes: bool) -> str:
    request = entry.request if recipes else None
    alt = f"Picture {number}"
    if request is not None:
        words = " ".join(request.prompt.split())
        alt = words if len(words) <= _ALT else f"{words[: _ALT - 1]}…"
    image, width, height = _embedded(picture)
    parts = [
        f'<figure id="p{number}">',
        f'<a class="back" href="#c{number}">Make it small again</a>',
        f'<a class="look" href="#p{number}"><img alt="{escape(alt)}" width="{width}"',
        f' height="{height}" loading="lazy" decoding="async" src="{image}"></a>',
        f'<figcaption id="c{number}">{_caption(entry, request) if recipes else ""}</figcaption>'
        if recipes
        else f'<span id="c{number}"></span>',
        "</figure>\n",
    ]
    return "".join(parts)


def _embedded(picture: Image.Image) -> tuple[str, int, int]:
    """The picture as an address of its own data, with its width and height."""
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/webp;base64,{data}", picture.width, picture.height


def _caption(entry: IndexedPicture, request: GenerationRequest | None) -> str:
    if request is None:
        return f"<small>{escape(entry.created)}</small>"
    rows = [
        ("Prompt", request.prompt),
        ("Negative", request.negative),
        ("Style", "" if request.style == NO_STYLE else request.style),
        ("Model", request.model),
        ("Sampler", _sampler(request.sampler)),
        ("Steps", str(request.steps)),
        ("Guidance", f"{request.guidance:g}"),
        ("Seed", str(request.seed)),
        ("Size", f"{request.width} × {request.height}"),
        ("Painted", entry.created),
        ("File", entry.name),
    ]
    # Prompts are in any language: each says itself in which direction it runs.
    items = "".join(
        f'<dt>{label}</dt><dd dir="auto">{escape(value)}</dd>' for label, value in rows if value
    )
    return (
        f'<p dir="auto">{escape(request.prompt)}</p>'
        f"<details><summary>Recipe</summary><dl>{items}</dl></details>"
    )


def _sampler(name: str) -> str:
    try:
        return samplers.find(name).label
    except UnknownNameError:
        return name
