"""The queue of jobs. Jobs belong to the studio: a browser tab only watches them."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from app.gallery.pictures import PictureFile
from app.jobs import turns
from app.jobs.job import Job, JobState
from app.jobs.last_jobs import LastJobs
from app.jobs.turns import Claim, Turns, bounded
from app.painting.runner import Runner
from pipelines.errors import BusyError, StudioError
from pipelines.progress import Progress
from pipelines.request import GenerationRequest

MAX_KEPT = 200
MAX_OWNERS, MAX_NAMES = 2000, 5000
"""Of how many people is remembered, until the studio ends, what was painted for them, and how many
pictures of each."""
_LOCKS = 64
log = logging.getLogger(__name__)


@dataclass
class _Entry:
    job: Job
    client: str = ""
    # For how long nobody may ask for the job before it is stopped; None where it is never.
    grace: float | None = None
    asked: float = field(default_factory=time.monotonic)
    # Its owner is the caller of one call, who never comes back to look.
    passing: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    # Who asked, for a runner that has to tell: the visitor's event is a variable of this context.
    context: contextvars.Context | None = None

    @property
    def claim(self) -> Claim:
        return Claim(owner=self.job.owner, client=self.client)

    def is_unwanted(self) -> bool:
        """True where it was stopped, or nobody has asked for it for longer than its grace."""
        gone = self.grace is not None and time.monotonic() - self.asked > self.grace
        return self.stop.is_set() or gone

    def end(self) -> None:
        """Stops it: at once where it waits, else at its next step."""
        self.stop.set()
        if self.job.state is JobState.WAITING:
            self.job = replace(self.job, state=JobState.STOPPED)


class JobQueue:
    """Runs jobs one after another on a `Runner`. Every method may be called from any thread."""

    def __init__(self, runner: Runner, last_jobs: LastJobs | None = None) -> None:
        self._runner = runner
        self._last_jobs = last_jobs
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # What was painted for whom, and what was deleted: jobs are forgotten sooner than that.
        self._painted: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self._dropped: OrderedDict[str, None] = OrderedDict()
        self._changed = threading.Condition()
        # Held while an owner's last job is read or written, which waits for the disk; taken before
        # `_changed`, never inside it. Owners share a few, so that their number costs nothing.
        self._persisting = [threading.Lock() for _ in range(_LOCKS)]
        self._closed = False
        self._turns = Turns()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: GenerationRequest,
        owner: str,
        *,
        client: str = "",
        grace: float | None = None,
        passing: bool = False,
    ) -> Job:
        """Queues `request`. Raises BusyError when too many jobs wait.

        `client` is the address that it came from, as far as it is known. With `grace` the job is
        stopped when its owner has not asked for it for so many seconds. A `passing` job is one
        whose owner is only known to whoever waits for it now: nothing of it is kept that would
        take the place of what people at a browser saw.
        """
        with self._changed:
            if self._closed:
                raise BusyError("The studio is closing.")
            waiting = [entry.claim for entry in self._in_turn()]
            turns.check_room(waiting, Claim(owner=owner, client=client))
            job = Job(id=uuid.uuid4().hex, owner=owner, request=request)
            context = contextvars.copy_context()
            self._entries[job.id] = _Entry(
                job, client=client, grace=grace, passing=passing, context=context
            )
            self._forget()
            self._changed.notify_all()
        self._remember(owner)
        return job

    def _in_turn(self) -> list[_Entry]:
        """What waits, the next one first; what nobody wants any more does not. Lock held."""
        waiting = [e for e in self._entries.values() if e.job.state is JobState.WAITING]
        for entry in waiting:
            if entry.is_unwanted():
                entry.end()
        wanted = [entry for entry in waiting if entry.job.active]
        return self._turns.order(wanted, lambda entry: entry.claim)

    def stop(self, job_id: str, owner: str) -> None:
        """Asks a job to stop; finished pictures stay. Unknown ids and other owners: nothing."""
        with self._changed:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.owner != owner or not entry.job.active:
                return
            entry.end()
            self._changed.notify_all()

    def stop_all(self, owner: str) -> int:
        """Asks every job of the owner to stop; how many there were."""
        with self._changed:
            entries = self._entries.values()
            mine = [e for e in entries if e.job.owner == owner and e.job.active]
            for entry in mine:
                entry.end()
            self._changed.notify_all()
        return len(mine)

    def drop(self, name: str) -> None:
        """Takes a picture that was deleted out of the jobs, as if never asked for."""
        with self._changed:
            # A job may only now hear that it was finished.
            bounded(self._dropped, MAX_NAMES)[name] = None
            for painted in self._painted.values():
                painted.pop(name, None)
            entries = self._entries.values()
            owners = {e.job.owner for e in entries if any(p.name == name for p in e.job.pictures)}
        for owner in owners:
            self._drop(name, owner)

    def _drop(self, name: str, owner: str) -> None:
        with self._persistence(owner):
            with self._changed:
                for entry in [e for e in self._entries.values() if e.job.owner == owner]:
                    left = tuple(one for one in entry.job.pictures if one.name != name)
                    if len(left) == len(entry.job.pictures):
                        continue
                    if not left and not entry.job.active:
                        del self._entries[entry.job.id]
                        continue
                    wanted = max(1, entry.job.request.count - 1)
                    request = entry.job.request.model_copy(update={"count": wanted})
                    entry.job = replace(entry.job, pictures=left, request=request)
                self._changed.notify_all()
            self._write_latest(owner)

    def get(self, job_id: str, owner: str) -> Job | None:
        """A snapshot of the owner's job, or None."""
        with self._changed:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.owner != owner:
                return None
            entry.asked = time.monotonic()
            return self._snapshot(entry)

    def latest(self, owner: str) -> Job | None:
        """The owner's running job, else the first waiting one, else the last that ended."""
        with self._changed:
            for one in self._entries.values():
                if one.job.owner == owner:
                    one.asked = time.monotonic()
            entry = self._latest(owner)
            if entry is not None:
                return self._snapshot(entry)
        return self._before_restart(owner)

    def _latest(self, owner: str) -> _Entry | None:
        mine = [e for e in self._entries.values() if e.job.owner == owner]
        for state in (JobState.RUNNING, JobState.WAITING):
            for entry in mine:
                if entry.job.state is state:
                    return entry
        return mine[-1] if mine else None

    def _before_restart(self, owner: str) -> Job | None:
        """What the owner saw before this studio was started, as a job that has ended."""
        with self._persistence(owner):
            kept = self._last_jobs.load(owner) if self._last_jobs else None
            with self._changed:
                # Somebody else may have looked, or painted, meanwhile.
                entry = self._latest(owner)
                if entry is None and kept is not None:
                    job = _restored(owner, *kept)
                    entry = self._entries[job.id] = _Entry(job)
                return self._snapshot(entry) if entry is not None else None

    def wants(self, model_id: str) -> bool:
        """True while a job that waits or runs paints with `model_id`."""
        with self._changed:
            jobs = [entry.job for entry in self._entries.values()]
            return any(job.active and job.request.model == model_id for job in jobs)

    def wants_lora(self, name: str) -> bool:
        """True while a job that waits or runs paints with the LoRA `name`."""
        with self._changed:
            jobs = [entry.job for entry in self._entries.values() if entry.job.active]
            return any(use.name == name for job in jobs for use in job.request.loras)

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
            names = set(self._painted.get(owner, ()))
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
                    return self._snapshot(entry)
                self._changed.wait(left)

    def close(self) -> None:
        """Stops the running job at its next step and ends the thread."""
        with self._changed:
            self._closed = True
            for entry in self._entries.values():
                entry.end()
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _snapshot(self, entry: _Entry) -> Job:
        if entry.job.state is JobState.WAITING and entry in (turn := self._in_turn()):
            running = sum(e.job.state is JobState.RUNNING for e in self._entries.values())
            return replace(entry.job, ahead=running + turn.index(entry))
        if entry.job.state is JobState.RUNNING and entry.job.started is not None:
            return replace(entry.job, seconds=time.monotonic() - entry.job.started)
        return entry.job

    def _forget(self) -> None:
        for passing in (False, True):
            mine = [(i, e) for i, e in self._entries.items() if e.passing is passing]
            ended = [job_id for job_id, entry in mine if not entry.job.active]
            for job_id in ended[: max(0, len(ended) - MAX_KEPT)]:
                del self._entries[job_id]

    def _next(self) -> _Entry | None:
        with self._changed:
            while not self._closed:
                for entry in self._in_turn()[:1]:
                    self._turns.had(entry.claim)
                    entry.job = replace(entry.job, state=JobState.RUNNING, started=time.monotonic())
                    return entry
                self._changed.wait()
        return None

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            self._run(entry)

    def _run(self, entry: _Entry) -> None:
        error: str | None = None
        # Another job of the same owner may have been the latest until now.
        self._remember(entry.job.owner)
        # Let go of with the job: it holds the whole request of the page.
        context, entry.context = entry.context or contextvars.copy_context(), None
        try:
            context.run(
                self._runner.paint,
                entry.job.request,
                report=lambda progress: self._update(entry, progress=_kept(entry, progress)),
                keep=lambda file: self._keep(entry, file),
                should_stop=entry.is_unwanted,
                upcoming=self._waiting(),
            )
        except StudioError as failure:
            error = str(failure)
        # One of the few outermost seams: a fault of ours must end this job and not the queue.
        except Exception as failure:
            log.exception("job %s failed", entry.job.id)
            error = f"Painting failed through a fault of the studio ({failure!r:.200})."
        done = len(entry.job.pictures) == entry.job.request.count
        state = JobState.FAILED if error else JobState.DONE if done else JobState.STOPPED
        started = entry.job.started or time.monotonic()
        self._update(entry, state=state, error=error, seconds=time.monotonic() - started)

    def _keep(self, entry: _Entry, file: PictureFile) -> None:
        with self._changed:
            if file.name in self._dropped:
                # Deleted between its last byte and this word of it: as if never asked for.
                fewer = {"count": max(1, entry.job.request.count - 1)}
                entry.job = replace(entry.job, request=entry.job.request.model_copy(update=fewer))
                return
            owner = entry.job.owner
            if not entry.passing:
                mine = self._painted.pop(owner, OrderedDict())
                bounded(self._painted, MAX_OWNERS)[owner] = bounded(mine, MAX_NAMES)
                mine[file.name] = None
        self._update(entry, pictures=(*entry.job.pictures, file))

    def _waiting(self) -> list[GenerationRequest]:
        with self._changed:
            return [entry.job.request for entry in self._in_turn()]

    def _update(self, entry: _Entry, **changes: object) -> None:
        with self._changed:
            entry.job = replace(entry.job, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()
        if "pictures" in changes:
            self._remember(entry.job.owner)

    def _remember(self, owner: str) -> None:
        with self._persistence(owner):
            self._write_latest(owner)

    def _persistence(self, owner: str) -> threading.Lock:
        return self._persisting[hash(owner) % _LOCKS]

    def _write_latest(self, owner: str) -> None:
        """Keeps what `latest` would tell now; the owner's lock is held: none is overtaken."""
        with self._changed:
            entry = self._latest(owner)
            job = entry.job if entry is not None else None
        if self._last_jobs is None or (entry is not None and entry.passing):
            return
        if job is None:
            self._last_jobs.forget(owner)
        else:
            self._last_jobs.save(owner, job.request, job.pictures)


def _restored(owner: str, request: GenerationRequest, pictures: tuple[PictureFile, ...]) -> Job:
    whole = len(pictures) == request.count
    # How many there are is told, and may change, with the state.
    none = "" if pictures else "; none was finished"
    return Job(
        id=uuid.uuid4().hex,
        owner=owner,
        request=request,
        state=JobState.DONE if whole else JobState.FAILED,
        pictures=pictures,
        error=None if whole else f"The studio was restarted while it painted{none}.",
        seconds=sum(picture.seconds for picture in pictures),
    )


def _kept(entry: _Entry, progress: Progress) -> Progress:
    """`progress` with the last preview of the same picture, so that it stays while decoding."""
    before = entry.job.progress
    if progress.preview is not None or before is None or before.picture != progress.picture:
        return progress
    return replace(progress, preview=before.preview)
