"""HTML from templates: every text is escaped, and a value that is missing is a fault.

A template lies beside the module that fills it; each of its macros is one part of a page. Line
breaks in a template are there for those who read it: beside a tag or a {% block %} they are
nothing, within a tag and between words or {{ values }} they are one space. So the nodes of a page
are its tags and texts alone, and gradio, which compares them one by one, finds what changed.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension

_ROOT = Path(__file__).resolve().parent
_BREAK = r"\s*\n\s*"
_PIECE = re.compile(
    rf"(?P<code>\{{%.*?%\}}|\{{\{{.*?\}}\}}|\{{#.*?#\}})|(?P<open><(?=[a-z/!]))|(?P<close>>)"
    rf"|(?P<line>{_BREAK})",
    re.DOTALL,
)


def joined(source: str) -> str:
    """A template without the line breaks and the indentation that only its readers need."""
    made: list[str] = []
    at, within, glued = 0, False, True
    for piece in _PIECE.finditer(source):
        text, kind = source[at : piece.start()], piece.lastgroup
        at = piece.end()
        made.append(text)
        glued = glued and not text
        if kind == "line":
            ahead = source[at : at + 2]
            beside = glued or ahead in ("{%", "{#", "") or ahead.startswith("<")
            made.append(" " if within or not beside else "")
            continue
        made.append(piece[0])
        within = kind == "open" or (within and kind != "close")
        glued = not piece[0].startswith("{{")
    return "".join([*made, source[at:]])


class _Joined(Extension):
    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """The source as it is compiled; other files than HTML stay what they are."""
        return joined(source) if name is not None and name.endswith(".html") else source


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_ROOT),
        extensions=[_Joined],
        auto_reload=False,
    )


def render(file: str, part: str, /, **values: Any) -> str:
    """The macro `part` of the template `file`, whose name begins in the folder of this module."""
    return str(getattr(_environment().get_template(file).module, part)(**values))
