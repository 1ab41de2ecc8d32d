"""Exports of the gallery, each opened again by a reader that is not our own."""

from __future__ import annotations

import base64
import csv
import errno
import io
import json
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat, PdfImagePlugin, PdfParser

from app.gallery import metadata
from app.gallery.exports import export
from app.gallery.exports import sheet as export_sheet
from app.gallery.exports.export import WRITERS, Exported
from app.gallery.exports.formats import FORMATS
from app.gallery.index import GalleryIndex, IndexedPicture
from app.gallery.pictures import Gallery
from pipelines import files, pictures
from pipelines.errors import RequestError, SaveError, UnknownNameError
from pipelines.picture_record import Picture, PictureRecord
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest, from_mapping
from pipelines.request_values import MAX_PROMPT, MAX_SEED
from tests.app.ui.fake_studio import gradient
from training.data import archives, lint, readers

BASE = {
    "model": "nano",
    "sampler": "dpm-solver++",
    "steps": 14,
    "guidance": 4.5,
    "width": 128,
    "height": 128,
    "seed": 1,
}
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "</style></details></figcaption><!-- \" onload='alert(1)' x=`",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    'two\nlines, with "quotes"\nand commas',
    "an elk 🦌🏽 in the forêt",
    "美しい雪山の狐",
    "ثعلب أحمر 	‮reversed‬ שועל",
    "a " * (MAX_PROMPT // 2 - 1) + "b",
    "x" * MAX_PROMPT,
    "{prompt} %s %d {0} \\",
    "e\u0301\u0301\u0301 \u200d\ufe0f\ufeff\u2028",
)
TARGETS = {"zip": "a.zip", "sheet": "a.pdf", "html": "a.html", "dataset": "a"}
FORMS = [*TARGETS.items(), ("sheet", "a.png"), ("dataset", "a.zip")]


def request(prompt: str, **values: Any) -> GenerationRequest:
    return from_mapping({**BASE, "prompt": prompt, **values})


