"""The index of the gallery: what is searched. The files are the truth, and it can be rebuilt.

A day's folder is read again only when its list of names has changed, so that looking for new
pictures costs the same in a gallery of ten and of a hundred thousand.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app import gallery_query, metadata, stars
from app.gallery import PICTURE_NAME
from app.settings import make_folder
from pipelines.errors import BusyError, RecipeError, RequestError, SaveError, printable
from pipelines.request import GenerationRequest, from_mapping

if TYPE_CHECKING:
    from sqlite_utils import Database

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
# Raised when the tables change: an index of another form is made anew.
_FORM = 1
_BATCH = 200
_BUSY_SECONDS = 10.0
# A folder that has only just changed may change again within the same tick of its clock.
_SETTLED_NS = 2_000_000_000
_COLUMNS: dict[str, type] = {
    "id": int,
    "name": str,
    "day": str,
    "bytes": int,
    "prompt": str,
    "negative": str,
    "style": str,
    "model": str,
    "sampler": str,
    "steps": int,
    "guidance": float,
    "width": int,
    "height": int,
    "seed": str,
    "weights": str,
    "recipe": str,
    "problem": str,
}
T = TypeVar("T")
_SEARCHED = ("prompt", "negative", "style", "model")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture of the gallery. `name` is "YYYY-MM-DD/....png", `size` in bytes.

    `request` is None where the recipe inside cannot be read; `problem` then says why.
    """

    name: str
    path: Path
    size: int
    request: GenerationRequest | None
    weights: str = ""
    problem: str = ""
    starred: bool = False

    @property
    def created(self) -> str:
        """When it was painted, by the clock of that place: "2026-11-27 19:10:55"."""
        day, _, file = self.name.partition("/")
        return f"{day} {file[:2]}:{file[2:4]}:{file[4:6]}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found: some of the entries, the newest first, and how many there are."""

    entries: tuple[Entry, ...]
    total: int


Counted = Callable[[int], None]
"""Hears how many pictures were read so far."""


