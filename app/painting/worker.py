"""The page's side of the painting process: keeps one alive and gives it one request at a time.

Page -> worker: {"do": "paint", "job", "request", "upcoming"}, {"do": "stop", "job"}.
Worker -> page: {"event": "phase" | "progress" | "picture" | "failed" | "done", ...}.
A worker that dies is noticed, said and replaced. `process.py` is the other side; what every child
process has in common lies in `pipelines.processes`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from app.gallery.pictures import PictureFile
from app.painting import process as painting
from app.painting.runner import Keep
from app.settings import Settings
from pipelines.errors import OutOfMemoryError, ProcessDeathError, StudioError, WorkerError
from pipelines.memory import address_space
from pipelines.memory.planning import Machine
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec
from pipelines.processes.wire import Message, error_fields, error_of, progress_of
from pipelines.progress import Report, ShouldStop
from pipelines.request import GenerationRequest

WorkerPhase = Literal["starting", "loading", "ready", "painting", "lost", "lent"]
# A worker that dies this soon after its start would only die again.
_QUICK_DEATH_SECONDS = 20.0
_MAX_QUICK_DEATHS = 3
_POLL_SECONDS = 0.05
# A step of the largest model on a slow processor stays below this; a hung GPU does not.
_STOP_SECONDS = 120.0
# In which the worker writes a finished picture before it goes (`process`), and a little more.
_CLOSE_SECONDS = 5.0
# So many waiting jobs have their texts encoded along with the first one's.
_UPCOMING = 50
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What the painting process does. `device` is "" while unknown; `message` one sentence.

    `machine` is what it found, with the memory that was free before a model was loaded; None while
    unknown.
    """

    phase: WorkerPhase = "starting"
    device: str = ""
    message: str = ""
    restarts: int = 0
    machine: Machine | None = None


