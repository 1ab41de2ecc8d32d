"""What reaches a terminal or a log: control characters of whoever wrote them are shown, not obeyed.

Standard library only, for the launcher.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# C0 but for the line break and the tab, DEL, C1, and what turns or breaks lines of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """`text` with every control character but line breaks and tabs written out, as \\x1b."""
    return _CONTROL.sub(lambda found: _written(ord(found[0])), text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Escaping:
    """A stream that escapes what is written to it; in all else it is the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self.bare = stream

    def write(self, text: str) -> int:
        """Writes `text`, escaped."""
        self.bare.write(escape(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Writes each of `lines`, escaped."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def escaping(stream: TextIO) -> TextIO:
    """`stream` as one that escapes; one that does already stays."""
    return stream if isinstance(stream, Escaping) else cast("TextIO", Escaping(stream))


def bare(stream: TextIO) -> TextIO:
    """The stream itself, for those who move the cursor and escape what they show."""
    return stream.bare if isinstance(stream, Escaping) else stream


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escapes what is printed and logged to standard output and error."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (escaping(stream) for stream in kept)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept
