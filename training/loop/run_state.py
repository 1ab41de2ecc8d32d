"""What a training remembers of itself besides tensors, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(kw_only=True)
class RunState:
    """What a checkpoint remembers besides tensors.

    `validated` is the last update whose validation `best`, `best_step` and `waited` know of.
    """

    step: int = 0
    bad: int = 0
    bad_total: int = 0
    rollbacks: int = 0
    lr_scale: float = 1.0
    best: float = math.inf
    best_step: int = -1
    waited: int = 0
    validated: int = -1
    world: int = 1


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a training ended: "finished", "stopped" or "patience" and after how many updates."""

    reason: str
    step: int
