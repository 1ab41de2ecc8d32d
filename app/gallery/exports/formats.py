"""The forms in which pictures can be taken along: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of export. `suffixes` may a target have, the default first; "" is a folder."""

    id: str
    label: str
    summary: str
    suffixes: tuple[str, ...]

    @property
    def download(self) -> str:
        """The suffix of the default that is one file."""
        return next(suffix for suffix in self.suffixes if suffix)


_ROWS = (
    Format(
        id="zip",
        label="Archive",
        summary="The pictures as they are, in folders of days, with a table of recipes.",
        suffixes=(".zip",),
    ),
    Format(
        id="sheet",
        label="Contact sheet",
        summary="Small pictures with their prompts on pages, to print or to send.",
        suffixes=(".pdf", ".png"),
    ),
    Format(
        id="html",
        label="Web page",
        summary="One file that shows the pictures and their recipes in any browser.",
        suffixes=(".html",),
    ),
    Format(
        id="dataset",
        label="Training set",
        summary="Pictures without metadata, with their prompts as captions.",
        suffixes=("", ".zip"),
    ),
)
FORMATS: Mapping[str, Format] = MappingProxyType({row.id: row for row in _ROWS})


def find(format: str) -> Format:
    """The row of a format. Raises UnknownNameError."""
    if format not in FORMATS:
        raise UnknownNameError("format", "format", format, FORMATS)
    return FORMATS[format]
