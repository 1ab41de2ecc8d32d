"""The toy training in a process of its own: a folder, and settings of the form key=value.

The milliseconds after `slow=` are slept between updates. With `hold=N` it waits for ever once it
has seen so many pictures, so that a test can kill it there; with `die=N` it kills itself as its
validation number N begins. `patience=` is that of the validation.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from pipelines.progress import Progress, Stage
from tests.training.loop import toy


def main(folder: str, *settings: str) -> None:
    """Trains, and writes a line to stdout for every update."""
    torch.set_num_threads(1)
    changes: dict[str, Any] = {
        key: int(value) for key, _, value in (s.partition("=") for s in settings)
    }
    changes["shard"] = bool(changes.get("shard"))
    slow, hold = changes.pop("slow", 0) / 1000, changes.pop("hold", math.inf)
    validations = changes.pop("die", 0)
    if "patience" in changes:
        changes["validation"] = {"every": 5, "patience": changes.pop("patience")}
        changes["optimizer"] = {"lr": 1e-12}

    def report(progress: Progress) -> None:
        nonlocal validations
        if progress.stage is Stage.VALIDATING:
            validations -= 1
            if validations == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if progress.stage is Stage.TRAINING:
            print(progress.done, flush=True)
            time.sleep(slow)
            if progress.done >= hold:
                threading.Event().wait()

    toy.go(Path(folder), toy.config(**changes), report=report)
