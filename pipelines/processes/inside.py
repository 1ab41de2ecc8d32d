"""A child process from the inside: its pipe, its log, and how it hears that it should stop."""

from __future__ import annotations

import _thread
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipelines import streams
from pipelines.errors import StudioError, WorkerError, printable
from pipelines.processes.leaving import leave
from pipelines.processes.wire import Message, error_fields

_MAX_LOG_BYTES = 5_000_000
# Raises KeyboardInterrupt also out of a call that waits; SIGINT itself is masked (`child`).
_WAKING: int | None = getattr(signal, "SIGUSR1", None)


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What is said of a kind of child process.

    `name` is that of the process, `what` begins a sentence ("The import"). What it prints goes to
    `log`, where there is one. One that `serves` gets orders until the studio goes away; any other
    does one piece of work and ends. One that `saves` what it has done looks itself whether it
    should stop (`ParentPipe.stopping`); any other is interrupted wherever it is.
    """

    name: str
    what: str
    log: Path | None = None
    serves: bool = False
    saves: bool = False

    @property
    def details(self) -> str:
        """Where the reason of a failure may be found; "" where nowhere."""
        return f"The reason may be in {self.log}." if self.log is not None else ""


class ParentPipe:
    """What a child process has of the studio. Every method may be called from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """From now on the work should stop."""
        self._stop.set()

    def stopping(self) -> bool:
        """Whether the studio wants it to stop, or is gone."""
        return self._stop.is_set()

    def tell(self, event: str, **values: Any) -> None:
        """Sends an event. Raises OSError where the studio is gone."""
        with self._sending:
            self._connection.send_bytes(json.dumps({"event": event, **values}).encode())

    def orders(self) -> Iterator[Message]:
        """Yields what the studio orders; ends with the order to quit, or with the studio."""
        with suppress(EOFError, OSError):
            while (order := json.loads(self._connection.recv_bytes()))["do"] != "quit":
                yield order


Work = Callable[..., Any]
"""A function at the top of a module: (pipe, *arguments of JSON's kinds) -> a result of JSON's."""


def main(connection: Connection, spec: ChildSpec, work: Work, args: tuple[Any, ...]) -> None:
    """What the new process runs."""
    # Ctrl+C in a terminal reaches every process of the group; the studio decides what it means.
    # Where there are no masks (`child`), one that does one piece of work hears it as a stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN if spec.serves else signal.default_int_handler)
    if spec.log is not None:
        log_to(spec.log)
    pipe = ParentPipe(connection)
    if spec.serves:
        work(pipe, *args)
        leave(0)
        return
    if _WAKING is not None:
        signal.signal(_WAKING, signal.default_int_handler)
    threading.Thread(target=_obey, args=(pipe, spec), daemon=True).start()
    # The studio may be gone, and then nobody wants to know.
    with suppress(OSError):
        try:
            _do(pipe, spec, work, args)
        except KeyboardInterrupt:
            pipe.tell("stopped")
    leave(0)


def _do(pipe: ParentPipe, spec: ChildSpec, work: Work, args: tuple[Any, ...]) -> None:
    try:
        result = work(pipe, *args)
    except StudioError as error:
        pipe.tell("failed", **error_fields(error))
    except BrokenPipeError:
        raise
    # One of the few outermost seams: a fault of ours must not end without a word.
    except Exception as error:
        logging.exception("%s failed", spec.name)
        said = f"{spec.what} failed through a fault of the studio ({printable(error, 160)})."
        pipe.tell("failed", **error_fields(WorkerError(said, spec.details)))
    else:
        pipe.tell("done", result=result)


def _obey(pipe: ParentPipe, spec: ChildSpec) -> None:
    """Ends the work where the studio asks for it, or is gone; drafts are swept on the way out."""
    for _ in pipe.orders():
        break
    pipe.stop()
    if spec.saves:
        return
    main_thread = threading.main_thread().ident
    if _WAKING is not None and main_thread is not None:
        signal.pthread_kill(main_thread, _WAKING)
    else:
        _thread.interrupt_main()


def log_to(file: Path) -> None:
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
    sys.stdout = sys.stderr = streams.escaping(stream)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
