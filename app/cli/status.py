"""What a command says to a terminal: one line that is rewritten, and a question."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from pipelines import streams
from pipelines.errors import RequestError
from pipelines.progress import Progress


class Status:
    """The status line of a command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = streams.bare(stream)
        self._width = 0
        self.is_live = stream.isatty()

    def show(self, progress: Progress, prefix: str = "") -> None:
        """Shows where the work stands."""
        self.text(prefix + progress.sentence())

    def text(self, line: str) -> None:
        """Shows a line in place of the one before, cut to the terminal."""
        if not self.is_live:
            return
        line = streams.escape(line)[: shutil.get_terminal_size().columns - 1]
        print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
        self._width = len(line)

    def say(self, line: str) -> None:
        """Leaves a line behind, on a terminal only."""
        if self.is_live:
            self.clear()
            print(streams.escape(line), file=self._stream, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream, flush=True)
            self._width = 0


def agreed(question: str) -> bool:
    """Asks on a terminal. Raises RequestError where nobody can answer."""
    if not sys.stdin.isatty():
        raise RequestError("yes", "Nobody can be asked here.", "Add --yes to do it.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
