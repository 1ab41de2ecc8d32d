"""Pictures of the gallery for somewhere else: an archive, a contact sheet, a page, a training set.

An export is there whole or not at all, and takes the place of nothing. Pictures that are gone or
damaged meanwhile are left out and told.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from PIL import Image

from app.gallery.exports import formats, page, sheet
from app.gallery.exports.formats import Format
from app.gallery.index import IndexedPicture
from app.gallery.metadata import MAX_FILE_BYTES
from app.gallery.tables import LISTED
from lora_manager import card
from pipelines import files, pictures
from pipelines.errors import RecipeError, RequestError, UnknownNameError, printable
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest
from pipelines.text import styles

T = TypeVar("T")
_RECIPE_HEAD = "name created prompt negative style model sampler".split()
_RECIPE_HEAD += "steps guidance seed width height loras".split()
_RECIPE_HEAD += [name for name in LISTED if name not in _RECIPE_HEAD]
# How a cell begins that a spreadsheet would compute; the last four are the wide forms.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_EPOCH = datetime(1980, 1, 1)
"""The earliest time that a .zip can write."""
_BYTES_EACH = {"sheet": 60_000, "html": 250_000}
"""About what a picture takes there; elsewhere it is as large as its file."""
# Without the names of its data, `datasets` takes a folder with as many .txt for one of texts.
_CARD = """---
configs:
- config_name: default
  data_files:
  - images/*.png
  - metadata.jsonl
---
Pictures of PixArt Studio with their prompts as captions, in metadata.jsonl and beside each picture.
"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: `count` pictures in `bytes` bytes.

    `left_out` has one sentence for each picture that could not be taken along.
    """

    path: Path
    count: int
    left_out: tuple[str, ...]
    bytes: int


def export(
    entries: Sequence[IndexedPicture],
    target: Path,
    format: str,
    *,
    strip: bool = False,
    report: Report = lambda progress: None,
    should_stop: ShouldStop = lambda: False,
) -> Exported | None:
    """Writes `entries` to `target`; None where it was stopped, and then nothing is left behind.

    `strip` leaves out the recipes and everything else that is no picture; a training set has
    captions all the same. The file names of an archive still hold the time and the seed. Raises
    RequestError for values that cannot be, or where no picture can be read, and SaveError.
    """
    row = formats.find(format)
    wanted = list({entry.name: entry for entry in entries}.values())
    suffix = _checked(target, row)
    if not wanted:
        raise RequestError("ids", "There is no picture to export.", "Choose at least one.")
    if format == "sheet" and suffix == ".png" and len(wanted) > sheet.MAX_ON_PNG:
        raise RequestError(
            "out",
            f"{len(wanted):,} pictures do not fit on one page; the limit is {sheet.MAX_ON_PNG}.",
            "Give the sheet a name that ends in .pdf, which has many pages.",
        )
    walk = _Walk(wanted, report, should_stop)
    needed = sum(_BYTES_EACH.get(format, entry.size) for entry in wanted)
    with _new_folders(target):
        try:
            with files.whole(target.absolute(), needed, replaces=False) as draft:
                WRITERS[format](draft, suffix, walk, strip)
                if not walk.count:
                    why = walk.left_out[0]
                    raise RequestError("ids", f"None of the pictures can be exported. {why}")
                # It may have come while this was written.
                _refuse_existing(target)
        except _Stopped:
            return None
    return Exported(
        path=target, count=walk.count, left_out=tuple(walk.left_out), bytes=_size(target)
    )


class _Stopped(Exception):
    """The person asked to stop."""


class _Walk:
    """Goes over the pictures one by one, tells how far it is, and notes what is left out."""

    def __init__(
        self, entries: Sequence[IndexedPicture], report: Report, should_stop: ShouldStop
    ) -> None:
        self._entries = entries
        self._report, self._should_stop = report, should_stop
        self.count = 0
        self.left_out: list[str] = []

    def each(self, read: Callable[[IndexedPicture], T | str]) -> Iterator[tuple[IndexedPicture, T]]:
        """What `read` gives for each picture; where that is a sentence, it is left out."""
        began, total = time.monotonic(), len(self._entries)
        for done, entry in enumerate(self._entries):
            if self._should_stop():
                raise _Stopped
            left = (time.monotonic() - began) / done * (total - done) if done else None
            self._tell(done, total, left)
            got = read(entry)
            if isinstance(got, str):
                self.left_out.append(got)
            else:
                self.count += 1
                yield entry, got
        self._tell(total, total, 0.0)

    def _tell(self, done: int, total: int, left: float | None) -> None:
        picture = min(done + 1, total)
        counts = Progress(stage=Stage.SAVING, done=done, total=total, picture=picture)
        self._report(replace(counts, pictures=total, seconds_left=left))


def _refusal(entry: IndexedPicture) -> str:
    """Why the file of `entry` cannot be taken, "" where it can."""
    try:
        found = entry.path.lstat()
    except FileNotFoundError:
        return f"“{printable(entry.name)}” is not there any more."
    except OSError as error:
        return f"“{printable(entry.name)}” cannot be read ({error.strerror})."
    # What a link leads to is somewhere else, and nobody's picture.
    return "" if stat.S_ISREG(found.st_mode) else f"“{printable(entry.name)}” is no ordinary file."


def _original(entry: IndexedPicture) -> bytes | str:
    """The bytes of a picture, or a sentence that says why it has none."""
    if why := _refusal(entry):
        return why
    too_large = f"“{printable(entry.name)}” is larger than {MAX_FILE_BYTES // 1_000_000} MB."
    # Also for a file that became a link or a pipe since; Windows has neither flag.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(entry.path, flags | getattr(os, "O_BINARY", 0)), "rb") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
                return too_large
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return f"“{printable(entry.name)}” cannot be read ({error.strerror})."
    return data if len(data) <= MAX_FILE_BYTES else too_large


def _picture(entry: IndexedPicture) -> Image.Image | str:
    """The pixels of a picture, or a sentence that says why it has none."""
    if why := _refusal(entry):
        return why
    try:
        return pictures.load(entry.path)
    except RecipeError as error:
        return error.message


def _example(entry: IndexedPicture) -> tuple[Image.Image, GenerationRequest] | str:
    """A picture to learn from: one without a caption teaches nothing."""
    if entry.request is None:
        return f"“{printable(entry.name)}” has no caption. {entry.problem}".strip()
    picture = _picture(entry)
    return picture if isinstance(picture, str) else (picture, entry.request)


def _sheet(draft: Path, suffix: str, walk: _Walk, strip: bool) -> None:
    sheet.write(draft, walk.each(_picture), pdf=suffix == ".pdf", captions=not strip)


def _page(draft: Path, suffix: str, walk: _Walk, strip: bool) -> None:
    page.write(draft, walk.each(_picture), recipes=not strip)


def _archive(draft: Path, suffix: str, walk: _Walk, strip: bool) -> None:
    with _zip(draft) as put:
        if strip:
            for entry, picture in walk.each(_picture):
                put(entry.name, pictures.png(picture), _when(entry))
        else:
            _write_archive(put, walk)


def _dataset(draft: Path, suffix: str, walk: _Walk, strip: bool) -> None:
    with _zip(draft) if suffix == ".zip" else _folder(draft) as put:
        _write_dataset(put, walk)


WRITERS: Mapping[str, Callable[[Path, str, _Walk, bool], None]] = {
    "zip": _archive,
    "sheet": _sheet,
    "html": _page,
    "dataset": _dataset,
}
"""What writes each format of the table: the draft, the suffix of the target, the pictures, and
whether everything that is no picture is left out."""


_Put = Callable[[str, bytes, datetime], None]
"""Writes one file: its name, what is in it, and when it was made."""


@contextmanager
def _folder(draft: Path) -> Iterator[_Put]:
    draft.mkdir()

    def put(name: str, data: bytes, when: datetime) -> None:
        file = draft / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)

    yield put


@contextmanager
def _zip(draft: Path) -> Iterator[_Put]:
    """Pictures are packed already, so that nothing is packed again."""
    with zipfile.ZipFile(draft, "x", zipfile.ZIP_STORED) as archive:

        def put(name: str, data: bytes, when: datetime) -> None:
            member = zipfile.ZipInfo(name, when.timetuple()[:6])
            # The same bytes on every system: an ordinary file of Unix.
            member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(member, data)

        yield put


def _when(entry: IndexedPicture) -> datetime:
    """When it was painted. Names can hold times that no clock shows."""
    try:
        return max(datetime.strptime(entry.created, "%Y-%m-%d %H:%M:%S"), _EPOCH)
    except ValueError:
        return _EPOCH


def _write_archive(put: _Put, walk: _Walk) -> None:
    """The files themselves and recipes.csv, which lists those that are there."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(_RECIPE_HEAD)
    newest = _EPOCH
    for entry, data in walk.each(_original):
        put(entry.name, data, _when(entry))
        values = {} if entry.request is None else entry.request.model_dump()
        loras = card.written(entry.request.loras) if entry.request else ""
        values |= {"name": entry.name, "created": entry.created, "loras": loras}
        table.writerow([_cell(values.get(column, "")) for column in _RECIPE_HEAD])
        newest = max(newest, _when(entry))
    # The mark at the beginning: spreadsheets take the text for Latin-1 without it.
    put("recipes.csv", text.getvalue().encode("utf-8-sig", "replace"), newest)


def _cell(value: object) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _write_dataset(put: _Put, walk: _Walk) -> None:
    """The imagefolder layout: metadata.jsonl, and images/ with a caption beside each picture.

    `training.data.readers` passes over the .txt where the table has a caption, so that none counts
    twice. `seed` is a text: tables of other programs would round it.
    """
    lines = io.BytesIO()
    newest = _EPOCH
    for entry, (picture, request) in walk.each(_example):
        name = f"images/{entry.name.replace('/', '-')}"
        # Those who read a .txt take each line for a caption of its own.
        caption = " ".join(_styled(request).split())
        put(name, pictures.png(picture), _when(entry))
        put(f"{name.removesuffix('.png')}.txt", caption.encode("utf-8", "replace"), _when(entry))
        row = {"file_name": name, "text": caption, "seed": str(request.seed)}
        line = json.dumps(row | {"model": request.model}, ensure_ascii=False)
        lines.write(f"{line}\n".encode("utf-8", "replace"))
        newest = max(newest, _when(entry))
    put("metadata.jsonl", lines.getvalue(), newest)
    put("README.md", _CARD.encode(), newest)


def _styled(request: GenerationRequest) -> str:
    """What the model read; the prompt alone where its style is gone."""
    try:
        return styles.find(request.style).apply(request.prompt, "")[0]
    except UnknownNameError:
        return request.prompt


def _checked(target: Path, row: Format) -> str:
    """The suffix of `target`, which may be written. Raises RequestError."""
    suffix = target.suffix.lower()
    if suffix not in row.suffixes:
        endings = " or ".join(suffix for suffix in row.suffixes if suffix)
        way_out = f"Choose a name that ends in {endings}"
        raise RequestError(
            "out",
            f"“{printable(target.name)}” is no name for an export as “{row.id}”.",
            f"{way_out}, or without an ending for a folder."
            if "" in row.suffixes
            else f"{way_out}.",
        )
    _refuse_existing(target)
    return suffix


def _refuse_existing(target: Path) -> None:
    if not os.path.lexists(target):
        return
    # A link to a folder is not replaced either: it would be another folder then.
    if target.is_dir() and not target.is_symlink():
        with suppress(OSError):
            if not any(target.iterdir()):
                return
        what = f"The folder {printable(target, 200)} is there already and not empty."
    else:
        what = f"{printable(target, 200)} is there already."
    raise RequestError("out", what, "Choose another name; an export replaces nothing.")


@contextmanager
def _new_folders(target: Path) -> Iterator[None]:
    """Takes away the folders that were made for a target which then did not come."""
    new = [folder for folder in target.absolute().parents if not os.path.lexists(folder)]
    try:
        yield
    finally:
        if not os.path.lexists(target):
            with suppress(OSError):
                for folder in new:
                    folder.rmdir()


def _size(path: Path) -> int:
    found = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in found)
