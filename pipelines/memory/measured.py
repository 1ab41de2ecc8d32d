"""How much memory a piece of work really took, to be held against what was forecast."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

_INTERVAL = 0.005


@dataclass(kw_only=True)
class Peak:
    """The memory that a piece of work needed at its highest, in bytes above the start, and the
    seconds it took."""

    bytes: int = 0
    seconds: float = 0.0


def held(device: torch.device) -> int:
    """Bytes that this process holds now: tensors on a GPU, else the size of the process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Hands freed memory back to the system, where its library can (glibc).

    Otherwise what is measured next may find room in it, and seems to need less than it does.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def measured(
    device: torch.device, *, before: int | None = None, every: float = _INTERVAL
) -> Iterator[Peak]:
    """Measures the peak of what happens inside: the GPU's own count, else the process's size.

    `before` are the bytes that do not count, by default what is `held` at the start. A process is
    looked at `every` so many seconds; on a GPU no peak is missed.
    """
    start = held(device) if before is None else before
    peak = Peak()
    started = time.perf_counter()
    ended = threading.Event()
    watcher: threading.Thread | None = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        process = psutil.Process()

        def watch() -> None:
            while not ended.wait(every):
                peak.bytes = max(peak.bytes, process.memory_info().rss - start)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
    try:
        yield peak
    finally:
        peak.seconds = time.perf_counter() - started
        ended.set()
        if watcher is not None:
            watcher.join()
            peak.bytes = max(peak.bytes, held(device) - start)
        else:
            peak.bytes = int(torch.cuda.max_memory_allocated(device)) - start
