"""A stop that somebody asks for from outside, by Ctrl+C or SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from training.run import is_first_process

INTERRUPTED = 130
"""The exit code of a command that was stopped and goes on when it is given again."""


def stop_on_signals() -> threading.Event:
    """The first Ctrl+C or SIGTERM asks for a checkpoint and an end, the second Ctrl+C ends."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.is_set() and is_first_process():
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nStopping behind this step; the same command goes on from there.\n")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop
