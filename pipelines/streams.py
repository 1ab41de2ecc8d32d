"""Standard output and error: what reaches a terminal or a log, and whether it arrives at all.

Control characters of whoever wrote them are shown, not obeyed. Standard library only, for the
launcher.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, TextIO, cast

UNPRINTED = -1
"""What a command ends with that printed in vain; `settled` makes an exit code of it."""
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


class _Output(io.FileIO):
    """Standard output that remembers why it failed: the libraries above forget, or say it once."""

    faults: ClassVar[list[OSError]] = []

    def write(self, data: Any) -> int:
        """Writes bytes. Raises OSError."""
        try:
            return super().write(data)
        except OSError as error:
            self.faults.append(error)
            raise


def prepare() -> None:
    """A pipe of another encoding must not fail over a path or a prompt after the painting."""
    out = sys.stdout
    if type(out) is io.TextIOWrapper and out is sys.__stdout__:
        raw = _Output(out.fileno(), "wb", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=out.encoding, line_buffering=out.line_buffering
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(sentence: str, code: int) -> int:
    """Prints `sentence` on standard error; returns `code`."""
    # Where even that has no reader, the exit code is all that is left.
    with suppress(OSError):
        print(sentence, file=sys.stderr)
    return code


def unprinted() -> OSError | None:
    """Why what was printed does not reach its place; None where it does."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    # Closed by whoever called us.
    except ValueError:
        return None
    return _Output.faults[0] if _Output.faults else None


def settled(code: int) -> int:
    """The exit code of a command that ended with `code`, once all that it printed has arrived.

    The reader of a pipe may go away before its end ("| head"): that is no fault, and no word.
    """
    fault = unprinted()
    if fault is None:
        return code
    # Nothing more gets there, and Python would try once more on its way out.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if code not in (0, UNPRINTED):
        return code
    if isinstance(fault, BrokenPipeError):
        return 0
    why = f"The standard output cannot be written ({fault.strerror})."
    return say(f"{why} Free some space on its disk, or send it somewhere else.", 2)
