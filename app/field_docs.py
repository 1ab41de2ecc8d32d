"""The tables of docs/ that list the fields of a request: `python -m app.field_docs` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.field_spec import RequestField
from pipelines.request import FIELDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = "<!-- fields: {name}, written by app/field_docs.py -->\n"
_END = "<!-- end of fields -->"
_MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|`")
_RETURNS = "One object per picture: url, seed, width, height, seconds and the rest of its recipe."


def option_table(fields: Mapping[str, RequestField]) -> str:
    """The options of `launch.py generate`, as Markdown."""
    head = ("option", "what", "limits", "default")
    return _table(head, ((_option(row), *_facts(row)) for row in fields.values()))


def _option(row: RequestField) -> str:
    option, name = row.spec.option, row.option.replace("_", "-")
    if option.argument:
        return f"`{name.upper()}`"
    if row.type is bool:
        return f"`--{name}` `--no-{name}`"
    return f"`--{name} {option.metavar or 'TEXT'}`"


def _facts(row: RequestField) -> tuple[str, str, str]:
    """What it is, its limits and its default."""
    spec = row.spec
    about = spec.doc or spec.help[:1].lower() + spec.help[1:].rstrip(".")
    limits = " to ".join(row.bounds) if spec.widget.kind == "number" and row.bounds else ""
    return about, limits, spec.default or _always(row)


def parameter_table(fields: Mapping[str, RequestField]) -> str:
    """The parameters of the endpoint `generate`, as Markdown."""
    head = ("parameter", "what", "limits", "default")
    return _table(head, ((f"`{name}`", *_told(row)) for name, row in fields.items()))


def endpoint(fields: Mapping[str, RequestField], more: Mapping[str, str]) -> str:
    """What the endpoint `generate` says of itself, as gradio reads it; `more` are words about
    parameters that are no fields."""
    lines = ["Paints pictures and waits for them.", "", "Args:"]
    for name, row in fields.items():
        about, limits, default = _told(row)
        said = [about, limits, f"default: {default}" if default else ""]
        # Links and code marks are for pages.
        plain = _MARKUP.sub(r"\1", "; ".join(filter(None, said)))
        lines.append(f"    {name}: {plain}.")
    lines += [f"    {name}: {about}." for name, about in more.items()]
    lines += ["", "Returns:", f"    {_RETURNS}"]
    return "\n".join(lines)


def _told(row: RequestField) -> tuple[str, str, str]:
    about, limits, default = _facts(row)
    return row.spec.api or about, limits, default


def _always(row: RequestField) -> str:
    """The default that depends on nothing, where it is worth a word."""
    if row.required or row.type is bool or not row.default:
        return ""
    return f"{row.default:g}" if isinstance(row.default, float) else str(row.default)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    written = ["| " + " | ".join(cells) + " |" for cells in lines]
    written[1] = written[1].replace(" ", "")
    return "\n".join(written) + "\n"


TABLES: dict[str, tuple[str, Callable[[Mapping[str, RequestField]], str]]] = {
    "options of generate": ("command-line.md", option_table),
    "parameters of generate": ("api.md", parameter_table),
}
"""Each block by its name: the page it stands on, and what makes it."""


def written(text: str, name: str, fields: Mapping[str, RequestField]) -> str:
    """The page `text` with its block `name` made anew."""
    begin = re.escape(_BLOCK.format(name=name))
    block = _BLOCK.format(name=name) + TABLES[name][1](fields) + _END
    made, found = re.subn(f"{begin}.*?{re.escape(_END)}", lambda _: block, text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{TABLES[name][0]} has {found} blocks called “{name}”")
    return made


def main() -> None:
    """Writes every block into its page."""
    for name, (page, _) in TABLES.items():
        file = DOCS / page
        file.write_text(written(file.read_text("utf-8"), name, FIELDS), "utf-8")


if __name__ == "__main__":
    main()
