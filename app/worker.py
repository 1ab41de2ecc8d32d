"""The engine in a process of its own, spoken to by JSON messages. The page never imports torch.

Page -> worker: {"do": "paint", "job": id, "request": {...}} or {"do": "stop", "job": id}.
Worker -> page: {"event": "phase" | "progress" | "picture" | "failed" | "done", ...}.
A worker that dies is noticed, said and replaced.
"""

from __future__ import annotations

import base64
import json
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from app.gallery import Gallery, PictureFile
from app.runner import Keep, LocalRunner
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.errors import StudioError, WorkerError, printable
from pipelines.memory import share_processor
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest, from_mapping

Phase = Literal["starting", "loading", "ready", "painting", "lost"]
Message = dict[str, Any]
_MAX_LOG_BYTES = 5_000_000
# A worker that dies this soon after its start would only die again.
_QUICK_DEATH_SECONDS = 20.0
_MAX_QUICK_DEATHS = 3
_POLL_SECONDS = 0.05
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What the painting process does. `device` is "" while unknown; `message` one sentence."""

    phase: Phase = "starting"
    device: str = ""
    message: str = ""
    restarts: int = 0


class WorkerRunner:
    """The page's side: keeps one worker alive and gives it one request at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Connection | None = None
        self._inbox: queue.Queue[Message] | None = None
        self._state = EngineState()
        self._preload: str | None = None
        self._started_at = 0.0
        self._quick_deaths = 0
        self._closed = False

    @property
    def state(self) -> EngineState:
        """A snapshot."""
        with self._lock:
            return self._state

    def start(self, preload: str | None = None) -> None:
        """Starts the worker, unless one runs; it loads `preload` behind the page."""
        with self._lock:
            if self._closed or self._process is not None:
                return
            self._preload = preload or self._preload
            self._state = replace(self._state, phase="starting")
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=main,
                args=(theirs, str(self._settings.workspace), self._preload),
                name="pixart-worker",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._process, self._connection = process, ours
            self._started_at = time.monotonic()
        threading.Thread(
            target=self._listen, args=(process, ours), name="worker-listener", daemon=True
        ).start()

    def close(self) -> None:
        """Ends the worker."""
        with self._lock:
            self._closed = True
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join(timeout=2)

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
    ) -> None:
        """See Runner.paint. Raises WorkerError when the worker dies meanwhile."""
        with self._one_at_a_time:
            self.start()
            inbox: queue.Queue[Message] = queue.Queue()
            job = uuid.uuid4().hex
            with self._lock:
                self._inbox = inbox
            try:
                self._send({"do": "paint", "job": job, "request": request.model_dump(mode="json")})
                self._follow(job, inbox, report=report, keep=keep, should_stop=should_stop)
            finally:
                with self._lock:
                    self._inbox = None
                    if self._state.phase == "painting":
                        self._state = replace(self._state, phase="ready", message="")

    def _follow(
        self,
        job: str,
        inbox: queue.Queue[Message],
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
    ) -> None:
        asked = False
        while True:
            if not asked and should_stop():
                asked = True
                self._send({"do": "stop", "job": job})
            try:
                message = inbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            event = message["event"]
            if event == "lost":
                raise WorkerError(
                    message["message"], "A new one is starting; press Generate again."
                )
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

    def _send(self, message: Message) -> None:
        with self._lock:
            connection = self._connection
        try:
            if connection is None:
                raise OSError
            connection.send_bytes(json.dumps(message).encode())
        except (OSError, ValueError):
            # The listener sees the same death and puts "lost" into the inbox.
            if connection is None:
                raise WorkerError("The painting process could not be started.") from None

    def _listen(self, process: Any, connection: Connection) -> None:
        try:
            while True:
                self._receive(json.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        process.join(timeout=5)
        with self._lock:
            if self._closed or self._process is not process:
                return
            self._process = self._connection = None
            lived = time.monotonic() - self._started_at
            self._quick_deaths = self._quick_deaths + 1 if lived < _QUICK_DEATH_SECONDS else 0
            again = self._quick_deaths < _MAX_QUICK_DEATHS
            said = f"The painting process ended unexpectedly ({_cause(process.exitcode)})."
            log.warning(said)
            hint = "A new one is starting." if again else f"See {self._settings.logs}/worker.log."
            self._state = EngineState(
                phase="lost", message=f"{said} {hint}", restarts=self._state.restarts + 1
            )
            inbox = self._inbox
        if again:
            self.start()
        if inbox is not None:
            inbox.put({"event": "lost", "message": said})

    def _receive(self, message: Message) -> None:
        with self._lock:
            if message["event"] == "phase":
                self._state = replace(
                    self._state,
                    phase=message["phase"],
                    device=message.get("device", self._state.device),
                    message=message.get("message", ""),
                )
            elif message["event"] == "progress":
                self._state = replace(self._state, phase="painting", message="")
            inbox = self._inbox
        if inbox is not None:
            inbox.put(message)


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "it does not answer"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name if -exit_code in list(signal.Signals) else "signal"
        lack = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{lack}"
    return f"exit code {exit_code}"


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
    )


