"""The queue of jobs. Jobs belong to the studio: a browser tab only watches them."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from app.gallery.pictures import Gallery, PictureFile
from app.jobs import orders, orphans, paint, turns
from app.jobs.entry import Entry
from app.jobs.job import PAINT, Job, JobState
from app.jobs.joblist import JobList
from app.jobs.kinds import JobControl, Kind, Lane
from app.jobs.store import JobStore
from app.jobs.turns import Claim
from app.painting.runner import Runner
from pipelines.errors import BusyError, ProcessDeathError, StudioError, printable
from pipelines.progress import Progress
from pipelines.request import GenerationRequest

PAINTER, PAUSED = "painter", "paused"
# How often orders of other processes are looked for, and how often progress is written.
_TICK_SECONDS, _PROGRESS_SECONDS = 0.3, 2.0
log = logging.getLogger(__name__)


class JobQueue:
    """Runs jobs, of each lane one after another. Every method may be called from any thread.

    With a `store` jobs outlive the studio. `kinds` are rows of the table besides painting; with
    `runs` False nothing is begun, for the command line.
    """

    def __init__(
        self,
        runner: Runner,
        store: JobStore | None = None,
        gallery: Gallery | None = None,
        *,
        kinds: Sequence[Kind] = (),
        resumes: bool = True,
        runs: bool = True,
    ) -> None:
        table = (paint.kind(runner, gallery, resumes=resumes), *kinds)
        self._kinds = {kind.name: kind for kind in table}
        # A studio beside the one that holds the jobs of the workspace keeps its own in memory.
        self._store = store if store is not None and store.hold() else None
        self._list = JobList(self._kinds, self._store, gallery)
        self._entries, self._changed = self._list.entries, self._list.changed
        self._closed = self._paused = False
        self._ended = threading.Event()
        self._told = 0.0
        self._load()
        lanes = {kind.lane for kind in table} if runs else set()
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"jobs-{lane}", daemon=True)
            for lane in sorted(lanes)
        ]
        if self._store is not None and runs:
            ticker = threading.Thread(target=self._tick, name="jobs-orders", daemon=True)
            self._threads.append(ticker)
        for thread in self._threads:
            thread.start()

    # --- what others ask

    def submit(
        self,
        request: GenerationRequest,
        owner: str,
        *,
        client: str = "",
        grace: float | None = None,
        passing: bool = False,
        trusted: bool = False,
    ) -> Job:
        """Queues `request`. Raises BusyError when too many jobs wait.

        `client` is the address that it came from, as far as it is known. With `grace` the job is
        stopped when its owner has not asked for it for so many seconds. A `passing` job is one
        whose owner is only known to whoever waits for it now: nothing of it is kept that would
        take the place of what people at a browser saw. A `trusted` one is of somebody at the
        computer, for whom the limits of visitors do not count.
        """
        return self.add(
            PAINT, request, owner, client=client, grace=grace, passing=passing, trusted=trusted
        )

    def add(
        self, kind: str, payload: Any, owner: str, *, trusted: bool = False, **more: Any
    ) -> Job:
        """Queues a job of any kind; see `submit`."""
        with self._changed:
            if self._closed:
                raise BusyError("The studio is closing.")
            waiting = [entry.claim for entry in self._list.in_turn()]
            claim = Claim(owner=owner, client=more.get("client", ""))
            turns.check_room(waiting, claim, trusted=trusted)
            entry = self._new(kind, payload, owner, **more)
            self._list.forget_old()
            self._changed.notify_all()
        self._list.flush()
        return entry.job

    def _new(self, kind: str, payload: Any, owner: str, **more: Any) -> Entry:
        now = time.time()
        job = Job(id=uuid.uuid4().hex, kind=kind, owner=owner, payload=payload, created=now)
        total = payload.count if kind == PAINT else 1
        context = contextvars.copy_context()
        last = max((entry.position for entry in self._entries.values()), default=0.0)
        position = max(now, last + 0.001)
        entry = Entry(job=job, position=position, total=total, context=context, **more)
        self._entries[job.id] = entry
        self._list.mark(entry)
        return entry

    def stop(self, job_id: str, owner: str) -> None:
        """Asks a job to stop; finished pictures stay. Unknown ids and other owners: nothing."""
        with self._changed:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.owner != owner or not entry.job.active:
                return
            self._list.stop(entry)
        self._list.flush()

    def stop_all(self, owner: str) -> int:
        """Asks every job of the owner to stop; how many there were."""
        with self._changed:
            entries = self._entries.values()
            mine = [e for e in entries if e.job.owner == owner and e.job.active]
            for entry in mine:
                self._list.stop(entry)
        self._list.flush()
        return len(mine)

    def obey(self, verb: str, job_id: str = "", value: str = "", owner: str | None = None) -> str:
        """What can be asked of the queue by name: pause, resume, and for a job stop, retry,
        duplicate, move and priority. Says what was done.

        With an `owner` only their jobs are found. Raises RequestError.
        """
        if verb in ("pause", "resume"):
            self.pause(verb == "pause")
            return (
                "No waiting job begins any more." if self._paused else "Waiting jobs begin again."
            )
        with self._changed:
            entry = orders.find(list(self._entries.values()), job_id, owner)
            if verb == "duplicate":
                said = f"is queued once more as {self._copied(entry).job.id[:8]}"
            else:
                said = orders.act(self._list, entry, verb, value)
            self._changed.notify_all()
        self._list.flush()
        return f"Job {entry.job.id[:8]} {said}."

    def _copied(self, entry: Entry) -> Entry:
        payload = entry.job.payload
        if entry.job.kind == PAINT:
            payload = payload.model_copy(update={"count": entry.total})
        return self._new(
            entry.job.kind, payload, entry.job.owner, client=entry.client, grace=entry.grace
        )

    @property
    def paused(self) -> bool:
        """True while no waiting job begins."""
        return self._paused

    def pause(self, on: bool) -> None:
        """Lets no waiting job begin, or lets them begin again; what runs goes on."""
        with self._changed:
            self._paused = on
            self._changed.notify_all()
        if self._store is not None:
            self._store.note(PAUSED, "yes" if on else "")

    # --- what is seen

    def get(self, job_id: str, owner: str) -> Job | None:
        """A snapshot of the owner's job, or None."""
        with self._changed:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.owner != owner:
                return None
            entry.ask()
            return self._list.snapshot(entry)

    def latest(self, owner: str) -> Job | None:
        """The owner's running job, else the first waiting one, else the last that ended."""
        with self._changed:
            for one in self._entries.values():
                if one.job.owner == owner:
                    one.ask()
            entry = self._list.latest(owner)
            if entry is not None:
                return self._list.snapshot(entry)
        last = self._list.before_restart(owner)
        with self._changed:
            # Somebody else may have looked, or painted, meanwhile.
            entry = self._list.latest(owner) or last
            if entry is not None:
                self._entries.setdefault(entry.job.id, entry)
            return self._list.snapshot(entry) if entry is not None else None

    def jobs(self, owner: str | None = None) -> list[Job]:
        """Snapshots: what runs, what waits in its order, then what has ended, the last first."""
        with self._changed:
            mine = [e for e in self._entries.values() if owner in (None, e.job.owner)]
            waiting = [entry for entry in self._list.in_turn() if entry in mine]
            running = [entry for entry in mine if entry.job.state is JobState.RUNNING]
            ended = [entry for entry in mine if not entry.job.active]
            ended.sort(key=lambda entry: entry.job.ended or 0.0, reverse=True)
            return [self._list.snapshot(entry) for entry in (*running, *waiting, *ended)]

    def drop(self, name: str) -> None:
        """Takes a picture that was deleted out of the jobs, as if never asked for."""
        self._list.drop(name)

    def wants(self, model_id: str) -> bool:
        """True while a job that waits or runs paints with `model_id`."""
        return any(request.model == model_id for request in self._requests())

    def wants_lora(self, name: str) -> bool:
        """True while a job that waits or runs paints with the LoRA `name`."""
        return any(use.name == name for request in self._requests() for use in request.loras)

    def _requests(self) -> list[GenerationRequest]:
        with self._changed:
            jobs = [entry.job for entry in self._entries.values()]
            return [job.request for job in jobs if job.active and job.kind == PAINT]

    def paints(self, names: Collection[str]) -> bool:
        """True while a job that waits or runs has painted one of `names`."""
        with self._changed:
            jobs = [entry.job for entry in self._entries.values() if entry.job.active]
            return any(picture.name in names for job in jobs for picture in job.pictures)

    def pictures(self, owner: str) -> set[str]:
        """The names of what was painted for the owner since the studio was started, and before it
        of the last job."""
        last = self.latest(owner)
        with self._changed:
            names = set(self._list.painted.get(owner, ()))
        return names | {picture.name for picture in (last.pictures if last else ())}

    def wait(self, job_id: str, owner: str, timeout: float) -> Job | None:
        """Blocks until the job has ended or `timeout` seconds are over; the snapshot then."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                entry = self._entries.get(job_id)
                if entry is None or entry.job.owner != owner:
                    return None
                left = end - time.monotonic()
                if not entry.job.active or left <= 0:
                    return self._list.snapshot(entry)
                self._changed.wait(left)

    def close(self) -> None:
        """Stops what runs at its next step; with a store it goes on in the next studio."""
        with self._changed:
            if self._closed:
                return
            for entry in self._entries.values():
                if entry.job.active:
                    self._list.mark(entry)
            self._closed = self._list.closing = True
            self._ended.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)
        self._list.flush()
        with self._changed:
            for entry in self._entries.values():
                if entry.job.active:
                    entry.end(JobState.INTERRUPTED, "The studio was closed.")
            self._changed.notify_all()
        if self._store is not None:
            self._store.close()

    # --- the lanes

    def _next(self, lane: Lane) -> Entry | None:
        with self._changed:
            while not self._closed:
                for entry in [] if self._paused else self._list.in_turn(lane)[:1]:
                    self._list.turns.had(entry.claim)
                    entry.begin()
                    self._list.mark(entry)
                    return entry
                self._changed.wait()
        return None

    def _work(self, lane: Lane) -> None:
        if lane is Lane.DEVICE and self._store is not None:
            # It may still write a picture of the job that goes on here.
            orphans.wait_for(self._store.noted(PAINTER), lambda: self._closed)
        while (entry := self._next(lane)) is not None:
            self._list.flush()
            self._run(entry)

    def _run(self, entry: Entry) -> None:
        # Let go of with the job: it holds the whole request of the page.
        context, entry.context = entry.context or contextvars.copy_context(), None
        kind, error, done = self._kinds[entry.job.kind], None, False
        while True:
            try:
                if entry.again:
                    self._recover(entry, kind)
                context.run(kind.run, self._control(entry))
            except ProcessDeathError as death:
                if kind.resumes and not self._unwanted(entry) and entry.interrupted():
                    continue
                error = str(death)
            except StudioError as failure:
                error = str(failure)
            # One of the few outermost seams: a fault of ours must end this job and not the queue.
            except Exception as failure:
                log.exception("job %s failed", entry.job.id)
                what = "Painting" if kind.name == PAINT else f"The {kind.name}"
                said = printable(repr(failure), 200)
                error = f"{what} failed through a fault of the studio ({said})."
            break
        with self._changed:
            done = error is None and kind.is_done(entry)
            if self._closed and not done and not entry.stop.is_set():
                # The next studio goes on with it.
                return
            state = JobState.FAILED if error else JobState.DONE if done else JobState.STOPPED
            entry.end(state, error)
            self._list.mark(entry)
            self._changed.notify_all()
        self._list.flush()

    def _control(self, entry: Entry) -> JobControl:
        return JobControl(
            entry=entry,
            report=lambda progress: self._report(entry, progress),
            keep=lambda file: self._keep(entry, file),
            should_stop=lambda: self._unwanted(entry),
            upcoming=lambda: self._upcoming(entry.job.kind),
        )

    def _unwanted(self, entry: Entry) -> bool:
        return self._closed or entry.is_unwanted()

    def _upcoming(self, kind: str) -> list[Any]:
        with self._changed:
            return [entry.job.payload for entry in self._list.in_turn() if entry.job.kind == kind]

    def _recover(self, entry: Entry, kind: Kind) -> None:
        with self._changed:
            known = {p.name for e in self._entries.values() for p in e.job.pictures}
            kind.recover(entry, known | set(self._list.dropped))
            self._list.mark(entry)
        self._list.flush()

    def _report(self, entry: Entry, progress: Progress) -> None:
        now = time.monotonic()
        with self._changed:
            entry.tell(progress)
            self._changed.notify_all()
            due = now - self._told > _PROGRESS_SECONDS
            if due:
                self._told = now
                self._list.mark(entry)
        if due:
            self._list.flush()

    def _keep(self, entry: Entry, file: PictureFile) -> None:
        with self._changed:
            self._list.take(entry, file)
            self._changed.notify_all()
        self._list.flush()

    def _load(self) -> None:
        """Takes in the jobs of the last studio, once they can be read."""
        if self._list.load() and self._store is not None:
            self._paused = self._paused or bool(self._store.noted(PAUSED))

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            self._load()
            self._list.flush()
            for order in self._store.orders() if self._store is not None else []:
                try:
                    said, refused = self.obey(order.verb, order.job, order.value), False
                except StudioError as error:
                    said, refused = str(error), True
                if self._store is not None:
                    self._store.answer(order.id, said, refused=refused)