def put(
    root: Path, name: str, prompt: str, size: tuple[int, int] = (24, 16), **values: Any
) -> IndexedPicture:
    """A picture of the gallery with noise of its own, as the index would show it."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    recipe = request(prompt, **values)
    noise = Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1]))
    noise.save(file, pnginfo=metadata.chunks(PictureRecord(request=recipe)))
    record = PictureRecord(request=recipe)
    return IndexedPicture(name=name, path=file, size=file.stat().st_size, record=record)


def test_every_format_has_its_writer_and_is_tried_here() -> None:
    assert set(TARGETS) == set(FORMATS) == set(WRITERS)


@pytest.fixture
def three(tmp_path: Path) -> list[IndexedPicture]:
    root = tmp_path / "outputs"
    return [
        put(root, "2025-02-03/101530-7-abcdef.png", "a red fox", seed=7, style="Anime"),
        put(root, "2025-02-01/101530-7-abcdef.png", "an owl", (16, 40), negative="-blurry"),
        put(root, "2025-02-02/235959-8-abcdef.png", "an elk", (40, 16), seed=MAX_SEED),
    ]


@pytest.fixture
def hostile(tmp_path: Path) -> list[IndexedPicture]:
    return [
        put(tmp_path / "outputs", f"2025-02-03/1015{i:02}-7-abcdef.png", prompt)
        for i, prompt in enumerate(HOSTILE)
    ]


def done(entries: list[IndexedPicture], target: Path, format: str, **values: Any) -> Exported:
    found = export.export(entries, target, format, **values)
    assert found is not None
    assert found.path == target
    return found


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and not ImageChops.difference(first, second).getbbox()


def pixels(entry: IndexedPicture) -> Image.Image:
    return Image.open(entry.path).convert("RGB")


def recipes(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    text = archive.read("recipes.csv").decode("utf-8")
    assert text[0] == "\ufeff"
    return list(csv.DictReader(io.StringIO(text[1:], newline="")))


# the archive


def test_an_archive_holds_the_files_as_they_are(
    three: list[IndexedPicture], tmp_path: Path
) -> None:
    found = done(three, tmp_path / "new" / "deep" / "a.zip", "zip")
    assert (found.count, found.left_out) == (3, ())
    assert found.bytes == found.path.stat().st_size
    with zipfile.ZipFile(found.path) as archive:
        assert archive.testzip() is None
        members = archive.infolist()
        assert [m.filename for m in members] == [*(e.name for e in three), "recipes.csv"]
        assert {m.compress_type for m in members} == {zipfile.ZIP_STORED}
        for entry, member in zip(three, members, strict=False):
            assert archive.read(entry.name) == entry.path.read_bytes()
            times = [int(entry.path.name[i : i + 2]) for i in (0, 2, 4)]
            # The archive counts seconds by twos.
            times[2] -= times[2] % 2
            assert member.date_time == (*map(int, entry.name[:10].split("-")), *times)
        assert recipes(archive)[2] == {
            "name": three[2].name,
            "created": "2025-02-02 23:59:59",
            "prompt": "an elk",
            "negative": "",
            "style": "None",
            "model": "nano",
            "sampler": "dpm-solver++",
            "steps": "14",
            "guidance": "4.5",
            "seed": str(MAX_SEED),
            "width": "128",
            "height": "128",
            "loras": "",
        }
        # A minus is how a formula begins, too.
        assert recipes(archive)[1]["negative"] == "'-blurry"


def test_the_same_pictures_give_the_same_archive(
    three: list[IndexedPicture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow writes the moment into a PDF, and a second may end between the two.
    moment = time.gmtime(1_700_000_000)
    monkeypatch.setattr(PdfImagePlugin, "time", SimpleNamespace(gmtime=lambda: moment))
    for format, suffix in (("zip", ".zip"), ("dataset", ".zip"), ("sheet", ".pdf")):
        first, second = (tmp_path / f"{n}{format}{suffix}" for n in "ab")
        done(three, first, format)
        for entry in three:
            os.utime(entry.path, (1_000_000_000, 1_000_000_000))
        done(three, second, format)
        assert first.read_bytes() == second.read_bytes()


def test_formulas_of_spreadsheets_are_only_text(
    hostile: list[IndexedPicture], tmp_path: Path
) -> None:
    done(hostile, tmp_path / "a.zip", "zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        rows = recipes(archive)
    assert [row["prompt"].removeprefix("'") for row in rows] == [
        entry.request.prompt for entry in hostile if entry.request
    ]
    assert [i for i, row in enumerate(rows) if row["prompt"][0] == "'"] == [2, 3]
    for cell in ("=1", "+1", "-1", "@A", "\t=1", "\r=1", "\uff1d1"):
        assert export._cell(cell) == f"'{cell}"
    assert export._cell("1=1") == "1=1"


def test_a_stripped_archive_holds_only_pixels(three: list[IndexedPicture], tmp_path: Path) -> None:
    done(three, tmp_path / "a.zip", "zip", strip=True)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [entry.name for entry in three]
        for entry in three:
            with Image.open(archive.open(entry.name)) as picture:
                picture.load()
                assert picture.info == {}
                assert same(picture, pixels(entry))
    data = (tmp_path / "a.zip").read_bytes()
    assert not any(word in data for word in (b"red fox", b"nano", b"tEXt", b"iTXt"))


def test_a_name_with_a_time_that_no_clock_shows(tmp_path: Path) -> None:
    names = ["2025-99-99/999999-1-abcdef.png", "1970-01-01/000000-1-abcdef.png"]
    entries = [put(tmp_path / "outputs", name, "a cat") for name in names]
    done(entries, tmp_path / "a.zip", "zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {m.date_time for m in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_pictures_of_the_gallery_and_its_index(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "outputs")
    picture = Picture(image=gradient(3, 32, 24), request=request("a cat"), seconds=1)
    file = gallery.add(picture)
    index = GalleryIndex(tmp_path / "outputs", tmp_path / "gallery.db")
    index.sync()
    # The same picture twice is one picture.
    entries = [*index.search().entries, *index.search().entries]
    assert done(entries, tmp_path / "a.zip", "zip").count == 1
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read(file.name) == file.path.read_bytes()


# the contact sheet


def is_blank(picture: Image.Image) -> bool:
    return ImageStat.Stat(picture.convert("L")).extrema == [(255, 255)]


def test_a_sheet_shows_each_picture_in_its_cell(tmp_path: Path) -> None:
    colours = ("red", "lime", "blue", "cyan", "magenta")
    entries = []
    for i, colour in enumerate(colours):
        entry = put(tmp_path / "outputs", f"2025-02-0{i + 1}/101530-7-abcdef.png", "a cat")
        Image.new("RGB", (300 + 100 * i, 300), colour).save(entry.path)
        entries.append(entry)
    found = done(entries, tmp_path / "a.png", "sheet")
    with Image.open(found.path) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        assert not any(isinstance(value, str) for value in sheet.info.values())
        boxes = []
        for colour in colours:
            plain = Image.new("RGB", sheet.size, colour)
            differs = ImageChops.difference(sheet.convert("RGB"), plain).convert("L")
            box = differs.point(lambda value: 255 * (value == 0)).getbbox()
            assert box is not None
            boxes.append(box)
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert (right - left) / (bottom - top) == pytest.approx((300 + 100 * i) / 300, rel=0.02)
        # In one row, in their order, none over another, and the margins white.
        assert len({box[3] for box in boxes}) == 1
        assert all(a[2] < b[0] for a, b in pairwise(boxes))
        assert is_blank(sheet.crop((0, 0, boxes[0][0] - 1, sheet.height)))
        assert is_blank(sheet.crop((boxes[4][2] + 60, 0, sheet.width, sheet.height)))
        captions = sheet.crop((0, boxes[0][3] + 1, sheet.width, sheet.height))
        assert not is_blank(captions)
    done(entries, tmp_path / "b.png", "sheet", strip=True)
    with Image.open(tmp_path / "b.png") as stripped:
        assert is_blank(stripped.crop((0, boxes[0][3] + 1, stripped.width, stripped.height)))


def pdf_pages(data: bytes) -> list[Image.Image]:
    """The pages of a PDF, each of which is one JPEG."""
    parser = PdfParser.PdfParser(buf=data)
    pages: list[Image.Image] = []
    for reference in parser.pages:
        page = parser.read_indirect(reference)
        width, height = page[b"MediaBox"][2:]
        assert (round(width), round(height)) == (595, 842), "A4 in points"
        image = parser.read_indirect(page[b"Resources"][b"XObject"][b"image"])
        pages.append(Image.open(io.BytesIO(image.buf)))
    parser.close()
    return pages


def test_a_sheet_has_as_many_pages_as_it_needs(three: list[IndexedPicture], tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    colours = ("red", "lime", "blue")
    entries = []
    for i in range(61):
        entry = put(root, f"2025-02-{i % 28 + 1:02}/1015{i:02}-7-abcdef.png", "a cat")
        Image.new("RGB", (64, 64), colours[i // 30]).save(entry.path)
        entries.append(entry)
    found = done(entries, tmp_path / "a.pdf", "sheet")
    pages = pdf_pages(found.path.read_bytes())
    assert [page.size for page in pages] == [(1240, 1754)] * 3
    for page, channel in zip(pages, range(3), strict=True):
        extremes = ImageStat.Stat(page.crop((90, 150, 240, 300))).mean
        assert max(range(3), key=extremes.__getitem__) == channel
    # How many there are is known, and told, on the last page only.
    right = (700, 60, 1160, 100)
    assert [is_blank(page.crop(right)) for page in pages] == [True, True, False]
    done(three, tmp_path / "b.pdf", "sheet")
    assert len(pdf_pages((tmp_path / "b.pdf").read_bytes())) == 1


def test_too_many_pictures_for_one_page(
    three: list[IndexedPicture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_sheet, "MAX_ON_PNG", 2)
    with pytest.raises(RequestError, match=r"3 pictures do not fit on one page.*ends in \.pdf"):
        export.export(three, tmp_path / "a.png", "sheet")
    assert done(three, tmp_path / "a.pdf", "sheet").count == 3


@pytest.mark.parametrize("own", [True, False], ids=["our font", "that of Pillow"])
def test_captions_fit_and_say_where_they_are_cut(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not own:
        monkeypatch.setattr(export_sheet, "_ASSETS", tmp_path)
    font = export_sheet._Type(20)
    for text in (*HOSTILE, "", "short"):
        lines = font.lines(text, 200, 2)
        assert len(lines) <= 2
        assert all(font.font.getlength(line) <= 200 for line in lines)
    assert font.lines("short", 200, 2) == ("short",)
    assert font.lines("a red fox in the deep snow", 200, 9)[0].startswith("a red fox")
    assert (
        " ".join(font.lines("a red fox in the deep snow", 200, 9)) == "a red fox in the deep snow"
    )
    assert font.lines("x" * 500, 200, 2)[1].endswith("x…")
    assert font.lines("an elk 🦌 of 雪 山 美, at dusk", 900, 1) == ("an elk of …, at dusk",)
    assert font.lines("美しい雪山", 900, 1) == ("…",)
    assert font.lines("🦌", 900, 1) == ()


# the page


class Page(HTMLParser):
    """What a browser would make of the page, as far as it matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.tags if found == tag]


