"""The index of the gallery: what is searched. The files are the truth, and it can be rebuilt.

A day's folder is read again only when its list of names has changed, so that looking for new
pictures costs the same in a gallery of ten and of a hundred thousand.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.gallery import metadata, stars, tables
from app.gallery import query as gallery_query
from app.gallery.pictures import PICTURE_NAME
from app.gallery.tables import BUSY_SECONDS, Tables, writing
from lora_manager import folders
from pipelines.errors import RecipeError, RequestError, SaveError, printable
from pipelines.picture_record import PictureRecord
from pipelines.request import GenerationRequest

if TYPE_CHECKING:
    from sqlite_utils import Database

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_BATCH = 200
# A folder that has only just changed may change again within the same tick of its clock.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class IndexedPicture:
    """A picture of the gallery. `name` is "YYYY-MM-DD/....png", `size` in bytes.

    `record` is None where the recipe inside cannot be read; `problem` then says why.
    """

    name: str
    path: Path
    size: int
    record: PictureRecord | None
    problem: str = ""
    starred: bool = False

    @property
    def request(self) -> GenerationRequest | None:
        """What paints it again."""
        return self.record.request if self.record else None

    @property
    def weights(self) -> str:
        """The hash of the weights that painted it, "" where it is unknown."""
        return self.record.weights if self.record else ""

    @property
    def created(self) -> str:
        """When it was painted, by the clock of that place: "2026-11-27 19:10:55"."""
        day, _, file = self.name.partition("/")
        return f"{day} {file[:2]}:{file[2:4]}:{file[4:6]}"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found: some of the entries, the newest first, and how many there are."""

    entries: tuple[IndexedPicture, ...]
    total: int


Counted = Callable[[int], None]
"""Hears how many pictures were read so far."""
Gone = Callable[[Collection[str]], None]
"""Hears the names of pictures that are not there any more."""


