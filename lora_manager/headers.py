"""The header of a safetensors file, read and checked without a tensor library.

A file of this format is: 8 bytes that count the header (little endian), a JSON object that gives
dtype, shape and place of each tensor, and the data without gaps. Files come from anywhere, so
everything that the header says is compared with the file before a byte of data is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from lora_manager.errors import LoraError, printable

# Trainers note the tags of every picture in it, which may be some megabytes. The format itself
# allows 100 MB, whose JSON would take gigabytes of memory.
MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000
_MAX_DIMENSIONS = 8
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """One tensor of a file: its bytes are `file[start:start + size]`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself. `metadata` is text from anywhere."""

    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]


def read(file: Path) -> Header:
    """The checked header of `file`. Raises LoraError that says what is wrong."""
    # A pipe would be waited for.
    if not is_file(file):
        raise LoraError(f"{printable(file, 200)} is not a file.")
    try:
        with open(file, "rb") as stream:
            return of_stream(stream, file.name)
    except OSError as error:
        raise unreadable(file, error) from None


def is_file(path: Path) -> bool:
    """True for a file or a link to one; False also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def unreadable(path: Path, error: OSError) -> LoraError:
    """The sentence for a file or folder that the system does not let us read."""
    reason = printable(error.strerror or error, 120)
    return LoraError(f"{printable(path, 200)} cannot be read ({reason}).")


def of_stream(stream: BinaryIO, name: str) -> Header:
    """The checked header of an open file that people know as `name`. Raises LoraError, OSError."""
    total = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    first = stream.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 2 <= length <= total - 8:
        raise _not_one(name, "its header does not fit into the file")
    if length > MAX_HEADER_BYTES:
        raise _not_one(name, f"its header of {length:,} bytes is too long")
    text = stream.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise _not_one(name, "its header is not JSON")
    values = _parsed(text, name)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _not_one(name, "its metadata is not text")
    if len(values) > MAX_TENSORS:
        raise _not_one(name, f"it lists {len(values):,} tensors")
    tensors = {key: _entry(key, value, 8 + length, name) for key, value in values.items()}
    _check_places(tensors, 8 + length, total, name)
    return Header(tensors=tensors, metadata=metadata)


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _not_one(name, "its header gives a name twice")
        return found

    def never(word: str) -> None:
        raise _not_one(name, f"its header holds {word}")

    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError):
        raise _not_one(name, "its header is not JSON") from None
    if not isinstance(values, dict):
        raise _not_one(name, "its header is not a table")
    return values


def _entry(key: str, value: Any, data: int, name: str) -> TensorHeader:
    shown = f"its tensor “{printable(key, 80)}”"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _not_one(name, f"{shown} is not described")
    dtype, shape, places = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _not_one(name, f"{shown} has the type {printable(dtype, 20)}, which is not read")
    if not _whole(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _not_one(name, f"{shown} has the shape {printable(shape, 40)}")
    if not _whole(places) or len(places) != 2:
        raise _not_one(name, f"{shown} lies at {printable(places, 40)}")
    start, end = places
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
        raise _not_one(name, f"{shown} has a shape that does not fit its bytes")
    return TensorHeader(dtype=dtype, shape=tuple(shape), start=data + start, size=end - start)


def _whole(numbers: Any) -> bool:
    """True for a list of integers from 0 to 2^63 (JSON's true and 1.0 are none)."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _check_places(tensors: Mapping[str, TensorHeader], data: int, total: int, name: str) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    end = data
    for entry in sorted(tensors.values(), key=lambda e: (e.start, e.size)):
        if entry.start != end:
            kind = "overlap" if entry.start < end else "leave a gap"
            raise _not_one(name, f"its tensors {kind}")
        end += entry.size
    if end > total:
        raise _not_one(name, f"it is cut off: {end - total:,} bytes are missing")
    if end < total:
        raise _not_one(name, f"{total - end:,} bytes behind its tensors belong to none")


def _not_one(name: str, fault: str) -> LoraError:
    return LoraError(
        f"“{printable(name)}” is not a sound safetensors file: {fault}.", "Download it again."
    )
