"""The jobs that a studio knows, and the copy of them in the database."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.gallery.pictures import PictureFile
from app.jobs import rows
from app.jobs.entry import Entry
from app.jobs.job import Job, JobState
from app.jobs.kinds import Kind, Lane
from app.jobs.store import JobStore
from app.jobs.turns import Turns, bounded

MAX_KEPT = 200
MAX_OWNERS, MAX_NAMES = 2000, 5000
"""Of how many people is remembered, until the studio ends, what was painted for them, and how many
pictures of each."""
log = logging.getLogger(__name__)


class JobList:
    """Whoever reads or changes `entries` and the rest holds `changed`; what was changed is marked,
    and written by `flush` after the lock is let go of, because the disk may be slow.
    """

    def __init__(self, kinds: Mapping[str, Kind], store: JobStore | None) -> None:
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.changed = threading.Condition()
        # What was painted for whom, and what was deleted: jobs are forgotten sooner than that.
        self.painted: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self.dropped: OrderedDict[str, None] = OrderedDict()
        # How many seconds what takes on this computer.
        self.timings: dict[str, float] = {}
        self.closing = self.paused = False
        self.turns = Turns()
        self._kinds, self._store = kinds, store
        # Taken before `changed`, never inside it: what is written last is what was true last.
        self._saving = threading.Lock()
        self._dirty: dict[str, None] = {}
        self._learned: dict[str, None] = {}
        self._loaded = store is None

    def mark(self, entry: Entry) -> None:
        """The entry is new, or has changed. Lock held."""
        if self._store is not None and not self._kinds[entry.job.kind].fleeting:
            self._dirty[entry.job.id] = None

    def flush(self) -> None:
        """Writes what was marked. Never raises: whoever runs jobs has to go on."""
        if self._store is None:
            return
        try:
            self._flush(self._store)
        # One of the few outermost seams: a fault of ours costs the memory of jobs, and no thread.
        except Exception:
            log.exception("the list of jobs was not written")

    def _flush(self, store: JobStore) -> None:
        with self._saving:
            with self.changed:
                changed = [self.entries[i] for i in self._dirty if i in self.entries]
                learned = {key: self.timings[key] for key in self._learned}
                self._dirty.clear()
                self._learned.clear()
                made = [row for entry in changed if (row := self._row(entry)) is not None]
            if made:
                store.save(made)
            for key, seconds in learned.items():
                store.learn(key, seconds)

    def _row(self, entry: Entry) -> rows.JobRow | None:
        try:
            return rows.row_of(entry, self._kinds[entry.job.kind], closing=self.closing)
        # The others are written all the same.
        except Exception:
            log.exception("job %s is kept in memory only", entry.job.id)
            return None

    def load(self) -> bool:
        """Takes in the jobs of the last studio; True once, when they could be read."""
        found = None if self._loaded or self._store is None else self._store.load()
        if found is None or self._store is None:
            return False
        timings = self._store.learned()
        with self.changed:
            self._loaded, self.timings = True, timings | self.timings
            for row in rows.worth_loading(found):
                entry = rows.entry_of(row, self._kinds)
                if entry is None:
                    self._store.refuse(row.id, rows.UNREADABLE)
                elif row.id not in self.entries:
                    if entry.job.active:
                        rows.go_on(entry, self._kinds[row.kind])
                        self.mark(entry)
                    self.entries[row.id] = entry
            self.changed.notify_all()
        self.flush()
        return True

    def before_restart(self, owner: str, kind: str) -> Entry | None:
        """What the owner saw last of a kind, of which nothing is in memory any more."""
        row = self._store.last(owner, kind) if self._store is not None else None
        return rows.entry_of(row, self._kinds) if row is not None else None

    def forget_old(self) -> list[Entry]:
        """Takes the oldest that have ended out of memory; those, for `discard`. Lock held."""
        gone = []
        for passing in (False, True):
            mine = [(i, e) for i, e in self.entries.items() if e.passing is passing]
            ended = [i for i, entry in mine if not entry.job.active and i not in self._dirty]
            old = ended[: max(0, len(ended) - MAX_KEPT)]
            gone += [self.entries.pop(job_id) for job_id in old]
            if self._store is not None:
                self._store.forget(old)
        return gone

    def discard(self, replaced: Sequence[Entry], old: Sequence[Entry]) -> None:
        """Forgets what was `replaced`, and lets go of what belonged to `old` ones that are out of
        memory. The disk may be slow: the lock is not held."""
        for entry in replaced:
            self.forget(entry)
        for entry in old:
            self._kinds[entry.job.kind].forgotten(entry)

    def forget(self, entry: Entry) -> None:
        """Takes a job out of memory and out of the database, where it has ended."""
        with self.changed:
            # It may have been retried since somebody looked.
            if entry.job.active or self.entries.pop(entry.job.id, None) is None:
                return
            self.changed.notify_all()
        self._kinds[entry.job.kind].forgotten(entry)
        if self._store is not None:
            with self._saving:
                self._store.forget([entry.job.id], everywhere=True)

    # --- the order; the lock is held

    def stop(self, entry: Entry) -> None:
        """Stops it: at once where it waits, else at its next step."""
        entry.stop_now()
        self.mark(entry)
        self.changed.notify_all()

    def in_turn(self, lane: Lane | None = None) -> list[Entry]:
        """What waits, the next one first; what nobody wants any more does not."""
        waiting = [e for e in self.entries.values() if e.job.state is JobState.WAITING]
        for entry in waiting:
            if entry.is_unwanted():
                self.stop(entry)
        wanted = [e for e in waiting if e.job.active and lane in (None, self._lane(e))]
        wanted.sort(key=lambda entry: entry.rank)
        groups: dict[tuple[bool, int], list[Entry]] = {entry.rank[:2]: [] for entry in wanted}
        for entry in wanted:
            groups[entry.rank[:2]].append(entry)
        return [
            entry
            for group in groups.values()
            for entry in self.turns.order(group, lambda one: one.claim)
        ]

    def latest(self, owner: str, kind: str) -> Entry | None:
        """The owner's running job of a kind, else the first waiting one, else the last to end."""
        mine = [e for e in self.entries.values() if (e.job.owner, e.job.kind) == (owner, kind)]
        for state in (JobState.RUNNING, JobState.WAITING):
            for entry in mine:
                if entry.job.state is state:
                    return entry
        return max(mine, key=lambda entry: entry.job.ended or 0.0) if mine else None

    def snapshot(self, entry: Entry) -> Job:
        """The job as it is told now."""
        return self.snapshots([entry])[0]

    def snapshots(self, entries: Sequence[Entry]) -> list[Job]:
        """The jobs as they are told now; the order is looked at once for all of them."""
        places = self._places() if any(e.job.state is JobState.WAITING for e in entries) else {}
        told = []
        for entry in entries:
            kind = self._kinds[entry.job.kind]
            job = replace(entry.job, title=kind.title(entry.job.payload), started=entry.started)
            if job.state is JobState.RUNNING:
                seconds, left = entry.seconds(), self._left(entry)
                stopping = entry.stop.is_set()
                job = replace(job, seconds=seconds, seconds_left=left, stopping=stopping)
            told.append(replace(job, **places.get(job.id, {})))
        return told

    def _places(self) -> dict[str, dict[str, Any]]:
        """Of each job that waits: its place, how many are ahead, and how long that will take."""
        ahead: dict[Lane, int] = {}
        waiting: dict[Lane, int] = {}
        left: dict[Lane, float | None] = {}
        running = [e for e in self.entries.values() if e.job.state is JobState.RUNNING]
        places = {}
        for entry in (*running, *self.in_turn()):
            lane, mine = self._lane(entry), self._left(entry)
            before = left.get(lane, 0.0)
            left[lane] = before + mine if before is not None and mine is not None else None
            if entry.job.state is JobState.WAITING:
                waiting[lane] = waiting.get(lane, 0) + 1
                places[entry.job.id] = {
                    "place": waiting[lane],
                    "ahead": ahead.get(lane, 0),
                    "seconds_left": left[lane],
                }
            ahead[lane] = ahead.get(lane, 0) + 1
        return places

    def _lane(self, entry: Entry) -> Lane:
        return self._kinds[entry.job.kind].lane

    def _left(self, entry: Entry) -> float | None:
        """The seconds that a job will still run; None where nothing like it ran before."""
        progress = entry.job.progress
        if progress is not None and progress.seconds_left is not None:
            return progress.seconds_left
        kind = self._kinds[entry.job.kind]
        each, units = self.timings.get(kind.timing(entry.job.payload)), kind.units(entry)
        if each is None or units is None:
            return None
        gone = entry.seconds() if entry.job.state is JobState.RUNNING and not kind.paints else 0.0
        return max(0.0, each * units - gone)

    def learn(self, key: str, seconds: float) -> None:
        """So long did one unit take of what `key` names; "" names nothing. Lock held."""
        if key:
            self.timings[key] = rows.learned(self.timings.get(key), seconds)
            if self._store is not None:
                self._learned[key] = None

    def take(self, entry: Entry, file: PictureFile) -> None:
        """A picture of the entry was finished. Lock held."""
        self.learn(self._kinds[entry.job.kind].timing(entry.job.payload), file.seconds)
        entry.take(file)
        self.mark(entry)
        if file.name in self.dropped:
            # Deleted between its last byte and this word of it: as if never asked for.
            entry.never_asked(entry.job.pictures[:-1])
        elif not entry.passing:
            mine = self.painted.pop(entry.job.owner, OrderedDict())
            bounded(self.painted, MAX_OWNERS)[entry.job.owner] = bounded(mine, MAX_NAMES)
            mine[file.name] = None

    def drop(self, name: str) -> None:
        """Takes a picture that was deleted out of the jobs, as if never asked for."""
        gone = []
        with self.changed:
            # A job may only now hear that it was finished.
            bounded(self.dropped, MAX_NAMES)[name] = None
            for painted in self.painted.values():
                painted.pop(name, None)
            for entry in list(self.entries.values()):
                left = tuple(one for one in entry.job.pictures if one.name != name)
                if len(left) == len(entry.job.pictures):
                    continue
                if not left and not entry.job.active:
                    del self.entries[entry.job.id]
                    gone.append(entry.job.id)
                else:
                    entry.never_asked(left)
                    self.mark(entry)
            self.changed.notify_all()
        if gone and self._store is not None:
            with self._saving:
                self._store.forget(gone, everywhere=True)
        self.flush()
