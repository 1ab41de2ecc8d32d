"""The one way in which a LoRA can fail: a sentence for people and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoraError(Exception):
    """A LoRA that cannot be read, found, kept or used.

    `message` is one sentence that names the value; `way_out` one sentence that says what to do.
    """

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.message} {self.way_out}".strip()


def printable(text: object, limit: int = 60) -> str:
    """`text` on one line, without control characters, at most `limit` characters."""
    raw = str(text)
    line = "".join(c if c.isprintable() else " " for c in raw[: limit * 4])
    line = " ".join(line.split())
    return line if len(line) <= limit and len(raw) <= limit * 4 else line[: limit - 1] + "…"


def hint(name: str, known: Iterable[str], none: str) -> str:
    """What to say beside a name that is not among the known ones: the nearest one, else some of
    them, else `none`."""
    names = list(known)
    folded = {one.casefold(): one for one in names}
    wanted = name[:80].casefold()
    begins = [one for one in folded if wanted and one.startswith(wanted)]
    near = begins or difflib.get_close_matches(wanted, list(folded), n=1, cutoff=0.4)
    if near:
        return f"Did you mean “{folded[near[0]]}”?"
    return f"Known: {', '.join(names[:12])}." if names else none
