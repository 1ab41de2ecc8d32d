"""One line on a terminal that is rewritten; nothing where the stream is a file or a pipe."""

from __future__ import annotations

import shutil
from typing import TextIO

from pipelines.progress import Progress


class Status:
    """The status line of a command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._width = 0
        self.is_live = stream.isatty()

    def show(self, progress: Progress, prefix: str = "") -> None:
        """Shows where the work stands."""
        self.text(prefix + progress.sentence())

    def text(self, line: str) -> None:
        """Shows a line in place of the one before, cut to the terminal."""
        if not self.is_live:
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
        self._width = len(line)

    def say(self, line: str) -> None:
        """Leaves a line behind, on a terminal only."""
        if self.is_live:
            self.clear()
            print(line, file=self._stream, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream, flush=True)
            self._width = 0
