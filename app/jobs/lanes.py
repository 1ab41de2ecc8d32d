"""What runs: one thread for each lane, which takes one job after another from the list."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from app.gallery.pictures import PictureFile
from app.jobs import orphans
from app.jobs.entry import Entry
from app.jobs.job import PAINT, JobState
from app.jobs.joblist import JobList
from app.jobs.kinds import JobControl, Kind, Lane
from pipelines.errors import ProcessDeathError, StudioError, printable
from pipelines.processes.wire import error_fields, error_of
from pipelines.progress import Progress

# How often progress is written to the database.
_PROGRESS_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
Lend = Callable[[], AbstractContextManager[None]]
"""Around a job that has the device for itself: the painter gives it up, and takes it back."""
log = logging.getLogger(__name__)


class Lanes:
    """The threads of a queue. Before the first job of the device it waits for the end of `painter`,
    the painting process of a studio that was killed, as `drafts.writer` names it; "" for none."""

    def __init__(self, jobs: JobList, kinds: Mapping[str, Kind], lend: Lend, painter: str) -> None:
        self._list, self._kinds, self._lend, self._painter = jobs, kinds, lend, painter
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begins to run jobs, once."""
        lanes = {kind.lane for kind in self._kinds.values()} if not self._threads else set()
        for lane in sorted(lanes):
            thread = threading.Thread(
                target=self._work, args=(lane,), name=f"jobs-{lane}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def join(self) -> None:
        """Waits a little for what runs, after the list was closed."""
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, lane: Lane) -> None:
        if lane is Lane.DEVICE:
            # It may still write a picture of the job that goes on here.
            orphans.wait_for(self._painter, lambda: self._list.closing)
        while (entry := self._next(lane)) is not None:
            self._list.flush()
            self._run(entry)

    def _next(self, lane: Lane) -> Entry | None:
        jobs = self._list
        with jobs.changed:
            while not jobs.closing:
                for entry in jobs.in_turn(lane):
                    if jobs.paused and not self._kinds[entry.job.kind].fleeting:
                        continue
                    jobs.turns.had(entry.claim)
                    entry.begin()
                    jobs.mark(entry)
                    return entry
                jobs.changed.wait()
        return None

    def _run(self, entry: Entry) -> None:
        # Let go of with the job: it holds the whole request of the page.
        context, entry.context = entry.context or contextvars.copy_context(), None
        kind, done = self._kinds[entry.job.kind], False
        error: StudioError | None = None
        units = kind.units(entry)
        while True:
            try:
                if entry.again:
                    self._recover(entry, kind)
                with self._lend() if kind.takes_device else nullcontext():
                    done = context.run(kind.run, self._control(entry))
            except ProcessDeathError as death:
                if kind.resumes and not self._unwanted(entry) and entry.interrupted():
                    continue
                error = death
            except StudioError as failure:
                error = failure
            # One of the few outermost seams: a fault of ours must end this job and not the queue.
            except Exception as failure:
                log.exception("job %s failed", entry.job.id)
                what = "Painting" if kind.name == PAINT else f"The {kind.name}"
                said = printable(repr(failure), 200)
                error = StudioError(f"{what} failed through a fault of the studio ({said}).")
            break
        self._end(entry, kind, done and error is None, error, units)

    def _end(
        self,
        entry: Entry,
        kind: Kind,
        done: bool,
        error: StudioError | None,
        units: float | None,
    ) -> None:
        jobs = self._list
        with jobs.changed:
            if jobs.closing and not done and not entry.stop.is_set():
                # The next studio goes on with it, or says that it was interrupted.
                return
            state = JobState.FAILED if error else JobState.DONE if done else JobState.STOPPED
            if done and not kind.paints and units:
                jobs.learn(kind.timing(entry.job.payload), entry.seconds() / units)
            entry.end(state, _bare(error))
            jobs.mark(entry)
            jobs.changed.notify_all()
        jobs.flush()

    def _control(self, entry: Entry) -> JobControl:
        return JobControl(
            entry=entry,
            report=lambda progress: self._report(entry, progress),
            keep=lambda file: self._keep(entry, file),
            give=lambda result: self._give(entry, result),
            should_stop=lambda: self._unwanted(entry),
            upcoming=lambda: self._upcoming(entry.job.kind),
        )

    def _unwanted(self, entry: Entry) -> bool:
        return self._list.closing or entry.is_unwanted()

    def _upcoming(self, kind: str) -> list[Any]:
        with self._list.changed:
            waiting = self._list.in_turn()
            return [entry.job.payload for entry in waiting if entry.job.kind == kind]

    def _recover(self, entry: Entry, kind: Kind) -> None:
        jobs = self._list
        with jobs.changed:
            known = {p.name for e in jobs.entries.values() for p in e.job.pictures}
            kind.recover(entry, known | set(jobs.dropped))
            jobs.mark(entry)
        jobs.flush()

    def _report(self, entry: Entry, progress: Progress) -> None:
        now, jobs = time.monotonic(), self._list
        with jobs.changed:
            entry.tell(progress)
            jobs.changed.notify_all()
            due = now - entry.written > _PROGRESS_SECONDS
            if due:
                entry.written = now
                jobs.mark(entry)
        if due:
            jobs.flush()

    def _keep(self, entry: Entry, file: PictureFile) -> None:
        with self._list.changed:
            self._list.take(entry, file)
            self._list.changed.notify_all()
        self._list.flush()

    def _give(self, entry: Entry, result: Any) -> None:
        with self._list.changed:
            entry.give(result)
            self._list.changed.notify_all()


def _bare(error: StudioError | None) -> StudioError | None:
    """The error without the frames that it passed, and all that they hold."""
    return error_of(error_fields(error)) if error is not None else None
