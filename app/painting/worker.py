"""The page's side of the painting process: keeps one alive and gives it one request at a time.

Page -> worker: {"do": "paint", "job", "request", "upcoming"}, {"do": "stop", "job"},
{"do": "quit"}.
Worker -> page: {"event": "phase" | "progress" | "picture" | "failed" | "done", ...}.
A worker that dies is noticed, said and replaced. `painting.py` is the other side.
"""

from __future__ import annotations

import base64
import json
import logging
import multiprocessing
import queue
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from app.gallery.pictures import PictureFile
from app.painting import process as painting
from app.painting.runner import Keep
from app.settings import Settings
from pipelines.errors import OutOfMemoryError, StudioError, WorkerError, cause_of_death
from pipelines.memory import address_space
from pipelines.memory.planning import Machine
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest, from_mapping

WorkerPhase = Literal["starting", "loading", "ready", "painting", "lost"]
Message = dict[str, Any]
# A worker that dies this soon after its start would only die again.
_QUICK_DEATH_SECONDS = 20.0
_MAX_QUICK_DEATHS = 3
_POLL_SECONDS = 0.05
# A step of the largest model on a slow processor stays below this; a hung card does not.
_STOP_SECONDS = 120.0
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


@dataclass(frozen=True)
class _Link:
    """One worker process and the pipe to it."""

    process: Any
    connection: Connection
    started: float

    def send(self, message: Message) -> None:
        """Raises OSError when the worker is gone."""
        self.connection.send_bytes(json.dumps(message).encode())


class WorkerRunner:
    """A `Runner` over a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._listener: threading.Thread | None = None
        self._inbox: queue.Queue[Message] | None = None
        self._state = EngineState()
        self._preload: str | None = None
        self._quick_deaths = 0
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
            if self._closed or self._link is not None:
                return
            if lack := _lack():
                self._state = replace(self._state, phase="lost", message=lack)
                return
            self._preload = preload or self._preload
            # A model whose loading killed the worker must not kill the next one too.
            wanted = self._preload if self._quick_deaths == 0 else None
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=painting.main,
                args=(theirs, str(self._settings.workspace), wanted),
                name="pixart-worker",
                daemon=True,
            )
            try:
                process.start()
            except OSError as error:
                ours.close()
                theirs.close()
                message = f"The painting process could not be started ({error.strerror})."
                self._state = replace(self._state, phase="lost", message=message)
                return
            theirs.close()
            self._state = replace(self._state, phase="starting")
            link = self._link = _Link(process, ours, time.monotonic())
            self._listener = threading.Thread(
                target=self._listen, args=(link,), name="worker-listener", daemon=True
            )
            self._listener.start()

    def close(self) -> None:
        """Ends the worker; a job that still runs fails with a sentence."""
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
            inbox, listener = self._inbox, self._listener
        if inbox is not None:
            inbox.put({"event": "lost", "message": "The studio is closing.", "way_out": ""})
        if link is None or listener is None:
            return
        try:
            link.send({"do": "quit"})
        except OSError:
            log.info("the worker had ended before it was told to")
        # Only the listener waits for the process: of two that wait, one may miss its exit code.
        listener.join(timeout=5)
        if listener.is_alive():
            link.process.kill()
            listener.join(timeout=5)

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
                link, self._inbox = self._link, inbox
                said = self._state.message
            try:
                if link is None:
                    raise WorkerError(said or "The painting process could not be started.")
                requests = [one.model_dump(mode="json") for one in (request, *upcoming)]
                _tell(
                    link,
                    {
                        "do": "paint",
                        "job": job,
                        "request": requests[0],
                        "upcoming": requests[1 : 1 + _UPCOMING],
                    },
                )
                self._follow(link, job, inbox, report=report, keep=keep, should_stop=should_stop)
            finally:
                with self._lock:
                    self._inbox = None
                    if self._state.phase == "painting":
                        self._state = replace(self._state, phase="ready", message="")

    def _follow(
        self,
        link: _Link,
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
                _tell(link, {"do": "stop", "job": job})
            if asked is not None and time.monotonic() - asked > _STOP_SECONDS:
                link.process.kill()
            try:
                message = inbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            event = message["event"]
            if event == "lost":
                if asked is not None and time.monotonic() - asked > _STOP_SECONDS:
                    return
                raise WorkerError(message["message"], message["way_out"])
            if message.get("job") != job:
                continue
            if event == "progress":
                report(_progress(message))
            elif event == "picture":
                keep(_picture(message))
            elif event == "failed":
                raise StudioError(message["message"], message["way_out"])
            elif event == "done":
                return

    def _listen(self, link: _Link) -> None:
        try:
            while True:
                self._receive(json.loads(link.connection.recv_bytes()))
        except (EOFError, OSError):
            link.connection.close()
        link.process.join(timeout=5)
        with self._lock:
            if self._closed or self._link is not link:
                return
            self._link = None
            quick = time.monotonic() - link.started < _QUICK_DEATH_SECONDS
            self._quick_deaths = self._quick_deaths + 1 if quick else 0
            again = self._quick_deaths < _MAX_QUICK_DEATHS
            cause = cause_of_death(link.process.exitcode)
            said = f"The painting process ended unexpectedly ({cause})."
            log.warning(said)
            where = f"The reason may be in {self._settings.logs / 'worker.log'}."
            self._state = EngineState(
                phase="lost",
                message=f"{said} {'A new one is starting.' if again else where}",
                restarts=self._state.restarts + 1,
            )
            if self._inbox is not None:
                # Read long after it was said: nothing in it may become untrue.
                way_out = "Press Generate again." if again else where
                self._inbox.put({"event": "lost", "message": said, "way_out": way_out})
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


def _lack() -> str:
    """Why no painting process can live here; "" where one can."""
    try:
        address_space.check(address_space.TORCH)
    except OutOfMemoryError as error:
        return f"Nothing can be painted. {error}"
    return ""


def _tell(link: _Link, message: Message) -> None:
    try:
        link.send(message)
    except OSError:
        # The listener sees the same death, and says it.
        log.info("the worker is gone")


def _progress(message: Message) -> Progress:
    values = dict(message["progress"])
    preview = values.pop("preview")
    values["stage"] = Stage(values["stage"])
    return Progress(**values, preview=base64.b64decode(preview) if preview else None)


def _picture(message: Message) -> PictureFile:
    return PictureFile(
        path=Path(message["path"]),
        request=from_mapping(message["request"]),
        seconds=message["seconds"],
        weights=message["weights"],
        peak=message["peak"],
        forecast=message["forecast"],
    )
