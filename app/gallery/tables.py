"""The tables of the gallery's index: opened, made, and made anew where they are damaged."""

from __future__ import annotations

import os
import sqlite3
import threading
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app import database
from pipelines.errors import BusyError, SaveError, printable
from pipelines.field_spec import Column
from pipelines.request import FIELDS, GenerationRequest

if TYPE_CHECKING:
    from sqlite_utils import Database

T = TypeVar("T")
BUSY_SECONDS = 10.0
_DECLARED = {
    name: row.spec.column for row in FIELDS.values() if row.spec.column for name in row.names
}
LISTED = tuple(_DECLARED)
"""The fields of requests that have a column."""
_COLUMNS: dict[str, type] = {
    "id": int,
    "name": str,
    "day": str,
    "bytes": int,
    **{
        name: row.type if column.kind == "number" else str
        for row in FIELDS.values()
        if (column := row.spec.column)
        for name in row.names
    },
    "record": str,
    "problem": str,
    "mtime_ns": int,
}
_SEARCHED = tuple(name for name, column in _DECLARED.items() if column.words)
_RULES = 4
"""Raised when a column of the same name holds something else."""
# An index of other columns, or made by other rules, is made anew.
_NAMED = {name: kind.__name__ for name, kind in _COLUMNS.items()}
_FORM = zlib.crc32(repr((_RULES, _NAMED, _SEARCHED)).encode()) >> 1


def values_of(request: GenerationRequest) -> dict[str, str | int | float]:
    """The columns of a request."""
    return {name: _value(getattr(request, name), column) for name, column in _DECLARED.items()}


def empty_values() -> dict[str, str]:
    """The columns where there is no request, but for those that stay without a value."""
    return {name: "" for name, column in _DECLARED.items() if _COLUMNS[name] is str}


def _value(value: Any, column: Column) -> str | int | float:
    match column.kind:
        case "names":
            # With a space before and behind each name, so that whole ones are found.
            return "".join(f" {use.name} " for use in value)
        case "digits":
            return str(value)
        case "text":
            # With accents inside their letters, as queries are compared with it.
            return unicodedata.normalize("NFC", value or "")
        case "number":
            number: int | float = value
            return number


class Tables:
    """The index in `file`. Any thread and process may use it.

    Where that cannot be written, on a read-only or full disk or behind a link that leads nowhere,
    the index lies in memory.
    """

    def __init__(self, file: Path) -> None:
        self._database = file
        self._memory: sqlite3.Connection | None = None
        # One connection in memory is for one thread at a time.
        self._in_turn = threading.Lock()

    def use(self, work: Callable[[Database], T], patience: float = BUSY_SECONDS) -> T:
        """`work` on the open index; a damaged one is made anew first."""
        if self._memory is not None or not database.may_write(self._database):
            return self._use_memory(work)
        try:
            with self._opened(patience) as db:
                return work(db)
        except (UnicodeDecodeError, sqlite3.DatabaseError) as error:
            # The disk does not take the index, which is no reason to show no pictures.
            if database.has_no_place(error):
                return self._use_memory(work)
            if not database.is_damage(error):
                raise _told(error, self._database) from None
        self.begin_anew()
        try:
            with self._opened(patience) as db:
                return work(db)
        except (OSError, sqlite3.DatabaseError) as error:
            raise _told(error, self._database) from None

    def _use_memory(self, work: Callable[[Database], T]) -> T:
        from sqlite_utils import Database

        with self._in_turn:
            for copied in (True, False):
                if self._memory is None:
                    self._memory = _in_memory(self._database if copied else None)
                try:
                    db = Database(self._memory)
                    if database.form(self._memory) != _FORM:
                        _make(db)
                    return work(db)
                except (UnicodeDecodeError, sqlite3.DatabaseError) as error:
                    self._memory.close()
                    self._memory = None
                    if not copied:
                        raise _told(error, self._database) from None
        raise AssertionError("the second try returns or raises")

    def begin_anew(self) -> None:
        """An empty index. Raises SaveError, BusyError."""
        if self._memory is not None or not database.may_write(self._database):
            with self._in_turn:
                self._memory = _in_memory(None)
            return
        try:
            for file in database.files(self._database):
                file.unlink(missing_ok=True)
        except PermissionError:
            # Windows keeps files that another process has open: emptied in place.
            self._empty()
        except OSError as error:
            raise _told(error, self._database) from None

    def _empty(self) -> None:
        try:
            with self._opened(BUSY_SECONDS) as db:
                _make(db, anew=True)
        except (OSError, sqlite3.DatabaseError) as error:
            raise _told(error, self._database) from None

    @contextmanager
    def _opened(self, patience: float) -> Iterator[Database]:
        # Here and not above: it loads pandas where that is installed, and few commands need it.
        from sqlite_utils import Database

        with database.opened(self._database, patience) as connection:
            db = Database(connection)
            if database.form(connection) != _FORM:
                _make(db)
            yield db


def _in_memory(copied: Path | None) -> sqlite3.Connection:
    """An index in memory, with what the file `copied` holds if it can be read."""
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    if copied is None or not os.path.isfile(copied):
        return memory
    # Immutable: otherwise SQLite writes beside what it only reads.
    with suppress(sqlite3.DatabaseError):
        source = sqlite3.connect(f"{copied.absolute().as_uri()}?immutable=1", uri=True)
        try:
            source.backup(memory)
        finally:
            source.close()
    return memory


@contextmanager
def writing(db: Database) -> Iterator[None]:
    """One transaction that waits for its turn: one that reads first is refused at once."""
    with database.writing(db.conn):
        yield


def _make(db: Database, *, anew: bool = False) -> None:
    """Empty tables of the present form."""
    connection = db.conn
    with writing(db):
        # Two processes may get here at once: whoever is second finds it done.
        if not anew and database.form(connection) == _FORM:
            return
        for table in ("pictures_fts", "pictures", "days"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        db.table("pictures").create(_COLUMNS, pk="id", not_null={"name", "day"})
        db.table("pictures").create_index(["name"], unique=True)
        db.table("pictures").create_index(["day"])
        db.table("pictures").enable_fts(
            _SEARCHED, create_triggers=True, tokenize="unicode61 remove_diacritics 2"
        )
        db.table("days").create({"day": str, "mtime_ns": int}, pk="day")
        connection.execute(f"PRAGMA user_version = {_FORM}")
    database.write_ahead(connection)


def _told(error: Exception, file: Path) -> SaveError | BusyError:
    if database.is_busy(error):
        return BusyError("The index of the gallery is in use by another program.", "Try again.")
    return SaveError(
        f"The index of the gallery, {file}, cannot be used ({printable(error, 80)}).",
        "Free some space, or make its folder writable; your pictures are not touched.",
    )
