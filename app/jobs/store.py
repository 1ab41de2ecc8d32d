"""The jobs in a database of the workspace, so that they outlive the studio.

What the queue holds in memory is the truth while it runs; here lies a copy of every row, written
when it changes. A database that cannot be used costs only the memory of jobs over a restart: the
studio works on, says one sentence (`problem`), and writes everything as soon as it can be written.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from app import database
from app.jobs.rows import COLUMNS, JobRow, sound, storable
from app.jobs.schema import ENDED, FORM, PRUNE, SAVE, TABLES
from pipelines.errors import StudioError, printable

T = TypeVar("T")
_MAX_ROWS = 5000
# How long the page may wait for a database that others lock; not again until it was free once.
_PATIENCE, _NO_PATIENCE = 1.0, 0.02
# A command waits ten seconds for its answer.
_ORDER_SECONDS = 30.0
# What binding a value raises that no database holds: half a character, or too large a number.
_UNWRITABLE = (UnicodeError, OverflowError, sqlite3.InterfaceError)
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QueueOrder:
    """What somebody asks of the queue from another process: the verb, for which job, and how."""

    id: int
    verb: str
    job: str
    value: str
    at: float


class JobStore:
    """The database. Any thread may call any method; none raises, but where it says so."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._holding: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        # Every row of this process: one that was kept aside is written anew from here.
        self._rows: dict[str, JobRow] = {}
        self._unsaved: dict[str, JobRow | None] = {}
        # The same of notes.
        self._notes: dict[str, str] = {}
        self._unsaved_notes: dict[str, str] = {}
        # What was said to orders and could not be written yet: nothing is obeyed twice.
        self._answers: dict[QueueOrder, tuple[str, bool]] = {}
        self._trouble = ""
        self._aside = ""
        self._seen_version = -1
        self._closed = False

    @property
    def problem(self) -> str:
        """Why jobs do not outlive this studio, or what became of the earlier ones; "" if all is
        well."""
        return " ".join(filter(None, (self._trouble, self._aside)))

    @property
    def held(self) -> bool:
        """True where this process holds the queue of the workspace."""
        return self._holding is not None

    def hold(self, patience: float = 0.0) -> bool:
        """Takes the queue of the workspace for this process; False where another one has it, and
        does not let go of it within `patience` seconds."""
        if self._holding is not None:
            return True
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.file.with_suffix(".lock"), thread_local=False, is_singleton=False)
            lock.acquire(timeout=patience)
        except Timeout:
            self._trouble = (
                "Another studio holds the jobs of this workspace;"
                " those of this one are kept in memory and end with it."
            )
            return False
        except (OSError, NotImplementedError) as error:
            self._failed(error)
            return False
        self._holding = lock
        return True

    def close(self) -> None:
        """Lets go of the queue and of the database; nothing is written any more."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._holding is not None:
                self._holding.release()
                self._holding = None

    # --- jobs

    def save(self, rows: Collection[JobRow]) -> None:
        """Writes rows, now or as soon as the database can be written."""
        with self._lock:
            for row in rows:
                self._rows[row.id] = self._unsaved[row.id] = row
            ended = any(row.state not in ("waiting", "running") for row in rows)
            self._use(lambda db: db.execute(PRUNE) if ended else None)

    def forget(self, ids: Collection[str], *, everywhere: bool = False) -> None:
        """Takes jobs out of the memory of this process; `everywhere`, out of the database too."""
        with self._lock:
            for job_id in ids:
                self._rows.pop(job_id, None)
                if everywhere:
                    self._unsaved[job_id] = None
            if everywhere:
                self._use(lambda db: None)

    def refuse(self, job_id: str, why: str) -> None:
        """Ends a job of the database that nobody can read."""
        sql = f"UPDATE jobs SET state = 'failed', error = ?, ended = ? WHERE id = ? AND NOT {ENDED}"
        self._use(lambda db: db.execute(sql, (why, time.time(), job_id)))

    def load(self) -> list[JobRow] | None:
        """Every row, in the order in which they were made; None where they cannot be read."""
        select = f"SELECT {', '.join(COLUMNS)} FROM jobs ORDER BY created LIMIT {_MAX_ROWS}"
        return self._use(lambda db: list(sound(db.execute(select))))

    def last(self, owner: str, kind: str) -> JobRow | None:
        """The job of `owner` of that kind that ended last."""
        select = (
            f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE owner = ? AND kind = ? AND {ENDED}"
            " AND NOT passing ORDER BY ended DESC LIMIT 1"
        )
        asked = (storable(owner), kind)
        rows = self._use(lambda db: list(sound(db.execute(select, asked))))
        return rows[0] if rows else None

    # --- what is noted beside them

    def note(self, name: str, value: str) -> None:
        """Keeps a short text under `name`, now or as soon as the database can be written."""
        with self._lock:
            self._notes[name] = self._unsaved_notes[name] = storable(value)
            self._use(lambda db: None)

    def noted(self, name: str) -> str:
        """What was kept under `name`; "" where that is nothing."""
        select = "SELECT value FROM notes WHERE name = ?"
        with self._lock:
            found = self._use(lambda db: db.execute(select, (name,)).fetchone())
            if found:
                self._notes[name] = str(found[0])[:1000]
            return self._notes.get(name, "")

    def learn(self, key: str, seconds: float) -> None:
        """Keeps how long something takes; what was not seen for longest is forgotten."""

        def work(db: sqlite3.Connection) -> None:
            row = (key, seconds, time.time())
            db.execute("INSERT OR REPLACE INTO timings VALUES (?, ?, ?)", row)
            newest = "SELECT key FROM timings ORDER BY at DESC LIMIT 500"
            db.execute(f"DELETE FROM timings WHERE key NOT IN ({newest})")

        self._use(work)

    def learned(self) -> dict[str, float]:
        """What took how many seconds."""
        rows = self._use(lambda db: list(db.execute("SELECT key, seconds FROM timings")))
        sound = ((k, s) for k, s in rows or () if isinstance(s, float) and 0 < s < 1e7)
        return {str(key): seconds for key, seconds in sound}

    # --- orders of other processes

    def order(self, verb: str, job: str, value: str) -> int | None:
        """Asks the studio that holds the queue for something; the number of the order."""
        sql = "INSERT INTO orders (verb, job, value, at) VALUES (?, ?, ?, ?)"
        asked = (*map(storable, (verb, job, value)), time.time())
        return self._use(lambda db: db.execute(sql, asked).lastrowid)

    def withdraw(self, order: int) -> bool:
        """Takes an order back; False where it may have been answered meanwhile."""
        sql = "DELETE FROM orders WHERE id = ? AND answer IS NULL"
        return bool(self._use(lambda db: db.execute(sql, (order,)).rowcount))

    def orders(self) -> list[QueueOrder]:
        """What is asked and not answered yet. Whoever asked long ago has gone, and does not expect
        it any more."""
        self._say()
        if not self._has_changed():
            return []
        sql = (
            "SELECT id, verb, job, value, at FROM orders"
            " WHERE answer IS NULL AND at BETWEEN ? AND ? ORDER BY id LIMIT 100"
        )
        now = time.time()
        within = (now - _ORDER_SECONDS, now + _ORDER_SECONDS)
        rows = self._use(lambda db: list(db.execute(sql, within)))
        if rows is None or len(rows) == 100:
            # There may be more, without another change.
            self._seen_version = -1
        made = [
            QueueOrder(
                id=number, verb=str(verb)[:40], job=str(job)[:80], value=str(value)[:80], at=at
            )
            for number, verb, job, value, at in rows or ()
        ]
        return [order for order in made if order not in self._answers]

    def answer(self, order: QueueOrder, text: str, *, refused: bool) -> None:
        """Says what became of an order, now or as soon as it can be written; answers that nobody
        fetched go after an hour."""
        self._answers[order] = (storable(text), refused)
        self._say()

    def _say(self) -> None:
        said = dict(self._answers)
        if not said:
            return

        def work(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM orders WHERE at < ?", (time.time() - 3600,))
            sql = "UPDATE orders SET answer = ?, refused = ? WHERE id = ? AND at = ?"
            # The number of one that was taken back is given to another.
            db.executemany(sql, [(*what, order.id, order.at) for order, what in said.items()])
            return True

        if self._use(work):
            for order in said:
                del self._answers[order]

    def answered(self, order: int) -> tuple[str, bool] | None:
        """The answer to an order, and whether it is a refusal; None while there is none."""
        select = "SELECT answer, refused FROM orders WHERE id = ? AND answer IS NOT NULL"
        found = self._use(lambda db: db.execute(select, (order,)).fetchone())
        return (str(found[0]), bool(found[1])) if found else None

    def _has_changed(self) -> bool:
        """Whether another process has written since the last question."""
        with self._lock:
            if self._connection is None:
                return True
            try:
                version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.Error:
                return True
            before, self._seen_version = self._seen_version, version
            return version != before

    # --- the file

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """`work` in one transaction, with what could not be written before it; None if it fails."""
        with self._lock:
            for again in () if self._closed else (True, False):
                try:
                    with self._writing() as db:
                        done = work(db)
                    self._unsaved.clear()
                    self._unsaved_notes.clear()
                    self._trouble = ""
                    return done
                except (sqlite3.Error, *_UNWRITABLE, OSError, StudioError) as error:
                    if again and self.held and database.is_damage(error):
                        self._keep_aside("was damaged")
                        continue
                    self._failed(error)
                    return None
        return None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            self._connection = self._opened()
        db = self._connection
        db.execute(f"PRAGMA busy_timeout = {round(1000 * self._patience)}")
        with database.writing(db):
            for job_id, row in list(self._unsaved.items()):
                try:
                    if row is None:
                        db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
                    else:
                        db.execute(SAVE, tuple(getattr(row, name) for name in COLUMNS))
                except _UNWRITABLE as error:
                    # It would stand in the way of all others, for ever.
                    log.warning("a job is kept in memory only (%s)", printable(error, 80))
                    self._rows.pop(job_id, None)
                    del self._unsaved[job_id]
            for note in self._unsaved_notes.items():
                db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", note)
            yield db

    @property
    def _patience(self) -> float:
        return _NO_PATIENCE if self._trouble else _PATIENCE

    def _opened(self) -> sqlite3.Connection:
        """The database of this form. Raises sqlite3.Error, StudioError."""
        for _ in range(2):
            connection, used = database.connect(self.file, self._patience), False
            try:
                form = database.form(connection)
                if form == FORM and connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                    raise sqlite3.DatabaseError("malformed")
                if form in (0, FORM):
                    self._make(connection)
                    used = True
                    return connection
            finally:
                if not used:
                    connection.close()
            if not self.held:
                break
            self._keep_aside("was written by a newer version of the studio")
        raise StudioError(
            "The list of jobs is of a newer version of the studio.", "Update this one."
        )

    def _make(self, connection: sqlite3.Connection) -> None:
        # Who knows the name of an owner is that owner. The files beside it have its mode.
        with suppress(OSError):
            self.file.chmod(0o600)
        database.write_ahead(connection)
        if database.form(connection) == FORM:
            return
        with database.writing(connection):
            if database.form(connection) == FORM:
                return
            for statement in TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {FORM}")

    def _keep_aside(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = self.file.with_name(f"{self.file.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        for old, new in zip(database.files(self.file), database.files(aside), strict=True):
            with suppress(OSError):
                old.rename(new)
        self._unsaved, self._unsaved_notes = dict(self._rows), dict(self._notes)
        self._aside = (
            f"The list of jobs {why}; it is kept aside as {aside}, and a new one was begun."
        )
        log.warning(self._aside)

    def _failed(self, error: Exception) -> None:
        before = self._trouble
        if database.is_busy(error):
            self._trouble = (
                f"The list of jobs, {self.file}, is locked by another program;"
                " jobs are kept in memory until it is free."
            )
        else:
            # The connection may be the trouble: the next try begins anew.
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._trouble = (
                f"The list of jobs, {self.file}, cannot be used ({printable(error, 80)});"
                " jobs are kept in memory and end with the studio."
            )
        if self._trouble != before:
            log.warning(self._trouble)
