"""Captions as they are written: .txt, .json, .jsonl and .csv. Every byte is hostile."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.errors import RequestError, printable
from training.data.manifest import MAX_CAPTION, MAX_CAPTIONS, Problem

MAX_JSON = 512_000_000
"""Bytes of a .json file that lists pictures; it has to be read as a whole."""
CLEANED = "control-characters"
_CAPTION_KEYS = ("caption", "prompt", "text")
_FURTHER_KEYS = ("captions", "sharegpt4v")
_NAME_KEYS = ("file_name", "path", "image", "file", "image_path", "filename")
_LIST_KEYS = ("samples", "images", "data", "entries")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST_LINE = 2 * MAX_CAPTION


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is written about a picture. `notes` may hold "control-characters"."""

    captions: tuple[str, ...] = ()
    label: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One line of a table: the picture `name`, as the table calls it, and what it says of it."""

    line: int
    name: str
    written: Written


class CaptionError(Exception):
    """A caption that cannot be used: `code` for programs, the sentence for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def merge(first: Written, second: Written) -> Written:
    """What both say, each caption once. Of two labels the first counts."""
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))[:MAX_CAPTIONS]
    label = second.label if first.label is None else first.label
    notes = tuple(dict.fromkeys((*first.notes, *second.notes)))
    return Written(captions=captions, label=label, notes=notes)


def from_file(file: Path) -> Written:
    """The captions of one picture: each line of a text, or a .json. Raises CaptionError."""
    try:
        size = file.stat().st_size
        if size > MAX_CAPTION:
            raise CaptionError(
                "caption-too-large", f"The caption has {size / 1e6:.1f} MB; the limit is 1 MB."
            )
        data = file.read_bytes()
    except OSError as error:
        raise CaptionError("unreadable", f"It cannot be read ({error.strerror}).") from None
    text = decode(data)
    if file.suffix.lower() != ".json":
        return _written(re.split(r"\r\n|\r|\n", text), None)
    try:
        return from_value(json.loads(text))
    # Deep nesting is a RecursionError, everything else a ValueError.
    except (ValueError, RecursionError) as error:
        raise CaptionError("broken", f"It is no JSON ({printable(error, 80)}).") from None


def decode(data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark. Raises CaptionError."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(
            "encoding", f"It is not written in UTF-8 (byte {error.start + 1} shows it)."
        ) from None


def from_value(value: object) -> Written:
    """The captions in a JSON value: a text, or an object that holds some. Raises CaptionError."""
    if isinstance(value, str):
        return _written([value], None)
    if not isinstance(value, dict):
        raise CaptionError("broken", "It holds neither a text nor an object with one.")
    texts: list[str] = []
    first = next((key for key in _CAPTION_KEYS if value.get(key)), None)
    for key in (first, *_FURTHER_KEYS):
        found = value.get(key) or []
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise CaptionError("broken", f"Its “{key}” is not a text.")
        texts += found
    label = value.get("label")
    if not isinstance(label, str | int | None):
        raise CaptionError("broken", "Its “label” is neither a text nor a number.")
    return _written(texts, label)


def _written(texts: list[str], label: str | int | None) -> Written:
    if any(len(text) > MAX_CAPTION for text in texts):
        raise CaptionError("caption-too-large", "A caption has more than 1,000,000 characters.")
    joined = [*texts, *([] if label is None else [str(label)])]
    removed = any(_CONTROL.search(text) for text in joined)
    clean = [_CONTROL.sub("", text).lstrip("\ufeff").strip() for text in joined]
    named = (clean.pop() or None) if label is not None else None
    captions = tuple(dict.fromkeys(filter(None, clean)))
    if len(captions) > MAX_CAPTIONS:
        raise CaptionError("caption-too-large", f"There are more than {MAX_CAPTIONS} captions.")
    return Written(captions=captions, label=named, notes=(CLEANED,) if removed else ())


