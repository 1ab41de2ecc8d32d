"""SQLite files of the studio: opened, written in turn, and what is wrong with one told apart."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.settings import make_folder

# What is wrong with a file where SQLite has no code of its own for it.
_DAMAGE = re.compile(r"no such (table|column)|invalid fts5|could not decode|malformed", re.I)
_NO_PLACE = (
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL),
)


@contextmanager
def opened(database: Path, patience: float) -> Iterator[sqlite3.Connection]:
    """A connection for the block. Raises SaveError, sqlite3.Error."""
    connection = connect(database, patience)
    try:
        yield connection
    finally:
        connection.close()


def connect(database: Path, patience: float) -> sqlite3.Connection:
    """A connection for one thread at a time, which waits so many seconds while others write."""
    make_folder(database.parent)
    return sqlite3.connect(database, timeout=patience, check_same_thread=False)


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that waits for its turn: one that reads first is refused at once."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def write_ahead(connection: sqlite3.Connection) -> None:
    """Reading and writing at once; whoever comes while others work leaves it as it is."""
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")


def form(connection: sqlite3.Connection) -> int:
    """The number of the form of its tables; 0 where there are none."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def files(database: Path) -> list[Path]:
    """The file itself, and those that SQLite keeps beside it."""
    return [database.with_name(database.name + ending) for ending in ("", "-wal", "-shm")]


def may_write(database: Path) -> bool:
    """Whether it can be written, or made in the nearest folder that is there."""
    there = next((p for p in (database, *database.parents) if os.path.lexists(p)), None)
    if there is None:
        return True
    if there == database:
        return os.path.isfile(there) and os.access(there, os.W_OK)
    # No folder: a file in its place, or a link that leads nowhere or in circles.
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def is_damage(error: BaseException) -> bool:
    """True where what is in the file is at fault."""
    kinds = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, UnicodeDecodeError) or (
        isinstance(error, sqlite3.DatabaseError)
        and (_code(error) in kinds or bool(_DAMAGE.search(str(error))))
    )


def has_no_place(error: BaseException) -> bool:
    """True where the disk does not take the file."""
    return isinstance(error, sqlite3.DatabaseError) and _code(error) in _NO_PLACE


def is_busy(error: BaseException) -> bool:
    """True where another program has it."""
    kinds = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return isinstance(error, sqlite3.DatabaseError) and _code(error) in kinds


def _code(error: sqlite3.Error) -> int:
    # The low byte is the kind, the others say more about it.
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
