"""Stands for the package `spaces` of ZeroGPU where a test puts this folder on the path.

What matters of the real one is kept: it imports gradio; the decorator hands out a generator; each
call asks for the card in the name of the event's visitor and for so many seconds; a fork of this
process runs the function, so what goes in and comes out is pickled and nothing else comes back; the
fork is used again by later calls; closing the generator reaches the function after its next yield;
a fork that dies, and a visitor without time, are errors of gradio. What happened is written to the
file $FAKE_SPACES_LOG; while a file with “.refuse” at its end exists, nobody gets the card.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import gradio as gr
from gradio.context import LocalContext

_context = multiprocessing.get_context("fork")


def _write(**facts: Any) -> None:
    with open(os.environ["FAKE_SPACES_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(facts) + "\n")


# gradio does not load torch: whoever did was here before this package.
_write(imported=True, torch="torch" in sys.modules, temp=os.environ.get("GRADIO_TEMP_DIR"))


_wrapped = {"handlers": True}


def disable_gradio_auto_wrap() -> None:
    _wrapped["handlers"] = False


def gradio_auto_wrap(task: Any) -> Any:
    """gradio asks this for every handler of a page on a Space."""
    return GPU(task) if _wrapped["handlers"] and callable(task) else task


class _Fork:
    """A process with the card, which waits for calls."""

    def __init__(self, task: Callable[..., Iterator[Any]]) -> None:
        self.orders: Any = _context.SimpleQueue()
        self.answers: Any = _context.Queue()
        self.stop = _context.Event()
        self.process = _context.Process(target=self._serve, args=(task,), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()

    def _serve(self, task: Callable[..., Iterator[Any]]) -> None:
        # What the page does on this signal is inherited.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            arguments = self.orders.get()
            self.stop.clear()
            # The real one iterates in a thread, too.
            thread = threading.Thread(target=self._iterate, args=(task, arguments))
            thread.start()
            thread.join()
            self.answers.put(("end", None))

    def _iterate(self, task: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
        running = task(*arguments)
        while True:
            try:
                value = next(running)
            except StopIteration:
                return
            except Exception as error:
                self.answers.put(("error", type(error).__name__))
                return
            if self.stop.is_set():
                running.close()  # type: ignore[attr-defined]
                return
            self.answers.put(("value", value))

    def next(self) -> tuple[str, Any]:
        while True:
            try:
                return self.answers.get(timeout=0.2)
            except queue.Empty:
                if not self.process.is_alive():
                    return "dead", None


def GPU(task: Any = None, *, duration: Any = None, size: str | None = None) -> Any:
    """The decorator."""
    if task is None:
        return partial(GPU, duration=duration, size=size)
    assert inspect.isgeneratorfunction(task)
    idle: list[_Fork] = []

    @wraps(task)
    def lend(*arguments: Any) -> Iterator[Any]:
        request = LocalContext.request.get(None)
        visitor = request.headers.get("x-ip-token") if request is not None else None
        seconds = duration(*arguments) if callable(duration) else duration
        if os.path.exists(os.environ["FAKE_SPACES_LOG"] + ".refuse"):
            raise gr.Error("You have exceeded your free ZeroGPU quota (60s requested vs. 1s left).")
        fork = idle.pop() if idle and idle[-1].process.is_alive() else _Fork(task)
        _write(lent=seconds, visitor=visitor, fork=fork.process.pid)
        fork.orders.put(arguments)
        while True:
            kind, value = fork.next()
            if kind == "end":
                idle.append(fork)
                return
            if kind == "dead":
                raise gr.Error("GPU task aborted", print_exception=False)
            if kind == "error":
                raise gr.Error(value, print_exception=False)
            try:
                yield value
            except GeneratorExit:
                # Waits for the end, as the real one does, and then ends.
                fork.stop.set()
                while fork.next()[0] == "value":
                    pass
                idle.append(fork)
                raise

    return lend
