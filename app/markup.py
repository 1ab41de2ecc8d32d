"""HTML from templates: every text is escaped, and a value that is missing is a fault.

A template lies beside the module that fills it; each of its macros is one part of a page. Line
breaks in a template are there for those who read it: beside a tag or a {% block %} and between
two {{ values }} they are nothing, within a tag and beside a word they are one space. So the nodes
of a page are its tags and texts alone, and gradio, which compares them one by one, finds what
changed.
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
    at, within, before = 0, False, "{%"
    for piece in _PIECE.finditer(source):
        text, kind = source[at : piece.start()], piece.lastgroup
        at = piece.end()
        made.append(text)
        before = "" if text else before
        if kind == "line":
            ahead = source[at : at + 2]
            beside = ahead in ("{%", "{#", "") or ahead.startswith("<")
            beside = beside or before in ("{%", "{#", ">") or before == ahead == "{{"
            # An attribute on a condition brings its own space.
            beside = ahead == "{%" or ahead.startswith(">") if within else beside
            made.append("" if beside else " ")
            continue
        made.append(piece[0])
        within = kind == "open" or (within and kind != "close")
        before = piece[0][:2]
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
