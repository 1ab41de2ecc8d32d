"""What is typed into the search box of the gallery, as conditions on the index.

    cat "on a table" -dog model:nano size:128x128 date:2026-11 starred:yes

Words are beginnings of words in the prompt, the negative prompt, the style and the model; all of
them must be there, none with a dash. Nothing that is typed reaches SQL but as a parameter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from pipelines import sizes
from pipelines.errors import RequestError, printable
from pipelines.field_spec import Column, RequestField
from pipelines.request import FIELDS

MAX_QUERY = 500
"""Characters."""
MAX_TERMS = 40
_TERM = re.compile(
    r'(?P<no>-)?(?:(?P<field>[a-z]+):)?(?:"(?P<quoted>[^"]*)"?|(?P<plain>\S+))', re.I
)
# Scripts that put no spaces between words, whose words an index of words cannot find.
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_NUMBER = re.compile(r"\d{1,20}(\.\d{1,9})?")
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One part of a WHERE clause with its parameters in order; all conditions must hold.

    `starred` is set for the one that asks about stars, which are not in the index.
    """

    sql: str = ""
    values: tuple[Any, ...] = ()
    starred: bool | None = None


def parse(text: str) -> list[Condition]:
    """The conditions of a query. Raises RequestError for one that is too long, and for a value
    that its field cannot have."""
    if len(text) > MAX_QUERY:
        raise RequestError("query", f"The search has more than {MAX_QUERY} characters.")
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    found: list[Condition] = []
    for term in _TERM.finditer(kept):
        field = (term["field"] or "").lower()
        value = term["quoted"] if term["quoted"] is not None else term["plain"]
        if field and field not in _FIELDS:
            # People write prompts with colons in them.
            field, value = "", f"{term['field']}:{value}"
        if not value.strip(" -"):
            continue
        condition = _FIELDS[field](value) if field else _words(value)
        found.append(_negated(condition) if term["no"] else condition)
    if len(found) > MAX_TERMS:
        raise RequestError("query", f"The search has more than {MAX_TERMS} words.")
    return found


def _negated(condition: Condition) -> Condition:
    if condition.starred is not None:
        return Condition(starred=not condition.starred)
    # A picture whose recipe cannot be read has no values, and so none that is excluded.
    return Condition(sql=f"NOT coalesce({condition.sql}, 0)", values=condition.values)


def _words(value: str) -> Condition:
    """Every word of `value`, one after the other, the last as a beginning."""
    if _SPACELESS.search(value) or not any(c.isalnum() for c in value):
        value = unicodedata.normalize("NFC", value)
        escaped = re.sub(r"([\\%_])", r"\\\1", value)
        sql = r"(prompt || char(10) || negative) LIKE ? ESCAPE '\'"
        return Condition(sql=f"({sql})", values=(f"%{escaped}%",))
    quoted = '"' + value.replace('"', " ") + '"*'
    sql = "id IN (SELECT rowid FROM pictures_fts WHERE pictures_fts MATCH ?)"
    return Condition(sql=f"({sql})", values=(quoted,))


def _same(column: str) -> Callable[[str], Condition]:
    return lambda value: Condition(sql=f"({column} = ? COLLATE NOCASE)", values=(value,))


def _names(column: str) -> Callable[[str], Condition]:
    def named(value: str) -> Condition:
        escaped = re.sub(r"([\\%_])", r"\\\1", value)
        return Condition(sql=rf"({column} LIKE ? ESCAPE '\')", values=(f"% {escaped} %",))

    return named


def _number(column: str, term: str, *, digits: bool) -> Callable[[str], Condition]:
    def number(value: str) -> Condition:
        if not value.isascii() or not _NUMBER.fullmatch(value):
            raise RequestError("query", f"“{term}:{printable(value, 40)}” wants a number.")
        # Kept as text: they are larger than the numbers of the index can be.
        given: Any = str(int(value)) if digits and "." not in value else float(value)
        return Condition(sql=f"({column} = ?)", values=(given,))

    return number


def _size(value: str) -> Condition:
    size = sizes.parse(value)
    return Condition(sql="(width = ? AND height = ?)", values=(size.width, size.height))


def _day(name: str, sql: str) -> Callable[[str], Condition]:
    def day(value: str) -> Condition:
        if not _is_date(value):
            raise RequestError(
                "query",
                f"“{name}:{printable(value, 40)}” is not a date.",
                f"Write {name}:2026-11-27, {name}:2026-11 or {name}:2026.",
            )
        return Condition(sql=f"({sql})", values=(value,))

    return day


def _is_date(value: str) -> bool:
    """Whether there is such a day, month or year."""
    if not value.isascii() or not _DATE.fullmatch(value):
        return False
    try:
        date.fromisoformat(value + "-01-01"[len(value) - 4 :])
    except ValueError:
        return False
    return True


def _starred(value: str) -> Condition:
    if value.lower() not in _YES:
        raise RequestError("query", f"“starred:{printable(value, 40)}” is neither yes nor no.")
    return Condition(starred=_YES[value.lower()])


def _declared(row: RequestField, column: Column) -> Callable[[str], Condition]:
    """What the term of a field asks of its column."""
    name = row.names[0]
    match column.kind:
        case "text":
            return _same(name)
        case "names":
            return _names(name)
        case "digits" | "number":
            return _number(name, column.term, digits=column.kind == "digits")


_FIELDS: dict[str, Callable[[str], Condition]] = {
    **{
        row.spec.column.term: _declared(row, row.spec.column)
        for row in FIELDS.values()
        if row.spec.column is not None and row.spec.column.term
    },
    "size": _size,
    "date": _day("date", "day LIKE ? || '%'"),
    # "before:2026-11" leaves out all of November, "after:2026-11" begins with it.
    "before": _day("before", "day < ?"),
    "after": _day("after", "day >= ?"),
    "starred": _starred,
}
TERMS = tuple(_FIELDS)
"""The names that can stand before a colon."""