ALLOWED = set(
    "html head meta title style body header h1 p main figure a img figcaption details summary dl"
    " dt dd small span".split()
)


def test_a_page_needs_nothing_else(hostile: list[IndexedPicture], tmp_path: Path) -> None:
    found = done(hostile, tmp_path / "a.html", "html")
    text = found.path.read_bytes().decode("utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not any(name.startswith("on") or name == "style" for name in attributes)
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    # The policy comes before everything that it holds for.
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert not re.search(r"url\(|@import|https?://", page.texts["style"][0])
    assert page.all("html")[0]["lang"] == "en"
    assert page.texts["title"] == ["Pictures · PixArt Studio"]
    links = [a["href"] for a in page.all("a")]
    assert links
    assert all(re.fullmatch(r"#[pc]\d+", link or "") for link in links)
    prompts = [entry.request.prompt for entry in hostile if entry.request]
    assert [said.strip() for said in page.texts["p"]] == [
        f"2025-02-03 · {len(HOSTILE)} pictures",
        *(prompt.strip() for prompt in prompts),
    ]
    assert [p for p in prompts if p not in page.texts["dd"]] == []
    alts = [image["alt"] or "" for image in page.all("img")]
    assert alts[0] == HOSTILE[0]
    assert max(map(len, alts)) == 240


def embedded(page: Page) -> Iterator[Image.Image]:
    for image in page.all("img"):
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])
        yield picture