class GalleryIndex:
    """The pictures below `outputs`, indexed in `database`. Any thread and process may use it."""

    def __init__(self, outputs: Path, database: Path) -> None:
        self._outputs = outputs
        self._database = database
        self._stars = stars.Stars(outputs)
        # One reading of the folders at a time; searches do not wait for it.
        self._reading = threading.Lock()

    def sync(self, seconds: float = float("inf"), count: Counted = lambda read: None) -> bool:
        """Takes in pictures that came and forgets those that went, the newest first.

        Stops after `seconds`; True where nothing is left to read. Raises SaveError, BusyError.
        """
        end = time.monotonic() + seconds
        if not self._reading.acquire(timeout=min(seconds, _BUSY_SECONDS)):
            return False
        try:
            return self._retried(lambda db: self._sync(db, end, count))
        finally:
            self._reading.release()

    def rebuild(self, count: Counted = lambda read: None) -> int:
        """Reads every picture anew; how many there are. Raises SaveError, BusyError."""
        with self._reading:
            self._retried(self._clear)
        self.sync(count=count)
        return self.search().total

    def search(
        self,
        query: str = "",
        *,
        only: Collection[str] | None = None,
        limit: int = 0,
        offset: int = 0,
    ) -> Found:
        """The pictures that `query` finds (see `gallery_query`), of those called `only` if given.

        `limit` 0 gives all. Raises RequestError for the query, SaveError, BusyError.
        """
        marked = self._stars.names()
        where: list[str] = []
        values: list[Any] = []
        for condition in gallery_query.parse(query):
            if condition.starred is None:
                where.append(condition.sql)
                values += condition.values
            else:
                where.append(f"name {'' if condition.starred else 'NOT '}IN {_LISTED}")
                values.append(json.dumps(sorted(marked)))
        if only is not None:
            where.append(f"name IN {_LISTED}")
            values.append(json.dumps(sorted(only)))
        conditions = " AND ".join(where) or "1"
        rest = f" LIMIT {int(limit) or -1} OFFSET {int(offset)}"

        def ask(db: Database) -> Found:
            count = f"SELECT count(*) AS n FROM pictures WHERE {conditions}"
            total = next(iter(db.query(count, values)))["n"]
            rows = db.query(
                f"SELECT * FROM pictures WHERE {conditions} ORDER BY name DESC{rest}", values
            )
            return Found(entries=tuple(self._entry(row, marked) for row in rows), total=total)

        return self._retried(ask)

    def find(self, names: Collection[str]) -> list[Entry]:
        """The entries called `names`, in that order. Raises RequestError for one that is not."""
        found = {entry.name: entry for entry in self.search(only=names).entries}
        for name in names:
            if name not in found:
                raise RequestError(
                    "ids",
                    f"There is no picture called “{printable(name)}” in the gallery.",
                    "A name is what “launch.py gallery list” says.",
                )
        return [found[name] for name in dict.fromkeys(names)]

    def star(self, name: str, *, on: bool) -> None:
        """Stars a picture, or takes its star away. Raises SaveError."""
        self._stars.set(name, on=on)

    def _entry(self, row: dict[str, Any], marked: Collection[str]) -> Entry:
        problem, request = str(row["problem"]), None
        if not problem:
            try:
                request = from_mapping(json.loads(row["recipe"]))
            except (ValueError, RequestError):
                problem = "The index of the gallery is damaged; rebuild it."
        name = str(row["name"])
        return Entry(
            name=name,
            path=self._outputs / name,
            size=int(row["bytes"]),
            request=request,
            weights=str(row["weights"]),
            problem=problem,
            starred=name in marked,
        )

    def _sync(self, db: Database, end: float, count: Counted) -> bool:
        known = {row["day"]: row["mtime_ns"] for row in db.query("SELECT * FROM days")}
        days = self._days()
        for day in set(known) - set(days):
            with db.conn:
                db.conn.execute("DELETE FROM pictures WHERE day = ?", (day,))
                db.conn.execute("DELETE FROM days WHERE day = ?", (day,))
        read = 0
        for day in sorted(days, reverse=True):
            if known.get(day) == days[day]:
                continue
            files = set(self._files(day))
            rows = {r["name"] for r in db.query("SELECT name FROM pictures WHERE day = ?", (day,))}
            with db.conn:
                gone = [(name,) for name in rows - files]
                db.conn.executemany("DELETE FROM pictures WHERE name = ?", gone)
            new = sorted(files - rows, reverse=True)
            for start in range(0, len(new), _BATCH):
                if time.monotonic() > end:
                    return False
                self._take_in(db, new[start : start + _BATCH])
                read += len(new[start : start + _BATCH])
                count(read)
            settled = time.time_ns() - days[day] > _SETTLED_NS
            with db.conn:
                db.table("days").upsert(
                    {"day": day, "mtime_ns": days[day] if settled else 0}, pk="day"
                )
        return True

    def _take_in(self, db: Database, names: list[str]) -> None:
        rows = [row for name in names if (row := _row(self._outputs / name, name)) is not None]
        with db.conn:
            # Another process may have been faster.
            db.table("pictures").insert_all(rows, ignore=True)

    def _days(self) -> dict[str, int]:
        """The folders of days, with the time of their last change in ns."""
        try:
            with os.scandir(self._outputs) as entries:
                return {
                    entry.name: entry.stat().st_mtime_ns
                    for entry in entries
                    if _DAY.fullmatch(entry.name) and entry.is_dir()
                }
        except OSError:
            return {}

    def _files(self, day: str) -> Iterator[str]:
        try:
            with os.scandir(self._outputs / day) as entries:
                for entry in entries:
                    # What a link leads to is somewhere else, and nobody's picture.
                    if PICTURE_NAME.fullmatch(f"{day}/{entry.name}") and entry.is_file(
                        follow_symlinks=False
                    ):
                        yield f"{day}/{entry.name}"
        except OSError:
            return

    def _clear(self, db: Database) -> None:
        with db.conn:
            db.conn.execute("DELETE FROM pictures")
            db.conn.execute("DELETE FROM days")

    def _retried(self, work: Callable[[Database], T]) -> T:
        """`work` on the open index; a damaged one is made anew first."""
        try:
            with self._opened() as db:
                return work(db)
        except sqlite3.DatabaseError as error:
            if _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _told(error, self._database) from None
        try:
            for ending in ("", "-wal", "-shm"):
                self._database.with_name(self._database.name + ending).unlink(missing_ok=True)
            with self._opened() as db:
                return work(db)
        except (OSError, sqlite3.DatabaseError) as error:
            raise _told(error, self._database) from None

    @contextmanager
    def _opened(self) -> Iterator[Database]:
        # Here and not above: it loads pandas where that is installed, and few commands need it.
        from sqlite_utils import Database

        make_folder(self._database.parent)
        connection = sqlite3.connect(self._database, timeout=_BUSY_SECONDS)
        try:
            db = Database(connection)
            if connection.execute("PRAGMA user_version").fetchone()[0] != _FORM:
                _make(db)
            yield db
        finally:
            connection.close()


_LISTED = "(SELECT value FROM json_each(?))"


def _make(db: Database) -> None:
    """Empty tables of the present form."""
    connection = db.conn
    connection.execute("PRAGMA journal_mode = WAL")
    with connection:
        # Two processes may get here at once: whoever is second finds it done.
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] == _FORM:
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


def _row(file: Path, name: str) -> dict[str, Any] | None:
    """The row of a picture; None for one that went away meanwhile."""
    row: dict[str, Any] = {"name": name, "day": name[:10], "problem": "", "weights": ""}
    try:
        row["bytes"] = file.stat().st_size
        recipe = metadata.read(file)
    except OSError:
        return None
    except RecipeError as error:
        texts = dict.fromkeys(("prompt", "negative", "style", "model", "sampler", "recipe"), "")
        return row | texts | {"problem": str(error)}
    request = recipe.request
    plain = ("prompt", "negative", "style", "model", "sampler", "steps", "guidance")
    return row | {
        **{field: getattr(request, field) for field in (*plain, "width", "height")},
        "seed": str(request.seed),
        "weights": recipe.weights,
        "recipe": request.model_dump_json(),
    }


def _code(error: sqlite3.DatabaseError) -> int:
    # The low byte is the kind, the others say more about it.
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _told(error: Exception, database: Path) -> SaveError | BusyError:
    if isinstance(error, sqlite3.DatabaseError) and _code(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    ):
        return BusyError("The index of the gallery is in use by another program.", "Try again.")
    return SaveError(
        f"The index of the gallery, {database}, cannot be used ({printable(error, 80)}).",
        "Free some space, or make its folder writable; your pictures are not touched.",
    )
