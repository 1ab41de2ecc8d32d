"""The list of the pictures that a training reads, and what was wrong with the rest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipelines import files
from pipelines.errors import RequestError, printable

FORMAT = "pixart-studio manifest 1"
MAX_BYTES = 2_000_000_000
MAX_CAPTION = 1_000_000
"""Characters of one caption, and bytes of one caption file."""
MAX_CAPTIONS = 1000
_MAX_PATH = 4096
_WAY_OUT = "Check the pictures again to make a new one."
_STRICT = ConfigDict(extra="forbid", strict=True)

Code = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
Caption = Annotated[str, Field(max_length=MAX_CAPTION)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A picture that can be trained on.

    `id` is made from the bytes of the file. `path` is relative to the manifest's root, with
    slashes. `width` and `height` are pixels of the upright picture. `notes` are codes of what was
    handled: "rotated", "cmyk", "alpha", "16-bit", "control-characters".
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    path: Annotated[str, Field(min_length=1, max_length=_MAX_PATH)]
    width: Annotated[int, Field(ge=1, le=1_000_000)]
    height: Annotated[int, Field(ge=1, le=1_000_000)]
    captions: Annotated[tuple[Caption, ...], Field(max_length=MAX_CAPTIONS)] = ()
    label: Caption | None = None
    notes: tuple[Code, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with a file. `rejected` says that the picture is not trained on.

    `path` is for people: it may be the name of something that was refused for its name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: Annotated[str, Field(max_length=2 * _MAX_PATH)]
    code: Code
    sentence: Annotated[str, Field(max_length=2 * _MAX_PATH)]
    rejected: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """The first line: it tells a manifest from other files, and a whole one from a torn one."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: str
    root: Annotated[str, Field(min_length=1, max_length=_MAX_PATH)]
    samples: Annotated[int, Field(ge=0)]
    problems: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The pictures below `root` (absolute) that passed, and the problems of all that were seen."""

    root: Path
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every picture was looked at; False after a stop."""
        return all(problem.code != "stopped" for problem in self.problems)

    @property
    def digest(self) -> str:
        """64 hex digits decided by the pictures, captions and labels, not by names or order."""
        lines = sorted(json.dumps([s.id, s.captions, s.label]) for s in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def file(self, sample: Sample) -> Path:
        """Where `sample` lies. Raises RequestError where it is gone or has become a way outside."""
        if refusal(self.root, sample.path):
            raise RequestError(
                "data",
                f"The picture “{printable(sample.path)}” is not in {self.root} any more.",
                "Put it back, or check the pictures again.",
            )
        return self.root / sample.path

    def write(self, file: Path) -> None:
        """Writes JSON lines: a header, the samples, the problems. Raises SaveError."""
        header = _Header(
            format=FORMAT,
            root=str(self.root),
            samples=len(self.samples),
            problems=len(self.problems),
        )
        rows: Iterable[_Header | Sample | Problem] = (header, *self.samples, *self.problems)
        files.write(file, "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode())


def read(file: Path) -> Manifest:
    """The manifest in `file`, which may come from anywhere. Raises RequestError for any fault."""
    shown = printable(file.name)
    lines = _lines(file, shown)
    try:
        header = _HEADER.validate_json(next(lines, b""))
        if header.format != FORMAT or not Path(header.root).is_absolute():
            raise ValueError("it is of another kind")
        samples = tuple(map(_SAMPLE.validate_json, islice(lines, header.samples)))
        problems = tuple(map(_PROBLEM.validate_json, islice(lines, header.problems)))
        if (len(samples), len(problems)) != (header.samples, header.problems):
            raise ValueError("its end is missing")
        if any(lines):
            raise ValueError("it has more lines than it says")
        _check(samples)
    except ValidationError as error:
        why = printable(error.errors(include_url=False, include_input=False)[0]["msg"], 100)
        raise _damaged(shown, why) from None
    except ValueError as error:
        raise _damaged(shown, str(error)) from None
    return Manifest(root=Path(header.root), samples=samples, problems=problems)


def _damaged(shown: str, why: str) -> RequestError:
    return RequestError(
        "data", f"“{shown}” is no list of pictures of this studio ({why}).", _WAY_OUT
    )


def _lines(file: Path, shown: str) -> Iterator[bytes]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise RequestError("data", f"“{shown}” is too large for a list of pictures.", _WAY_OUT)
        return iter(file.read_bytes().splitlines())
    except OSError as error:
        raise RequestError(
            "data", f"The list of pictures {file} cannot be read ({error.strerror}).", _WAY_OUT
        ) from None


def _check(samples: tuple[Sample, ...]) -> None:
    if not all(is_inside(sample.path) for sample in samples):
        raise ValueError("it names a file outside the folder")
    for key in ("id", "path"):
        if len({getattr(sample, key) for sample in samples}) < len(samples):
            raise ValueError("it names a picture twice")


def is_inside(path: str) -> bool:
    """Whether `path` is relative, whole and never goes up, as Linux and as Windows read it."""
    parts = re.split(r"[/\\]", path)
    return (
        "\0" not in path
        and not re.match(r"[A-Za-z]:", path)
        and all(part not in ("", ".", "..") for part in parts)
    )


def refusal(root: Path, path: str) -> str | None:
    """Why `path` is no file below `root`, which is resolved: "outside", "missing" or None."""
    if not is_inside(path):
        return "outside"
    try:
        real = (root / path).resolve()
        if not real.is_relative_to(root):
            return "outside"
        return None if real.is_file() else "missing"
    # A ring of links is a RuntimeError, a name that cannot exist an OSError or ValueError.
    except (OSError, RuntimeError, ValueError):
        return "missing"


_HEADER = TypeAdapter(_Header)
_SAMPLE = TypeAdapter(Sample)
_PROBLEM = TypeAdapter(Problem)