class GalleryIndex:
    """The pictures below `outputs`, indexed in `database`. Any thread and process may use it."""

    def __init__(self, outputs: Path, database: Path, gone: Gone = lambda names: None) -> None:
        self._outputs = outputs
        self._gone = gone
        self._tables = Tables(database)
        self._stars = stars.Stars(outputs)
        # One reading of the folders at a time; searches do not wait for it.
        self._reading = threading.Lock()
        self._unlisted: Path | None = None

    def sync(self, seconds: float = float("inf"), count: Counted = lambda read: None) -> bool:
        """Takes in pictures that came and forgets those that went, the newest first.

        Stops after `seconds`, but never before it has read a little; True where nothing is left to
        read. Raises SaveError, BusyError.
        """
        end = time.monotonic() + seconds
        patience = min(seconds, BUSY_SECONDS)
        if not self._reading.acquire(timeout=patience):
            return False
        try:
            return self._tables.use(lambda db: self._sync(db, end, count), patience)
        finally:
            self._reading.release()

    def problem(self) -> str:
        """What of the pictures the last `sync` could not look at; "" where that is nothing."""
        unlisted = self._unlisted
        if unlisted is None:
            return ""
        reason = folders.trouble(unlisted) or "it could not be read just now"
        return f"Pictures may be missing: {unlisted} cannot be listed ({reason})."

    def rebuild(self, count: Counted = lambda read: None) -> int:
        """Reads every picture anew; how many there are. Raises SaveError, BusyError."""
        with self._reading:
            self._tables.begin_anew()
        self.sync(count=count)
        return self.search().total

    def search(
        self,
        query: str = "",
        *,
        only: Collection[str] | None = None,
        limit: int = 0,
        offset: int = 0,
    ) -> SearchResult:
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

        def ask(db: Database) -> SearchResult:
            count = f"SELECT count(*) AS n FROM pictures WHERE {conditions}"
            total = next(iter(db.query(count, values)))["n"]
            rows = db.query(
                f"SELECT * FROM pictures WHERE {conditions} ORDER BY name DESC{rest}", values
            )
            return SearchResult(
                entries=tuple(self._entry(row, marked) for row in rows), total=total
            )

        return self._tables.use(ask)

    def starts(self) -> set[str]:
        """The names of the pictures to start from that the recipes of pictures name.

        Raises SaveError, also where some pictures could not be looked at, and BusyError.
        """
        if problem := self.problem():
            raise SaveError(problem)
        sql = (
            "SELECT DISTINCT json_extract(record, '$.request.init') AS init FROM pictures"
            " WHERE json_valid(record)"
        )
        rows = self._tables.use(lambda db: list(db.query(sql)))
        return {str(row["init"]) for row in rows if row["init"]}

    def find(self, names: Collection[str]) -> list[IndexedPicture]:
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

    def star(self, *names: str, on: bool) -> None:
        """Stars pictures, or takes their stars away. Raises SaveError, BusyError."""
        self._stars.set(*names, on=on)

    def _entry(self, row: dict[str, Any], marked: Collection[str]) -> IndexedPicture:
        problem, record = str(row["problem"]), None
        if not problem:
            try:
                record = PictureRecord.from_json(json.loads(row["record"]))
            except (KeyError, ValueError, TypeError, RequestError):
                problem = "The index of the gallery is damaged; rebuild it."
        name = str(row["name"])
        return IndexedPicture(
            name=name,
            path=self._outputs / name,
            size=int(row["bytes"] or 0),
            record=record,
            problem=problem,
            starred=name in marked,
        )

    def _sync(self, db: Database, end: float, count: Counted) -> bool:
        # Before the folders are looked at: whatever changes them from now on is seen next time.
        now = time.time_ns()
        known = {row["day"]: row["mtime_ns"] for row in db.query("SELECT * FROM days")}
        self._unlisted = None
        days = self._days()
        if days is None:
            self._unlisted = self._outputs
            return True
        for day in set(known) - set(days):
            rows = db.query("SELECT name FROM pictures WHERE day = ?", (day,))
            self._forget(db, {str(row["name"]) for row in rows})
            with writing(db):
                db.conn.execute("DELETE FROM days WHERE day = ?", (day,))
        self._read_again(db)
        read = 0
        for day in sorted(days, reverse=True):
            if known.get(day) == days[day]:
                continue
            files = self._files(day)
            if files is None:
                self._unlisted = self._outputs / day
                continue
            rows = db.query("SELECT name FROM pictures WHERE day = ?", (day,))
            had = {str(row["name"]) for row in rows}
            self._forget(db, had - files)
            whole = True
            new = sorted(files - had, reverse=True)
            for start in range(0, len(new), _BATCH):
                if read and time.monotonic() > end:
                    return False
                batch = new[start : start + _BATCH]
                whole &= self._take_in(db, batch)
                read += len(batch)
                count(read)
            if not whole:
                self._unlisted = self._outputs / day
            # Times of the future are those of a clock that went back.
            settled = whole and abs(now - days[day]) > _SETTLED_NS
            value = days[day] if settled else 0
            if known.get(day) != value:
                with writing(db):
                    row = {"day": day, "mtime_ns": value}
                    db.table("days").upsert(row, pk="day")
        return True

    def _forget(self, db: Database, names: Collection[str]) -> None:
        if not names:
            return
        with writing(db):
            db.conn.executemany("DELETE FROM pictures WHERE name = ?", [(name,) for name in names])
        self._gone(names)

    def _read_again(self, db: Database) -> None:
        """Looks anew at what could not be read: a file may have been half copied then."""
        rows = db.query("SELECT name, bytes, mtime_ns FROM pictures WHERE problem != ''")
        changed = []
        for row in list(rows):
            try:
                stat = (self._outputs / str(row["name"])).stat()
            except OSError:
                continue
            if (stat.st_size, stat.st_mtime_ns) != (row["bytes"], row["mtime_ns"]):
                changed.append(str(row["name"]))
        for start in range(0, len(changed), _BATCH):
            batch = changed[start : start + _BATCH]
            self._forget(db, batch)
            self._take_in(db, batch)

    def _take_in(self, db: Database, names: list[str]) -> bool:
        """Adds rows; False where a file could not be looked at, though it may be there."""
        rows = [_row(self._outputs / name, name) for name in names]
        with writing(db):
            # Another process may have been faster.
            db.table("pictures").insert_all([row for row in rows if row is not None], ignore=True)
        return all(row is not None for row in rows)

    def _days(self) -> dict[str, int] | None:
        """The folders of days, with the time of their last change in ns; None where they cannot be
        listed now."""
        found: dict[str, int] = {}
        try:
            with os.scandir(self._outputs) as entries:
                for entry in entries:
                    # A link leads somewhere else, and to nobody's pictures.
                    if _DAY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                        with suppress(FileNotFoundError):
                            found[entry.name] = entry.stat().st_mtime_ns
        except FileNotFoundError:
            # Not made yet, but for a link to a disk that is not mounted just now.
            return None if folders.trouble(self._outputs) else {}
        except OSError:
            return None
        return found

    def _files(self, day: str) -> set[str] | None:
        """The names of a day's pictures; None where they cannot be listed now."""
        try:
            with os.scandir(self._outputs / day) as entries:
                return {
                    f"{day}/{entry.name}"
                    for entry in entries
                    if PICTURE_NAME.fullmatch(f"{day}/{entry.name}")
                    and entry.is_file(follow_symlinks=False)
                }
        except FileNotFoundError:
            return set()
        except OSError:
            return None


_LISTED = "(SELECT value FROM json_each(?))"


def _row(file: Path, name: str) -> dict[str, Any] | None:
    """The row of a picture; None for one that went away meanwhile."""
    row: dict[str, Any] = {"name": name, "day": name[:10], "problem": "", "record": ""}
    try:
        stat = file.stat()
        row |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        record = metadata.read(file)
        text = json.dumps(record.to_json())
    except OSError:
        return None
    # Whatever a recipe holds, it must not keep the others out.
    except (RecipeError, ValueError) as error:
        return row | tables.empty_values() | {"problem": str(error)}
    return row | tables.values_of(record.request) | {"record": text}
