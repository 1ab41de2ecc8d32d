"""Looks at every picture once before a training and says what is wrong, in words and numbers."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from pipelines.errors import printable
from pipelines.pictures import MAX_BYTES, Decoded, PictureError, decode
from training.data.likeness import Likenesses, fingerprint
from training.data.manifest import Manifest, Problem, Sample, refusal
from training.data.readers import DataSource, PictureEntry, find, read
from training.data.tables import CaptionError, Written

WORKERS = min(4, os.cpu_count() or 1)
_WAITING = 4 * WORKERS

Action = Literal["handled", "warning", "rejected"]

MEANINGS = {
    "16-bit": "16 bits per channel, made 8",
    "alpha": "transparent, laid on white",
    "animated": "moving: only its first frame is used",
    "bomb": "would grow without measure when unpacked",
    "broken": "a caption that cannot be read",
    "caption-too-large": "more text than a caption can be",
    "cmyk": "colours for print, made RGB",
    "control-characters": "characters that are no text, left out of its caption",
    "duplicate": "the same picture as another one",
    "empty": "an empty file",
    "encoding": "a caption that is not written in UTF-8",
    "encrypted": "encrypted in the archive",
    "extreme-ratio": "too long for its width",
    "left-out": "neither picture nor caption, left in the archive",
    "long-caption": "a caption of which the model reads only the beginning",
    "missing": "named in a list and not there",
    "name": "a name that is not safe on every system",
    "near-duplicate": "looks nearly like another one",
    "nested": "an archive inside the archive",
    "no-caption": "without a caption",
    "outside": "lies outside the folder",
    "rotated": "turned upright",
    "same-name": "two names in the archive that differ only in their case",
    "special": "a link or a device in the archive",
    "stopped": "the check was stopped before its end",
    "too-large": "a file that is too large",
    "too-many-pixels": "more pixels than can be read",
    "too-small": "smaller than the training needs",
    "truncated": "cut off: its end is missing",
    "unreadable": "damaged, or not to be read",
    "unsupported": "a kind that is not read; only PNG, JPEG and WebP are",
}
"""What each code means, as a part of a sentence about one picture."""


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """What a picture must be to be trained on.

    `min_side` is in pixels; `max_ratio` is the longer by the shorter side. `count_tokens` and
    `token_limit` belong together: the tokens of a caption with its end token, and how many of them
    the model reads.
    """

    min_side: int = 64
    max_ratio: float = 4.0
    captions_required: bool = False
    token_limit: int | None = None
    count_tokens: Callable[[str], int] | None = None
    near_duplicates: bool = True


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: how many pictures share a code, and one of them (printable)."""

    code: str
    meaning: str
    count: int
    example: str
    action: Action


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """All that is kept of a decoded picture."""

    id: str
    width: int
    height: int
    pixels: bytes
    fingerprint: int | None
    notes: tuple[str, ...]
    written: Written
    caption_fault: CaptionError | None


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is remembered of the pictures before, to know another copy again."""

    files: dict[str, str] = field(default_factory=dict)
    pixels: dict[bytes, str] = field(default_factory=dict)
    likenesses: Likenesses = field(default_factory=Likenesses)


def scan(
    source: DataSource | Path,
    rules: PictureRules,
    report: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Decodes each picture of `source` once; the good ones, and the problems of all.

    `report(done, total)` counts pictures. After `should_stop()` the manifest holds what was seen
    and a problem "stopped". No file is ever changed. Raises RequestError where there is nothing.
    """
    found = find(source) if isinstance(source, Path) else source
    problems = list(found.problems)
    samples: list[Sample] = []
    seen = _Seen()
    total = len(found.entries)
    report(0, total)
    # Here and not in the threads: silencing warnings changes the whole process.
    with (
        warnings.catch_warnings(action="ignore"),
        closing(_look_at_all(found, rules)) as everything,
    ):
        for done, (entry, looked) in enumerate(everything, 1):
            if isinstance(looked, Problem):
                problems.append(looked)
            else:
                faults = list(_faults(entry.path, looked, rules))
                if not any(fault.rejected for fault in faults):
                    faults += _copies(entry.path, looked, seen, len(samples), samples)
                problems += faults
                if not any(fault.rejected for fault in faults):
                    samples.append(_sample(entry.path, looked))
            report(done, total)
            if done < total and should_stop():
                sentence = f"The check was stopped after {done} of {total} pictures."
                problems.append(Problem(path="", code="stopped", sentence=sentence, rejected=False))
                break
    problems.sort(key=lambda problem: (problem.path, problem.code, problem.sentence))
    return Manifest(root=found.root, samples=tuple(samples), problems=tuple(problems))


def _look_at_all(
    found: DataSource, rules: PictureRules
) -> Generator[tuple[PictureEntry, _Looked | Problem], None, None]:
    """Each entry with what it holds, in their order. Few pictures are in memory at a time."""
    entries = iter(found.entries)
    waiting: deque[tuple[PictureEntry, Future[_Looked | Problem]]] = deque()
    pool = ThreadPoolExecutor(WORKERS, "lint")
    try:
        while True:
            for entry in islice(entries, _WAITING - len(waiting)):
                waiting.append((entry, pool.submit(_look, found.root, entry, rules)))
            if not waiting:
                return
            entry, future = waiting.popleft()
            yield entry, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _look(root: Path, entry: PictureEntry, rules: PictureRules) -> _Looked | Problem:
    """What is in one file. Its pixels are let go at the end."""
    shown = printable(entry.path)
    try:
        data = _bytes(root, entry.path)
        decoded = decode(data, entry.path)
    except PictureError as error:
        return Problem(path=entry.path, code=error.code, sentence=str(error), rejected=True)
    except OSError as error:
        sentence = f"“{shown}” cannot be read ({error.strerror})."
        return Problem(path=entry.path, code="unreadable", sentence=sentence, rejected=True)
    try:
        written, fault = read(root, entry), None
    except CaptionError as error:
        written, fault = entry.written, error
    return _looked(data, decoded, written, fault, likeness=rules.near_duplicates)