def rows(file: Path, shown: str) -> Iterator[TableLine | Problem]:
    """The lines of a .jsonl, .csv or .json table; a broken one is a Problem that says which.

    `shown` is how the table is called in problems. Raises RequestError where nothing can be read.
    """
    readers = {".csv": _csv_values, ".json": _json_values}
    values = readers.get(file.suffix.lower(), _jsonl_values)(file)
    try:
        for line, value in values:
            try:
                if isinstance(value, CaptionError):
                    raise value
                yield _row(line, value)
            except CaptionError as error:
                sentence = f"Line {line} of “{printable(shown)}” is not used. {error}"
                yield Problem(path=shown, code=error.code, sentence=sentence, rejected=False)
    except OSError as error:
        raise RequestError(
            "data", f"“{printable(shown)}” cannot be read ({error.strerror}).", "Look at the file."
        ) from None


def _row(line: int, value: object) -> TableLine:
    if not isinstance(value, dict):
        raise CaptionError("broken", "It is no object with names and values.")
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    if not name:
        raise CaptionError("broken", "It names no picture.")
    return TableLine(line=line, name=name, written=from_value(value))


_Values = Iterator[tuple[int, Any]]


def _open(file: Path) -> IO[str]:
    """A text stream in which bytes that are no text show as lone surrogates."""
    with open(file, "rb") as stream:
        start = stream.read(2)
    wide = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    # UTF-16 knows no such way out: there U+FFFD stands for what is no text.
    encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
    return open(file, encoding=encoding, errors=errors, newline="")


def _is_text(line: str) -> bool:
    return not re.search("[\udc80-\udcff]", line)


def _jsonl_values(file: Path) -> _Values:
    with _open(file) as stream:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE and not line.endswith("\n"):
                while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith("\n"):
                    pass
                yield number, CaptionError("caption-too-large", "It is longer than 2 MB.")
            elif not _is_text(line):
                yield number, CaptionError("encoding", "It is not written in UTF-8.")
            elif line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, CaptionError("broken", f"It is no JSON ({printable(error, 80)}).")


def _csv_values(file: Path) -> _Values:
    with _open(file) as stream:
        table = csv.reader(iter(lambda: stream.readline(_LONGEST_LINE), ""))
        head: list[str] | None = None
        while True:
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                # Most often a quote that is never closed; the reader goes on with the next line.
                yield table.line_num, CaptionError("broken", f"{printable(error, 80)}.")
                continue
            if head is None:
                head = [cell.strip().casefold() for cell in cells]
            elif not all(map(_is_text, cells)):
                yield table.line_num, CaptionError("encoding", "It is not written in UTF-8.")
            elif len(cells) != len(head) and cells:
                why = f"It has {len(cells)} cells, the first line {len(head)}."
                yield table.line_num, CaptionError("broken", why)
            elif cells:
                yield table.line_num, dict(zip(head, cells, strict=True))


def _json_values(file: Path) -> _Values:
    if file.stat().st_size > MAX_JSON:
        raise RequestError(
            "data",
            f"“{printable(file.name)}” is larger than {MAX_JSON // 1_000_000} MB.",
            "Write it as .jsonl, one line for each picture.",
        )
    try:
        value = json.loads(decode(file.read_bytes()))
        if isinstance(value, dict):
            lists = [value[key] for key in _LIST_KEYS if isinstance(value.get(key), list)]
            value = lists[0] if lists else [_named(*item) for item in value.items()]
        if not isinstance(value, list):
            raise ValueError("it holds no list")
    except (CaptionError, ValueError, RecursionError) as error:
        raise RequestError(
            "data",
            f"“{printable(file.name)}” is no list of pictures ({printable(error, 80)}).",
            "It must be a JSON list with one object for each picture.",
        ) from None
    yield from enumerate(value, 1)


def _named(name: str, value: object) -> object:
    """One item of {"a.png": "a cat", "b.png": {"caption": ...}} as a row."""
    if isinstance(value, str):
        return {"file_name": name, "caption": value}
    return {**value, "file_name": name} if isinstance(value, dict) else value
