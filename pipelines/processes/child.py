"""A child process from the studio's side: the one way to start, follow, stop and bury one.

A child is started with `spawn`, spoken to in JSON over a pipe (`wire`) and runs `inside.main`. It
ends with the studio, whatever ends the studio: its pipe closes. Stopping goes in three steps, each
with its time: it is asked, then SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection as pipes
from multiprocessing import resource_tracker
from typing import Any

from pipelines.errors import ProcessDeathError, WorkerError, cause_of_death, printable
from pipelines.processes import inside
from pipelines.processes.inside import ChildSpec, Work
from pipelines.processes.wire import Message, error_of
from pipelines.progress import ShouldStop

STOP_SECONDS = 15.0
"""What a child that was asked to stop may take; a tensor of the largest model is read in less."""
TERMINATE_SECONDS = 2.0
_POLL_SECONDS = 0.05
OnEvent = Callable[[Message], None]


class Child:
    """A process of the studio that was started. Any thread may call any method."""

    def __init__(self, spec: ChildSpec, process: Any, connection: pipes.Connection) -> None:
        self.spec = spec
        self.started = time.monotonic()
        self._process = process
        self._connection = connection
        self._sending = threading.Lock()
        # Of two that wait for a process at once, one may miss its exit code.
        self._reaping = threading.Lock()

    @classmethod
    def start(cls, spec: ChildSpec, work: Work, *args: Any) -> Child:
        """Runs `work(pipe, *args)` in a new process. Raises WorkerError where none can be had."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=inside.main, args=(theirs, spec, work, args), name=spec.name, daemon=True
        )
        try:
            with _without_interrupts():
                process.start()
        except OSError as error:
            ours.close()
            said = printable(error.strerror or error, 80)
            raise WorkerError(f"{spec.what} could not be started ({said}).") from None
        finally:
            theirs.close()
        return cls(spec, process, ours)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return int(self._process.pid)

    @property
    def exitcode(self) -> int | None:
        """How it ended; None while it lives."""
        with self._reaping:
            code: int | None = self._process.exitcode
            return code

    def order(self, do: str, **values: Any) -> None:
        """Sends an order; nothing where the process is gone, which `receive` tells."""
        with suppress(OSError), self._sending:
            self._connection.send_bytes(json.dumps({"do": do, **values}).encode())

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next event; None after so many seconds without one.

        Raises EOFError where the process is gone.
        """
        try:
            if seconds is not None and not self._connection.poll(seconds):
                return None
            message: Message = json.loads(self._connection.recv_bytes())
            return message
        except OSError:
            raise EOFError from None

    def wait(self, seconds: float | None) -> bool:
        """True once it has ended; False after so many seconds."""
        if not pipes.wait([self._process.sentinel], seconds):
            return False
        with self._reaping:
            self._process.join(1)
        return True

    def kill(self) -> None:
        """Ends it at once."""
        with self._reaping:
            self._process.kill()

    def end(self, patience: float = STOP_SECONDS) -> None:
        """Asks it to end, then SIGTERM, then SIGKILL; it is gone when this returns."""
        self.order("quit")
        if not self.wait(patience):
            with self._reaping:
                self._process.terminate()
            if not self.wait(TERMINATE_SECONDS):
                self.kill()
                self.wait(None)

    def close(self) -> None:
        """Ends it, if it has not ended, and lets go of its pipe."""
        # It has said its last word, or nobody wants to hear it.
        if not self.wait(TERMINATE_SECONDS):
            self.end(0)
        self._connection.close()

    def death(self) -> ProcessDeathError:
        """Its end, which nobody asked for, as a sentence."""
        cause = cause_of_death(self.exitcode)
        return ProcessDeathError(
            f"{self.spec.what} ended unexpectedly ({cause}).", self.spec.details
        )

    def follow(
        self,
        on_event: OnEvent,
        should_stop: ShouldStop = lambda: False,
        patience: float = STOP_SECONDS,
    ) -> Message | None:
        """Waits for the end of a piece of work, and calls `on_event` with each event before it.

        Returns {"result": ...}, or None where it was stopped. Raises what the work raised, and
        ProcessDeathError.
        """
        asked: float | None = None
        try:
            while True:
                if asked is None and should_stop():
                    asked = time.monotonic()
                    self.order("stop")
                if asked is not None and time.monotonic() - asked > patience:
                    self.end(0)
                message = self.receive(_POLL_SECONDS)
                if message is None:
                    continue
                match message["event"]:
                    case "done":
                        return message
                    case "failed":
                        raise error_of(message)
                    case "stopped":
                        return None
                    case _:
                        on_event(message)
        except EOFError:
            self.wait(TERMINATE_SECONDS)
            if asked is not None:
                return None
            raise self.death() from None


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A child that is started here is deaf to Ctrl+C from its first moment on.

    It reaches every process of a terminal, and the studio decides what it means.
    """
    if os.name != "posix":
        yield
        return
    # Otherwise started along with the child, which undoes the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