# --- the worker's side -------------------------------------------------------------------------


def main(connection: Connection, workspace: str, preload: str | None) -> None:
    """Runs in the worker process until the page goes away."""
    # Ctrl+C in a terminal reaches every process of the group; the page decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings(workspace=Path(workspace))
    _log_to(settings.logs / "worker.log")
    _Worker(connection, settings).run(preload)


class _Worker:
    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._sending = threading.Lock()
        self._orders: queue.Queue[Message] = queue.Queue()
        self._stopped: set[str] = set()

    def run(self, preload: str | None) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        share_processor()
        # Here and not above: only this process may load torch.
        from pipelines.engine import Engine

        catalog = Catalog(user_models=self._settings.models)
        engine = Engine(catalog, inputs=self._settings.inputs)
        runner = LocalRunner(engine, Gallery(self._settings.outputs))
        self._send(event="phase", phase="loading", device=engine.machine.name)
        said = ""
        if preload is not None:
            try:
                engine.load(preload, lambda progress: None)
            except StudioError as error:
                said = str(error)
        self._send(event="phase", phase="ready", message=said)
        while True:
            order = self._orders.get()
            # A model may have been installed since.
            catalog.reload()
            self._paint(runner, order["job"], from_mapping(order["request"]))

    def _read(self) -> None:
        try:
            while True:
                order = json.loads(self._connection.recv_bytes())
                if order["do"] == "stop":
                    self._stopped.add(order["job"])
                else:
                    self._orders.put(order)
        except (EOFError, OSError):
            # The page is gone. Nothing is lost: finished pictures are on disk.
            os._exit(0)

    def _paint(self, runner: LocalRunner, job: str, request: GenerationRequest) -> None:
        def report(progress: Progress) -> None:
            values = asdict(progress)
            preview = progress.preview
            values["preview"] = base64.b64encode(preview).decode() if preview else None
            self._send(event="progress", job=job, progress=values)

        def keep(file: PictureFile) -> None:
            request = file.request.model_dump(mode="json")
            self._send(
                event="picture", job=job, path=str(file.path), request=request, seconds=file.seconds
            )

        try:
            runner.paint(
                request, report=report, keep=keep, should_stop=lambda: job in self._stopped
            )
        except StudioError as error:
            self._send(event="failed", job=job, message=error.message, way_out=error.way_out)
        # The outermost seam of this process: our own fault ends the job, not the worker.
        except Exception as error:
            logging.exception("job %s failed", job)
            self._send(
                event="failed",
                job=job,
                message=f"Painting failed through a fault of the studio ({printable(error, 160)}).",
                way_out=f"The details are in {self._settings.logs / 'worker.log'}.",
            )
        else:
            self._send(event="done", job=job)
        self._stopped.discard(job)

    def _send(self, **message: Any) -> None:
        with self._sending:
            self._connection.send_bytes(json.dumps(message).encode())


def _log_to(file: Path) -> None:
    """Sends everything that this process prints, also from C code, to `file`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.stat().st_size > _MAX_LOG_BYTES:
            file.replace(file.with_suffix(".old.log"))
        stream = open(file, "a", encoding="utf-8", buffering=1)
    except OSError:
        # A full or read-only disk must not keep the studio from starting.
        stream = open(os.devnull, "w", encoding="utf-8")
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    logging.basicConfig(stream=stream, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
