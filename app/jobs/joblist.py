"""The jobs that a studio knows, and the copy of them in the database."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from app.gallery.pictures import Gallery, PictureFile
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


class JobList:
    """Whoever reads or changes `entries` and the rest holds `changed`; what was changed is marked,
    and written by `flush` after the lock is let go of, because the disk may be slow.
    """

    def __init__(
        self, kinds: Mapping[str, Kind], store: JobStore | None, gallery: Gallery | None
    ) -> None:
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.changed = threading.Condition()
        # What was painted for whom, and what was deleted: jobs are forgotten sooner than that.
        self.painted: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self.dropped: OrderedDict[str, None] = OrderedDict()
        # How many seconds what takes on this computer.
        self.timings: dict[str, float] = {}
        self.closing = False
        self.turns = Turns()
        self._kinds, self._store, self._gallery = kinds, store, gallery
        # Taken before `changed`, never inside it: what is written last is what was true last.
        self._saving = threading.Lock()
        self._dirty: dict[str, None] = {}
        self._learned: dict[str, None] = {}
        self._loaded = store is None

    def mark(self, entry: Entry) -> None:
        """The entry is new, or has changed. Lock held."""
        if self._store is not None:
            self._dirty[entry.job.id] = None

    def flush(self) -> None:
        """Writes what was marked."""
        if self._store is None:
            return
        with self._saving:
            with self.changed:
                changed = [self.entries[i] for i in self._dirty if i in self.entries]
                learned = {key: self.timings[key] for key in self._learned}
                self._dirty.clear()
                self._learned.clear()
                made = [
                    rows.row_of(entry, self._kinds[entry.job.kind], closing=self.closing)
                    for entry in changed
                ]
            if made:
                self._store.save(made)
            for key, seconds in learned.items():
                self._store.learn(key, seconds)

    def load(self) -> bool:
        """Takes in the jobs of the last studio; True once, when they could be read."""
        found = None if self._loaded or self._store is None else self._store.load()
        if found is None or self._store is None:
            return False
        timings = self._store.learned()
        with self.changed:
            self._loaded, self.timings = True, timings | self.timings
            for row in rows.worth_loading(found):
                entry = rows.entry_of(row, self._kinds, self._gallery)
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

    def before_restart(self, owner: str) -> Entry | None:
        """What the owner saw last, of whose jobs nothing is in memory any more."""
        row = self._store.last(owner) if self._store is not None else None
        return rows.entry_of(row, self._kinds, self._gallery) if row is not None else None

    def forget_old(self) -> None:
        """Takes the oldest that have ended out of memory. Lock held."""
        for passing in (False, True):
            mine = [(i, e) for i, e in self.entries.items() if e.passing is passing]
            ended = [i for i, entry in mine if not entry.job.active and i not in self._dirty]
            old = ended[: max(0, len(ended) - MAX_KEPT)]
            for job_id in old:
                del self.entries[job_id]
            if self._store is not None:
                self._store.forget(old)

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

    def latest(self, owner: str) -> Entry | None:
        """The owner's running job, else the first waiting one, else the last that ended."""
        mine = [e for e in self.entries.values() if e.job.owner == owner]
        for state in (JobState.RUNNING, JobState.WAITING):
            for entry in mine:
                if entry.job.state is state:
                    return entry
        return max(mine, key=lambda entry: entry.job.ended or 0.0) if mine else None

    def snapshot(self, entry: Entry) -> Job:
        """The job as it is told now."""
        job = entry.job
        if job.state is JobState.RUNNING:
            return replace(job, seconds=entry.seconds(), seconds_left=self._left(entry))
        if job.state is not JobState.WAITING or entry not in (turn := self.in_turn()):
            return job
        lane = self._kinds[job.kind].lane
        running = [e for e in self.entries.values() if e.job.state is JobState.RUNNING]
        before = [e for e in (*running, *turn[: turn.index(entry)]) if self._lane(e) is lane]
        left = [self._left(one) for one in (*before, entry)]
        known = [seconds for seconds in left if seconds is not None]
        whole = sum(known) if len(known) == len(left) else None
        return replace(job, ahead=len(before), seconds_left=whole)

    def _lane(self, entry: Entry) -> Lane:
        return self._kinds[entry.job.kind].lane

    def _left(self, entry: Entry) -> float | None:
        """The seconds that a job will still run; None where nothing like it ran before."""
        progress = entry.job.progress
        if progress is not None and progress.seconds_left is not None:
            return progress.seconds_left
        kind = self._kinds[entry.job.kind]
        each = self.timings.get(kind.timing(entry.job.payload))
        return each * kind.units(entry) if each is not None else None

    def take(self, entry: Entry, file: PictureFile) -> None:
        """A picture of the entry was finished. Lock held."""
        key = self._kinds[entry.job.kind].timing(entry.job.payload)
        self.timings[key] = rows.learned(self.timings.get(key), file.seconds)
        if self._store is not None:
            self._learned[key] = None
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
