"""What is known of a painted picture: one record, from the engine to the index of the gallery.

The engine hands over a `Picture`, the gallery writes it and gives a `PictureFile` for it. The
recipe inside the file, the messages of the painting process, the pictures of a job and the rows of
the index are made of the same record. A fact that is new is one field here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from PIL import Image
from pydantic import TypeAdapter

from pipelines.request import GenerationRequest, from_mapping


@dataclass(frozen=True, kw_only=True)
class PictureRecord:
    """A picture as it was painted. `request` paints exactly it again, alone.

    `weights` is the hash of the weights that painted it, "" where it is unknown; `lora_hashes` are
    the names of the LoRAs in them, each with the SHA-256 of its file. `notes` say what was done
    where memory was short. Only its painter knows the rest: `seconds` is what it took,
    `peak` the memory in bytes at its highest, above what the process held before its first model,
    and `forecast` what the plan had said; 0 where that is unknown.
    """

    request: GenerationRequest
    weights: str = ""
    lora_hashes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    peak: int = 0
    forecast: int = 0

    def facts(self) -> dict[str, Any]:
        """The fields of the record alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(PictureRecord)}

    def figures(self) -> dict[str, float | int]:
        """What only its painter knows, by name."""
        return {name: getattr(self, name) for name in _FIGURES}

    def with_figures(self, told: Mapping[str, Any]) -> Self:
        """The record with what `figures` gave. Raises what damaged JSON raises."""
        given: dict[str, Any] = {n: _figure(told[n], kind) for n, kind in _FIGURES.items()}
        return replace(self, **given)

    def to_json(self) -> dict[str, Any]:
        """All that it holds, as JSON."""
        told: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json")
        return told

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave. Raises RequestError, and for what is no record KeyError, TypeError
        or ValueError."""
        request = from_mapping(values["request"])
        read: Self = _adapter(cls).validate_python({**values, "request": request})
        return read


_FIGURES: dict[str, type[float] | type[int]] = {"seconds": float, "peak": int, "forecast": int}


def _figure(value: Any, kind: type[float] | type[int]) -> float | int:
    number = kind(value)
    if not abs(number) <= sys.float_info.max:
        raise ValueError(value)
    return number


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    # Making one takes longer than reading a hundred records.
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


@dataclass(frozen=True, kw_only=True)
class Picture(PictureRecord):
    """A picture with its pixels, as the engine hands it over."""

    image: Image.Image