def _bytes(root: Path, path: str) -> bytes:
    """The file, if it still is one inside `root` and not too large."""
    if refusal(root, path):
        raise PictureError("missing", f"“{printable(path)}” is not there any more.")
    with open(root / path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_BYTES:
            limit = MAX_BYTES // 1_000_000
            raise PictureError("too-large", f"“{printable(path)}” is larger than {limit} MB.")
        # Never more than was measured: the file may grow.
        return stream.read(size)


def _looked(
    data: bytes, decoded: Decoded, written: Written, fault: CaptionError | None, *, likeness: bool
) -> _Looked:
    picture = decoded.picture
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes())
    return _Looked(
        id=hashlib.sha256(data).hexdigest()[:16],
        width=picture.width,
        height=picture.height,
        pixels=pixels.digest()[:16],
        fingerprint=fingerprint(picture) if likeness else None,
        notes=decoded.notes,
        written=written,
        caption_fault=fault,
    )


def _faults(path: str, looked: _Looked, rules: PictureRules) -> Iterator[Problem]:
    """What is wrong with a picture and its captions, taken alone."""
    shown = printable(path)

    def problem(code: str, what: str, *, rejected: bool = False) -> Problem:
        return Problem(path=path, code=code, sentence=f"“{shown}” {what}.", rejected=rejected)

    width, height = looked.width, looked.height
    if min(width, height) < rules.min_side:
        need = f"each side needs {rules.min_side} pixels"
        yield problem("too-small", f"is only {width}x{height}; {need}", rejected=True)
    ratio = max(width, height) / min(width, height)
    if ratio > rules.max_ratio:
        what = f"is {ratio:.1f} times as long as wide; the limit is {rules.max_ratio:g}"
        yield problem("extreme-ratio", what, rejected=True)
    if "animated" in looked.notes:
        yield problem("animated", "is moving; only its first frame is used")
    if looked.caption_fault is not None:
        fault = looked.caption_fault
        yield problem(fault.code, f"has a caption that is not used. {str(fault).rstrip('.')}")
    captions = looked.written.captions
    if not captions and rules.captions_required:
        yield problem("no-caption", "has no caption, which this training needs", rejected=True)
    elif not captions and looked.written.label is None:
        yield problem("no-caption", "has no caption")
    if rules.count_tokens is not None and rules.token_limit is not None:
        longest = max(map(rules.count_tokens, captions), default=0)
        if longest > rules.token_limit:
            read_of = f"of which the model reads {rules.token_limit}"
            yield problem("long-caption", f"has a caption of {longest} tokens, {read_of}")


def _copies(
    path: str, looked: _Looked, seen: _Seen, number: int, samples: list[Sample]
) -> Iterator[Problem]:
    """Whether the picture, which becomes sample `number`, is there already or nearly so."""
    shown = printable(path)
    earlier = seen.files.get(looked.id) or seen.pixels.get(looked.pixels)
    if earlier is not None:
        sentence = f"“{shown}” is the same picture as “{printable(earlier)}”."
        yield Problem(path=path, code="duplicate", sentence=sentence, rejected=True)
        return
    seen.files[looked.id] = seen.pixels[looked.pixels] = path
    if looked.fingerprint is not None:
        like = seen.likenesses.find(looked.fingerprint)
        seen.likenesses.add(looked.fingerprint, number)
        if like is not None:
            sentence = f"“{shown}” looks nearly like “{printable(samples[like].path)}”."
            yield Problem(path=path, code="near-duplicate", sentence=sentence, rejected=False)


def _sample(path: str, looked: _Looked) -> Sample:
    return Sample(
        id=looked.id,
        path=path,
        width=looked.width,
        height=looked.height,
        captions=looked.written.captions,
        label=looked.written.label,
        notes=tuple(n for n in (*looked.notes, *looked.written.notes) if n != "animated"),
    )


def table(manifest: Manifest) -> list[Line]:
    """What was found, gravest first: one line for each code and what was done about it."""
    found: list[tuple[Action, str, str]] = [
        ("rejected" if problem.rejected else "warning", problem.code, problem.path)
        for problem in manifest.problems
    ]
    found += [("handled", note, s.path) for s in manifest.samples for note in s.notes]
    counts = Counter((action, code) for action, code, _ in found)
    examples = {(action, code): path for action, code, path in reversed(found)}
    order: dict[Action, int] = {"rejected": 0, "warning": 1, "handled": 2}
    return [
        Line(
            code=code,
            meaning=MEANINGS.get(code, code),
            count=counts[action, code],
            example=printable(examples[action, code]),
            action=action,
        )
        for action, code in sorted(counts, key=lambda k: (order[k[0]], -counts[k], k[1]))
    ]


def as_text(lines: list[Line]) -> str:
    """The table for a terminal, without the last line break; "" where there is nothing to tell."""
    if not lines:
        return ""
    rows: list[tuple[str, ...]] = [("what was done", "pictures", "code", "meaning", "for example")]
    rows += [(x.action, f"{x.count:,}", x.code, x.meaning, x.example) for x in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        "  ".join(
            cell.rjust(width) if number == 1 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(aligned)
