"""The queue of jobs. Jobs belong to the studio: a browser tab only watches them."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import uuid
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

from app.gallery.pictures import Gallery
from app.jobs import orders, paint, turns
from app.jobs.entry import Entry
from app.jobs.job import PAINT, Job, JobState
from app.jobs.joblist import JobList
from app.jobs.kinds import Kind
from app.jobs.lanes import Lanes, Lend
from app.jobs.store import JobStore, QueueOrder
from app.jobs.turns import Claim
from app.painting.runner import Runner
from pipelines.errors import BusyError, RequestError, StudioError, printable
from pipelines.request import GenerationRequest

PAINTER, PAUSED = "painter", "paused"
# How often orders of other processes are looked for.
_TICK_SECONDS = 0.3
# A command that changes the jobs has them for a moment.
_HOLD_SECONDS = 3.0
log = logging.getLogger(__name__)


class JobQueue:
    """Runs jobs, of each lane one after another. Every method may be called from any thread.

    With a `store` jobs outlive the studio. `kinds` are rows of the table besides painting. `lend`
    gives the device to a job of another kind for a while. With `runs` False nothing is begun before
    `start`.
    """

    def __init__(
        self,
        runner: Runner,
        store: JobStore | None = None,
        gallery: Gallery | None = None,
        *,
        kinds: Sequence[Kind] = (),
        lend: Lend = nullcontext,
        resumes: bool = True,
        runs: bool = True,
    ) -> None:
        table = (paint.kind(runner, gallery, resumes=resumes), *kinds)
        self._kinds = {kind.name: kind for kind in table}
        # A studio beside the one that holds the jobs of the workspace keeps its own in memory.
        self._store = store if store is not None and store.hold(_HOLD_SECONDS) else None
        self._list = JobList(self._kinds, self._store)
        self._entries, self._changed = self._list.entries, self._list.changed
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="jobs-orders", daemon=True)
        # Now: soon the note is that of the process that this studio starts.
        self._lanes = Lanes(self._list, self._kinds, lend, self.noted(PAINTER))
        self._load()
        if runs:
            self.start()

    def start(self) -> None:
        """Begins to run jobs, and to hear of other processes; once."""
        self._lanes.start()
        if self._store is not None and self._ticker.ident is None:
            self._ticker.start()

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
        """Queues a job of any kind; see `submit`. `result` is what it shows before it runs."""
        with self._changed:
            claim = Claim(owner=owner, client=more.get("client", ""))
            self._check_room(kind, claim, trusted=trusted)
            entry = self._new(kind, payload, owner, **more)
            gone, old = self._replaced(entry), self._list.forget_old()
            self._changed.notify_all()
        self._list.flush()
        self._list.discard(gone, old)
        return entry.job

    def _replaced(self, entry: Entry) -> list[Entry]:
        """What has ended, whose place a new job takes. Lock held."""
        if self._kinds[entry.job.kind].most_each > 1:
            return []
        mine = entry.job.owner, entry.job.kind
        others = [one for one in self._entries.values() if (one.job.owner, one.job.kind) == mine]
        return [one for one in others if not one.job.active]

    def _check_room(self, name: str, claim: Claim, *, trusted: bool) -> None:
        """Raises BusyError where one more job of the kind cannot wait for its turn."""
        if self._list.closing:
            raise BusyError("The studio is closing.")
        turns.check_room([entry.claim for entry in self._list.in_turn()], claim, trusted=trusted)
        kind, jobs = self._kinds[name], [entry.job for entry in self._entries.values()]
        mine = [job for job in jobs if job.active and (job.owner, job.kind) == (claim.owner, name)]
        if kind.most_each < turns.MAX_WAITING_EACH and len(mine) >= kind.most_each:
            title = kind.title(mine[0].payload)
            raise BusyError(
                f"“{title}” waits or runs already.", "Wait until it is done, or stop it."
            )

    def _new(
        self, kind: str, payload: Any, owner: str, *, result: Any = None, **more: Any
    ) -> Entry:
        now = time.time()
        job = Job(
            id=uuid.uuid4().hex, kind=kind, owner=owner, payload=payload, result=result, created=now
        )
        total = self._kinds[kind].total(payload)
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
        """Asks every painting of the owner to stop; how many there were."""
        with self._changed:
            jobs = [(e, e.job) for e in self._entries.values() if e.job.owner == owner]
            mine = [entry for entry, job in jobs if job.active and job.kind == PAINT]
            for entry in mine:
                self._list.stop(entry)
        self._list.flush()
        return len(mine)

    def obey(self, verb: str, job_id: str = "", value: str = "", owner: str | None = None) -> str:
        """What can be asked of the queue by name: pause, resume, and for a job stop, retry,
        duplicate, move and priority. Says what was done.

        With an `owner` only their jobs are found, and what concerns others is refused. Raises
        RequestError, and BusyError where that owner has too many jobs.
        """
        if owner is not None and verb in ("pause", "resume", "priority"):
            words = f"“{verb}” is for the whole queue, and not for the jobs of one visitor."
            raise RequestError("job", words)
        if verb in ("pause", "resume"):
            self.pause(verb == "pause")
            return "No waiting job begins any more." if self.paused else "Waiting jobs begin again."
        with self._changed:
            entry = orders.find(self._listed(owner), job_id, owner)
            if verb in ("duplicate", "retry") and not (verb == "retry" and entry.job.active):
                self._check_room(entry.job.kind, entry.claim, trusted=owner is None)
                self._check_right(entry, owner)
            if verb == "duplicate":
                made = self._copied(entry)
                gone = self._replaced(made)
                said = f"is queued once more as {made.job.id[:8]}"
            else:
                said, made, gone = orders.act(self._list, entry, verb, value), entry, []
            if verb in ("duplicate", "retry"):
                # Whoever asks now is who it runs for; of the computer nobody has to look.
                made.context = contextvars.copy_context()
                made.grace = None if owner is None else made.grace
                self._list.mark(made)
            self._changed.notify_all()
        self._list.flush()
        self._list.discard(gone, [])
        return f"Job {entry.job.id[:8]} {said}."

    def _copied(self, entry: Entry) -> Entry:
        job, payload = entry.job, self._kinds[entry.job.kind].copied(entry)
        more = {"client": entry.client, "grace": entry.grace, "passing": entry.passing}
        return self._new(job.kind, payload, job.owner, **more)

    def _check_right(self, entry: Entry, owner: str | None) -> None:
        """Raises RequestError where only who administers the studio may ask for it anew."""
        if owner is not None and self._kinds[entry.job.kind].for_all(entry.job.payload):
            words = f"Job {entry.job.id[:8]} is about what others own."
            raise RequestError("job", words, "Ask for your own.")

    def _listed(self, owner: str | None) -> list[Entry]:
        """The jobs that `jobs` lists; questions that are answered are none. Lock held."""
        found = [e for e in self._entries.values() if owner in (None, e.job.owner)]
        return [e for e in found if e.job.active or not self._kinds[e.job.kind].fleeting]

    def forget(self, job_id: str, owner: str) -> None:
        """Takes a job of the owner that has ended out of the list; its pictures stay."""
        with self._changed:
            entry = self._entries.get(job_id)
        if entry is not None and entry.job.owner == owner:
            self._list.forget(entry)

    @property
    def paused(self) -> bool:
        """True while no waiting job begins."""
        return self._list.paused

    def pause(self, on: bool) -> None:
        """Lets no waiting job begin, or lets them begin again; what runs goes on."""
        with self._changed:
            self._list.paused = on
            self._changed.notify_all()
        self.note(PAUSED, "yes" if on else "")

    def note(self, name: str, value: str) -> None:
        """Keeps a short text beside the jobs, for the next studio."""
        if self._store is not None:
            self._store.note(name, value)

    def noted(self, name: str) -> str:
        """What was kept under `name`; "" where that is nothing."""
        return self._store.noted(name) if self._store is not None else ""

    # --- what is seen

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """A snapshot of the owner's job, or None; of anybody's where `owner` is None."""
        with self._changed:
            entry = self._entries.get(job_id)
            if entry is None or owner not in (None, entry.job.owner):
                return None
            if owner is not None:
                entry.ask()
            return self._list.snapshot(entry)

    def latest(self, owner: str, kind: str = PAINT) -> Job | None:
        """The owner's running job of a kind, else the first waiting one, else the last to end."""
        with self._changed:
            for one in self._entries.values():
                if one.job.owner == owner:
                    one.ask()
            entry = self._list.latest(owner, kind)
            if entry is not None:
                return self._list.snapshot(entry)
        # Of other kinds the last ones are in memory.
        last = self._list.before_restart(owner, kind) if kind == PAINT else None
        with self._changed:
            # Somebody else may have looked, or painted, meanwhile.
            entry = self._list.latest(owner, kind) or last
            if entry is not None:
                self._entries.setdefault(entry.job.id, entry)
            return self._list.snapshot(entry) if entry is not None else None

    def jobs(self, owner: str | None = None) -> list[Job]:
        """Snapshots: what runs, what waits in its order, then what has ended, the last first."""
        with self._changed:
            mine = self._listed(owner)
            for entry in mine if owner is not None else ():
                entry.ask()
            waiting = [e for e in self._list.in_turn() if owner in (None, e.job.owner)]
            running = [entry for entry in mine if entry.job.state is JobState.RUNNING]
            ended = [entry for entry in mine if not entry.job.active]
            ended.sort(key=lambda entry: entry.job.ended or 0.0, reverse=True)
            return self._list.snapshots([*running, *waiting, *ended])

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
            if self._list.closing:
                return
            for entry in self._entries.values():
                if entry.job.active:
                    self._list.mark(entry)
            self._list.closing = True
            self._ended.set()
            self._changed.notify_all()
        self._lanes.join()
        if self._ticker.ident is not None:
            self._ticker.join(timeout=5)
        self._list.flush()
        with self._changed:
            for entry in self._entries.values():
                if entry.job.active:
                    entry.end(JobState.INTERRUPTED, StudioError("The studio was closed."))
            self._changed.notify_all()
        if self._store is not None:
            self._store.close()

    def _load(self) -> None:
        """Takes in the jobs of the last studio, once they can be read."""
        if self._list.load():
            self._list.paused = self.paused or bool(self.noted(PAUSED))

    def _tick(self) -> None:
        while self._store is not None and not self._ended.wait(_TICK_SECONDS):
            try:
                self._load()
                self._list.flush()
                for order in self._store.orders():
                    said, refused = self._obeyed(order)
                    self._store.answer(order, said, refused=refused)
            # One of the few outermost seams: the next order is obeyed whatever this one was.
            except Exception:
                log.exception("the orders of other processes were not read")

    def _obeyed(self, order: QueueOrder) -> tuple[str, bool]:
        """What is answered to an order, and whether that is a refusal."""
        try:
            return self.obey(order.verb, order.job, order.value), False
        except StudioError as error:
            return str(error), True
        # Asked again it would fail again.
        except Exception as fault:
            log.exception("an order failed")
            return (
                f"This failed through a fault of the studio ({printable(repr(fault), 200)}).",
                True,
            )