class WorkerRunner:
    """A `Runner` over a process of its own.

    `born` hears the number of each new process before it gets any work.
    """

    def __init__(self, settings: Settings, born: Callable[[int], None] = lambda pid: None) -> None:
        self._settings = settings
        self._born = born
        self._spec = ChildSpec(
            name="pixart-worker",
            what="The painting process",
            log=settings.logs / "worker.log",
            serves=True,
        )
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._listener: threading.Thread | None = None
        self._inbox: queue.Queue[Message] | None = None
        self._state = EngineState()
        self._preload: str | None = None
        self._quick_deaths = 0
        # True while another kind of job has the device, and after the end.
        self._away = False
        self._closed = False

    @property
    def state(self) -> EngineState:
        """A snapshot."""
        with self._lock:
            return self._state

    def start(self, preload: str | None = None) -> None:
        """Starts the worker, unless one runs; it loads `preload` behind the page.

        Where the system refuses a new process, the state says so.
        """
        with self._lock:
            if self._away or self._child is not None:
                return
            if problem := _too_little_memory():
                self._state = replace(self._state, phase="lost", message=problem)
                return
            self._preload = preload or self._preload
            # A model whose loading killed the worker must not kill the next one too.
            wanted = self._preload if self._quick_deaths == 0 else None
            try:
                child = Child.start(
                    self._spec, painting.main, str(self._settings.workspace), wanted
                )
            except WorkerError as error:
                self._state = replace(self._state, phase="lost", message=error.message)
                return
            self._state = replace(self._state, phase="starting")
            self._child = child
            self._listener = threading.Thread(
                target=self._listen, args=(child,), name="worker-listener", daemon=True
            )
            self._born(child.pid)
            self._listener.start()

    def close(self) -> None:
        """Ends the worker; a job that still runs fails with a sentence."""
        with self._lock:
            self._closed = True
            inbox = self._inbox
        if inbox is not None:
            inbox.put(_lost(WorkerError("The studio is closing.")))
        self._give_up()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Gives the device up for the block, once what is being painted is finished.

        The process ends, so that nothing of it is left on the device, not even its context; a new
        one starts after the block.
        """
        with self._one_at_a_time:
            self._give_up()
            with self._lock:
                words = "The device is lent to another job; painting goes on after it."
                self._state = replace(self._state, phase="lent", message=words)
            try:
                yield
            finally:
                with self._lock:
                    self._away = self._closed
                    self._state = replace(self._state, message="")
                self.start()

    def _give_up(self) -> None:
        """Ends the process; none is started any more."""
        with self._lock:
            self._away = True
            child, self._child = self._child, None
            listener = self._listener
        if child is not None and listener is not None:
            child.end(_CLOSE_SECONDS)
            listener.join(timeout=_CLOSE_SECONDS)

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        """See Runner.paint. Raises WorkerError when the worker dies meanwhile."""
        with self._one_at_a_time:
            self.start()
            inbox: queue.Queue[Message] = queue.Queue()
            job = uuid.uuid4().hex
            # Taken together: the death of exactly this worker is what this inbox hears about.
            with self._lock:
                child, self._inbox = self._child, inbox
                said = self._state.message
            try:
                if child is None:
                    raise WorkerError(said or "The painting process could not be started.")
                requests = [one.model_dump(mode="json") for one in (request, *upcoming)]
                child.order(
                    "paint", job=job, request=requests[0], upcoming=requests[1 : 1 + _UPCOMING]
                )
                self._follow(child, job, inbox, report=report, keep=keep, should_stop=should_stop)
            finally:
                with self._lock:
                    self._inbox = None
                    if self._state.phase == "painting":
                        self._state = replace(self._state, phase="ready", message="")

    def _follow(
        self,
        child: Child,
        job: str,
        inbox: queue.Queue[Message],
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
    ) -> None:
        asked: float | None = None
        while True:
            if asked is None and should_stop():
                asked = time.monotonic()
                child.order("stop", job=job)
            hangs = asked is not None and time.monotonic() - asked > _STOP_SECONDS
            if hangs:
                child.kill()
            try:
                message = inbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            event = message["event"]
            if event == "lost":
                if hangs:
                    return
                raise error_of(message)
            if message.get("job") != job:
                continue
            if event == "progress":
                report(progress_of(message["progress"]))
            elif event == "picture":
                keep(PictureFile.from_json(message["file"]))
            elif event == "failed":
                raise error_of(message)
            elif event == "done":
                return

    def _listen(self, child: Child) -> None:
        try:
            while True:
                message = child.receive()
                if message is not None:
                    self._receive(message)
        except EOFError:
            child.close()
        with self._lock:
            if self._child is not child:
                return
            self._child = None
            quick = time.monotonic() - child.started < _QUICK_DEATH_SECONDS
            self._quick_deaths = self._quick_deaths + 1 if quick else 0
            again = self._quick_deaths < _MAX_QUICK_DEATHS
            death = child.death()
            log.warning(death.message)
            self._state = EngineState(
                phase="lost",
                message=f"{death.message} {'A new one is starting.' if again else death.way_out}",
                restarts=self._state.restarts + 1,
            )
            if self._inbox is not None:
                # Read long after it was said: nothing in it may become untrue.
                way_out = "Press Generate again." if again else death.way_out
                self._inbox.put(_lost(ProcessDeathError(death.message, way_out)))
        if again:
            self.start()

    def _receive(self, message: Message) -> None:
        with self._lock:
            if "machine" in message:
                self._state = replace(self._state, machine=Machine(**message["machine"]))
            if message["event"] == "phase":
                self._state = replace(
                    self._state,
                    phase=message["phase"],
                    device=message.get("device", self._state.device),
                    message=message.get("message", ""),
                )
            elif message["event"] == "progress":
                self._state = replace(self._state, phase="painting", message="")
            elif message["event"] == "done":
                # It can paint: the next death is a new story.
                self._quick_deaths = 0
            inbox = self._inbox
        if inbox is not None:
            inbox.put(message)


def _too_little_memory() -> str:
    """Why no painting process can live here; "" where one can."""
    try:
        address_space.check(address_space.TORCH)
    except OutOfMemoryError as error:
        return f"Nothing can be painted. {error}"
    return ""


def _lost(error: StudioError) -> Message:
    return {"event": "lost", **error_fields(error)}
