"""A contact sheet: small pictures with their prompts, on one PNG or on the pages of a PDF."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from app.gallery.index import IndexedPicture

MAX_ON_PNG = 120
"""Pictures that one page without end may hold."""
_ASSETS = Path(__file__).resolve().parents[3] / "assets"
_TITLE = "PixArt Studio"
_DPI = 150
_A4 = (1240, 1754)
"""Pixels of a page at 150 dpi."""
_COLUMNS, _ROWS = 5, 6
_PAGES_AT_ONCE = 12
"""A4 pages in memory: 6.5 MB each."""
_JPEG_QUALITY = 90
_LONGEST = 400
"""Characters of a prompt that are looked at; two lines hold far fewer."""
# Never assigned to a character: a font shows its sign for a missing one.
_NO_CHARACTER = "\U0010ffff"
_GROUND, _INK, _SOFT, _RULE = "#ffffff", "#1b1b21", "#5f5f6c", "#e1e1e8"
_REGULAR, _BOLD = 420, 640


@dataclass(frozen=True, kw_only=True)
class _Thumb:
    """A picture, small, and what stands below it."""

    picture: Image.Image
    lines: tuple[str, ...]
    small: str
    day: str


class _Type:
    """A font in one size, which knows the characters that it lacks."""

    def __init__(self, size: float, weight: int = _REGULAR) -> None:
        self.font = _font(size, weight)
        self._missing_glyph = self._drawn(_NO_CHARACTER)
        self._has: dict[str, bool] = {}

    def lines(self, text: str, width: float, count: int) -> tuple[str, ...]:
        """`text` in at most `count` lines of `width` pixels, with "…" where it is cut."""
        left = self._showable(text)
        found: list[str] = []
        while left:
            end = self._fitting(left, width)
            if end == len(left):
                found.append(left)
                break
            if len(found) == count - 1:
                end = self._fitting(left, width - self.font.getlength("…"))
                found.append(left[:end].rstrip(" ,.;:") + "…")
                break
            # Between two words, or where a word is longer than the line, inside it.
            cut = left.rfind(" ", 0, end + 1)
            cut = cut if cut > 0 else max(end, 1)
            found.append(left[:cut].rstrip())
            left = left[cut:].lstrip()
        return tuple(found)

    def _fitting(self, text: str, width: float) -> int:
        """How many of the first characters of `text` fit into `width`."""
        ends = range(len(text) + 1)
        return max(0, bisect_right(ends, width, key=lambda n: self.font.getlength(text[:n])) - 1)

    def _showable(self, text: str) -> str:
        """`text` on one line; words of another script become "…", signs such as emoji nothing."""
        words = unicodedata.normalize("NFC", text[:_LONGEST])
        kept = []
        for character in " ".join(words.split()):
            if character == " " or self._shows(character):
                kept.append(character)
            elif unicodedata.category(character)[0] in "LN":
                kept.append("…")
        joined = re.sub(r"…[… ]*…", "…", " ".join("".join(kept).split()))
        return joined + "…" * (len(text) > _LONGEST and not joined.endswith("…"))

    def _shows(self, character: str) -> bool:
        if character not in self._has:
            is_text = unicodedata.category(character)[0] not in "CZ"
            self._has[character] = is_text and self._drawn(character) != self._missing_glyph
        return self._has[character]

    def _drawn(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(character)
        return mask.size, bytes(mask)


def _font(size: float, weight: int) -> ImageFont.FreeTypeFont:
    """The font of the page, or that of Pillow where its FreeType cannot unpack it."""
    try:
        font = ImageFont.truetype(_ASSETS / "fonts" / "inter.woff2", size)
        font.set_variation_by_axes([weight])
    except OSError:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    return font


class _Form:
    """The measures of a sheet, in pixels: everything grows with `scale`."""

    def __init__(self, scale: float) -> None:
        self.cell = round(196 * scale)
        self.box = round(174 * scale)
        self.gap = round(24 * scale)
        self.margin = round(82 * scale)
        self.top = round(142 * scale)
        self.bottom = round(72 * scale)
        self.line = round(17 * scale)
        self.scale = scale
        self.title = _Type(26 * scale, _BOLD)
        self.text = _Type(13 * scale)
        self.small = _Type(10.5 * scale)

    def pitch(self, box: int) -> int:
        """From the top of one row to that of the next, with pictures of `box` in height."""
        return box + round(82 * self.scale)

    def thumb(self, entry: IndexedPicture, picture: Image.Image, *, captions: bool) -> _Thumb:
        """`picture` fitted into a cell."""
        width, height = picture.size
        share = min(self.cell / width, self.box / height)
        size = max(1, round(width * share)), max(1, round(height * share))
        request = entry.request
        facts = [f"{width}×{height}"]
        if request is not None:
            facts = [f"Seed {request.seed}", *facts, request.model]
        return _Thumb(
            picture=picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0),
            lines=self.text.lines(request.prompt, self.cell, 2) if request and captions else (),
            small="".join(self.small.lines(" · ".join(facts), self.cell, 1)) if captions else "",
            day=entry.name[:10],
        )


def write(
    draft: Path,
    pictures: Iterable[tuple[IndexedPicture, Image.Image]],
    *,
    pdf: bool,
    captions: bool = True,
) -> None:
    """Writes the sheet to `draft`. A few pages and one picture are in memory at a time.

    `pictures` are at most MAX_ON_PNG where it is no PDF. Raises OSError.
    """
    form = _Form(1.0 if pdf else 1.5)
    thumbs = (form.thumb(entry, picture, captions=captions) for entry, picture in pictures)
    if pdf:
        _write_pdf(draft, thumbs, form, dated=captions)
        return
    found = list(thumbs)
    about = _about([thumb.day for thumb in found], dated=captions)
    _endless(found, form, about).save(draft, "PNG", dpi=(_DPI, _DPI))


def _write_pdf(draft: Path, thumbs: Iterable[_Thumb], form: _Form, *, dated: bool) -> None:
    """A few pages are drawn before they are written: with each writing the list of all pages is
    written again. How many pictures there are is known, and stands, at the end."""
    days: list[str] = []
    page: list[_Thumb] = []
    drawn: list[Image.Image] = []
    number = 1
    for thumb in thumbs:
        days.append(thumb.day)
        if len(page) == _COLUMNS * _ROWS:
            drawn.append(_a4(page, form, "", number))
            page, number = [], number + 1
            if len(drawn) == _PAGES_AT_ONCE:
                _append(draft, drawn)
                drawn = []
        page.append(thumb)
    _append(draft, [*drawn, _a4(page, form, _about(days, dated=dated), number)])


def _append(draft: Path, pages: list[Image.Image]) -> None:
    begun = draft.exists()
    pages[0].save(
        draft,
        "PDF",
        save_all=True,
        append_images=pages[1:],
        append=begun,
        resolution=_DPI,
        quality=_JPEG_QUALITY,
        title=None if begun else _TITLE,
    )


def _about(days: list[str], *, dated: bool) -> str:
    count = f"{len(days):,} picture{'s' * (len(days) != 1)}"
    if not days or not dated:
        return count
    first, last = min(days), max(days)
    return f"{first if first == last else f'{first} – {last}'} · {count}"


def _a4(thumbs: list[_Thumb], form: _Form, about: str, number: int) -> Image.Image:
    page = Image.new("RGB", _A4, _GROUND)
    _draw(page, thumbs, form, columns=_COLUMNS, box=form.box)
    _head(page, form, about)
    foot = _A4[1] - form.bottom // 2
    ImageDraw.Draw(page).text(
        (_A4[0] - form.margin, foot), str(number), _SOFT, form.small.font, anchor="rs"
    )
    return page


def _endless(thumbs: list[_Thumb], form: _Form, about: str) -> Image.Image:
    """One page, as high as the pictures need."""
    count = max(len(thumbs), 1)
    columns = max(3, count if count <= 5 else min(10, ceil(sqrt(count * 1.3))))
    box = max((thumb.picture.height for thumb in thumbs), default=1)
    rows = ceil(count / columns)
    width = 2 * form.margin + columns * form.cell + (columns - 1) * form.gap
    page = Image.new("RGB", (width, form.top + rows * form.pitch(box) + form.bottom), _GROUND)
    _draw(page, thumbs, form, columns=columns, box=box)
    _head(page, form, about)
    return page


def _head(page: Image.Image, form: _Form, about: str) -> None:
    draw = ImageDraw.Draw(page)
    right = page.width - form.margin
    base = form.top - round(50 * form.scale)
    draw.text((form.margin, base), _TITLE, _INK, form.title.font, anchor="ls")
    draw.text((right, base), about, _SOFT, form.text.font, anchor="rs")
    rule = base + round(18 * form.scale)
    draw.line((form.margin, rule, right, rule), _RULE, max(1, round(form.scale)))


def _draw(page: Image.Image, thumbs: list[_Thumb], form: _Form, *, columns: int, box: int) -> None:
    """The pictures in rows, their feet on one line so that the captions begin together."""
    draw = ImageDraw.Draw(page)
    for index, thumb in enumerate(thumbs):
        row, column = divmod(index, columns)
        x = form.margin + column * (form.cell + form.gap)
        foot = form.top + row * form.pitch(box) + box
        page.paste(thumb.picture, (x, foot - thumb.picture.height))
        y = foot + round(19 * form.scale)
        for line in thumb.lines:
            draw.text((x, y), line, _INK, form.text.font, anchor="ls")
            y += form.line
        draw.text((x, y), thumb.small, _SOFT, form.small.font, anchor="ls")