def test_a_page_shows_the_pictures_smaller(tmp_path: Path) -> None:
    entries = []
    for i, size in enumerate(((2048, 512), (64, 48))):
        entry = put(tmp_path / "outputs", f"2025-02-0{i + 1}/101530-7-abcdef.png", "a cat")
        gradient(5, *size).save(entry.path, compress_level=1)
        entries.append(entry)
    found = done(entries, tmp_path / "a.html", "html")
    page = Page(found.path.read_text("utf-8"))
    shown = list(embedded(page))
    assert [picture.size for picture in shown] == [(1024, 256), (64, 48)]
    difference = ImageChops.difference(shown[1].convert("RGB"), pixels(entries[1]))
    assert max(ImageStat.Stat(difference).mean) < 6
    assert page.texts["p"][0].strip() == "2025-02-01 – 2025-02-02 · 2 pictures"


def test_a_stripped_page_has_no_recipes(three: list[IndexedPicture], tmp_path: Path) -> None:
    done(three, tmp_path / "a.html", "html", strip=True)
    page = Page((tmp_path / "a.html").read_text("utf-8"))
    assert [image["alt"] for image in page.all("img")] == ["Picture 1", "Picture 2", "Picture 3"]
    assert all("exif" not in p.info and "xmp" not in p.info for p in embedded(page))
    assert {t for t, _ in page.tags}.isdisjoint(("details", "figcaption", "dd"))
    assert [text.strip() for text in page.texts["p"]] == ["3 pictures"]
    assert page.texts.keys() == {"title", "style", "h1", "p", "a"}
    assert set(page.texts["a"]) == {"Make it small again"}


# the training set


def rows(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_a_training_set_is_read_by_our_own_training(
    three: list[IndexedPicture], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()  # an empty one may be used
    found = done(three, folder, "dataset")
    names = [entry.name.replace("/", "-") for entry in three]
    assert found.bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert rows((folder / "metadata.jsonl").read_text("utf-8"))[0] == {
        "file_name": f"images/{names[0]}",
        "text": "anime key visual of a red fox, clean line art, bright cel shading",
        "seed": "7",
        "model": "nano",
    }
    source = readers.find(folder)
    assert (source.layout, source.problems) == (readers.DataLayout.TABLE, ())
    seen = lint.scan(source, lint.PictureRules(min_side=8, captions_required=True))
    assert seen.problems == ()
    # One caption each, although it stands in the table and beside the picture.
    assert {s.path: s.captions for s in seen.samples} == {
        row["file_name"]: (row["text"],)
        for row in rows((folder / "metadata.jsonl").read_text("utf-8"))
    }
    for entry, name in zip(three, names, strict=True):
        with Image.open(folder / "images" / name) as picture:
            picture.load()
            assert picture.info == {}
            assert same(picture, pixels(entry))


def test_a_training_set_has_captions_for_programs_that_read_no_table(
    hostile: list[IndexedPicture], tmp_path: Path
) -> None:
    done(hostile, tmp_path / "set", "dataset")
    images = tmp_path / "set" / "images"
    source = readers.find(images)
    assert source.layout is readers.DataLayout.FOLDER
    seen = lint.scan(source, lint.PictureRules(min_side=8, captions_required=True))
    assert [p for p in seen.problems if p.rejected] == []
    table = rows((tmp_path / "set" / "metadata.jsonl").read_text("utf-8"))
    assert [s.captions for s in seen.samples] == [(row["text"],) for row in table]
    assert table[4]["text"] == 'two lines, with "quotes" and commas'
    # `datasets` looks there for what the data are.
    card = (tmp_path / "set" / "README.md").read_text("utf-8").split("---\n")
    assert card[0] == ""
    assert "- images/*.png\n  - metadata.jsonl\n" in card[1]


def test_a_training_set_in_one_file(three: list[IndexedPicture], tmp_path: Path) -> None:
    done(three, tmp_path / "set.zip", "dataset")
    problems = archives.unpack(tmp_path / "set.zip", tmp_path / "set")
    # The card is for people and other programs.
    assert [(p.path, p.code) for p in problems] == [("README.md", "left-out")]
    seen = lint.scan(tmp_path / "set", lint.PictureRules(min_side=8, captions_required=True))
    assert seen.problems == ()
    assert len(seen.samples) == 3


def test_a_style_that_is_gone_leaves_the_prompt(tmp_path: Path) -> None:
    entry = put(tmp_path / "outputs", "2025-02-03/101530-7-abcdef.png", "a cat")
    assert entry.request is not None
    gone = entry.request.model_copy(update={"style": "Gone", "sampler": "gone"})
    lost = IndexedPicture(
        name=entry.name, path=entry.path, size=1, record=PictureRecord(request=gone)
    )
    for format, name in FORMS:
        assert done([lost], tmp_path / f"x{format}" / name, format).count == 1
    table = (tmp_path / "xdataset" / "a" / "metadata.jsonl").read_text("utf-8")
    assert rows(table)[0]["text"] == "a cat"


# what may go wrong


@pytest.mark.parametrize(("format", "name"), FORMS)
def test_hostile_prompts_and_no_recipe_at_all(
    hostile: list[IndexedPicture], tmp_path: Path, format: str, name: str
) -> None:
    file = tmp_path / "outputs/2025-02-04/000000-1-abcdef.png"
    file.parent.mkdir()
    Image.new("L", (9, 9)).save(file)
    nothing = IndexedPicture(
        name="2025-02-04/000000-1-abcdef.png",
        path=file,
        size=9,
        record=None,
        problem="It holds no recipe.",
    )
    found = done([nothing, *hostile], tmp_path / name, format)
    if format == "dataset":
        assert found.count == len(hostile)
        assert found.left_out == (f"“{nothing.name}” has no caption. It holds no recipe.",)
        with pytest.raises(RequestError, match=r"None of the pictures .* has no caption"):
            export.export([nothing], tmp_path / "new" / name, format)
        assert not (tmp_path / "new").exists()
    else:
        assert (found.count, found.left_out) == (len(hostile) + 1, ())


@pytest.mark.parametrize(("format", "name"), FORMS)
def test_pictures_that_cannot_be_read_are_left_out_and_told(
    three: list[IndexedPicture], tmp_path: Path, format: str, name: str
) -> None:
    gone, link, folder, *_ = more = [
        put(tmp_path / "outputs", f"2025-03-0{i}/101530-7-abcdef.png", "a cat") for i in range(1, 5)
    ]
    for entry in (gone, link, folder):
        entry.path.unlink()
    link.path.symlink_to(three[0].path)
    folder.path.mkdir()
    if format != "zip":
        more[3].path.write_bytes(three[0].path.read_bytes()[:-40])
    found = done([three[0], *more, *three[1:]], tmp_path / name, format)
    said = [f"“{gone.name}” is not there any more."]
    said += [f"“{entry.name}” is no ordinary file." for entry in (link, folder)]
    assert list(found.left_out[:3]) == said
    if format == "zip":
        assert found.count == 4
        with zipfile.ZipFile(found.path) as archive:
            assert len(recipes(archive)) == 4
    else:
        assert found.count == 3
        assert "is damaged" in found.left_out[3]
    with pytest.raises(RequestError, match=r"None of the pictures .* not there any more"):
        export.export([gone], tmp_path / "new" / name, format)
    assert not (tmp_path / "new").exists()


def test_files_that_are_too_large_are_left_out(
    three: list[IndexedPicture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(three[1].path, "r+b") as stream:
        stream.truncate(pictures.MAX_BYTES + 1)
    assert "larger than 32 MB" in done(three, tmp_path / "a.pdf", "sheet").left_out[0]
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 10_000_000)
    found = done(three, tmp_path / "a.zip", "zip")
    assert found.left_out == (f"“{three[1].name}” is larger than 10 MB.",)


@pytest.mark.parametrize(("format", "name"), FORMS)
@pytest.mark.parametrize("after", [0, 2])
def test_stopping_leaves_nothing(
    three: list[IndexedPicture], tmp_path: Path, format: str, name: str, after: int
) -> None:
    told: list[Progress] = []
    before = sorted(tmp_path.rglob("*"))
    found = export.export(
        three,
        tmp_path / "new" / "deep" / name,
        format,
        report=told.append,
        should_stop=lambda: len(told) >= after,
    )
    assert found is None
    assert len(told) == after
    assert sorted(tmp_path.rglob("*")) == before


def test_progress_counts_the_pictures(three: list[IndexedPicture], tmp_path: Path) -> None:
    told: list[Progress] = []
    done(three, tmp_path / "a.html", "html", report=told.append)
    assert [(p.done, p.total, p.picture, p.pictures) for p in told] == [
        (0, 3, 1, 3),
        (1, 3, 2, 3),
        (2, 3, 3, 3),
        (3, 3, 3, 3),
    ]
    assert {p.stage for p in told} == {Stage.SAVING}
    lefts = [p.seconds_left for p in told]
    assert lefts[0] is None
    assert lefts[3] == 0
    assert all(left is not None and left >= 0 for left in lefts[1:])
    assert told[0].sentence() == "Picture 1 of 3: saving"


@pytest.mark.parametrize(("format", "name"), FORMS)
def test_nothing_is_overwritten(
    three: list[IndexedPicture], tmp_path: Path, format: str, name: str
) -> None:
    target = tmp_path / "new" / name
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(RequestError, match="is there already"):
        export.export(three, target, format)
    assert target.read_bytes() == b"mine"
    target.unlink()
    target.symlink_to("nowhere")
    with pytest.raises(RequestError, match="is there already"):
        export.export(three, target, format)
    target.unlink()
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(RequestError, match="is there already and not empty"):
        export.export(three, target, format)
    assert [f.name for f in target.parent.rglob("*")] == [name, "mine"]


def test_what_came_meanwhile_is_not_overwritten(
    three: list[IndexedPicture], tmp_path: Path
) -> None:
    target = tmp_path / "a.zip"

    def come(progress: Progress) -> None:
        target.write_bytes(b"mine")

    with pytest.raises(RequestError, match="is there already"):
        export.export(three, target, "zip", report=come)
    assert target.read_bytes() == b"mine"
    assert {f.name for f in tmp_path.iterdir()} == {"outputs", "a.zip"}


@pytest.mark.parametrize(
    ("format", "name", "way_out"),
    [
        ("zip", "a.tar", "ends in .zip."),
        ("zip", "a", "ends in .zip."),
        ("sheet", "a.jpg", "ends in .pdf or .png."),
        ("html", "a.htm", "ends in .html."),
        ("dataset", "a.jsonl", "ends in .zip, or without an ending for a folder."),
    ],
)
def test_names_that_cannot_be(
    three: list[IndexedPicture], tmp_path: Path, format: str, name: str, way_out: str
) -> None:
    with pytest.raises(RequestError, match=f"“{re.escape(name)}” is no name") as error:
        export.export(three, tmp_path / "new" / name, format)
    assert error.value.way_out.endswith(way_out)
    assert not (tmp_path / "new").exists()
    if format == "sheet":
        assert done(three, tmp_path / "A.PNG", format).count == 3


def test_formats_and_pictures_that_are_not_there(
    three: list[IndexedPicture], tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean “html”"):
        export.export(three, tmp_path / "a.html", "htm")
    with pytest.raises(RequestError, match="no picture to export"):
        export.export([], tmp_path / "a.html", "html")
    assert list(FORMATS) == ["zip", "sheet", "html", "dataset"]
    assert all(FORMATS[id].id == id for id in FORMATS)
    assert [row.download for row in FORMATS.values()] == [".zip", ".pdf", ".html", ".zip"]
    assert FORMATS["dataset"].suffixes[0] == ""
    with pytest.raises(TypeError):
        FORMATS["more"] = FORMATS["zip"]  # type: ignore[index]


@pytest.mark.parametrize(("format", "name"), FORMS)
def test_a_disk_that_refuses_is_a_sentence(
    three: list[IndexedPicture],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    name: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(SaveError):
        export.export(three, tmp_path / "file" / name, format)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="There is no space for"):
        export.export(three, tmp_path / "new" / name, format)
    assert {f.name for f in tmp_path.iterdir()} == {"outputs", "file"}


@pytest.mark.parametrize(("format", "name"), FORMS)
def test_a_full_disk_in_the_middle(
    three: list[IndexedPicture], tmp_path: Path, format: str, name: str
) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    if not hasattr(resource, "RLIMIT_FSIZE"):
        pytest.skip("this system has no limit of file sizes")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(SaveError, match="There is no space for"):
            export.export(three, tmp_path / "new" / name, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert {f.name for f in tmp_path.iterdir()} == {"outputs"}


@pytest.mark.parametrize("format", ["zip", "dataset"])
def test_of_two_exports_to_one_name_one_is_refused(
    three: list[IndexedPicture], tmp_path: Path, format: str
) -> None:
    target = tmp_path / "both.zip"
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(export.export(three, target, format))
        except (RequestError, SaveError) as error:
            ends.append(error)

    for _ in range(10):
        ends.clear()
        target.unlink(missing_ok=True)
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [isinstance(end, Exported) for end in ends].count(True) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["both.zip", "outputs"]


def test_a_folder_that_got_something_meanwhile_is_not_replaced(
    three: list[IndexedPicture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "set"
    target.mkdir()
    sync = files.sync

    def slowly(path: Path) -> None:
        (target / "mine.txt").write_text("mine")
        sync(path)

    monkeypatch.setattr(files, "sync", slowly)
    with pytest.raises(SaveError):
        export.export(three, target, "dataset")
    assert [path.name for path in target.iterdir()] == ["mine.txt"]


def test_a_name_that_is_too_long_is_a_sentence(three: list[IndexedPicture], tmp_path: Path) -> None:
    with pytest.raises((SaveError, RequestError)):
        export.export(three, tmp_path / ("x" * 260 + ".zip"), "zip")
