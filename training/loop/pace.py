"""How fast a training goes, how long it takes still, and its smoothed losses."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pipelines.progress import Progress, Stage

_SMOOTH = 0.98


class Pace:
    """Of one sitting: it begins anew when a run is resumed."""

    def __init__(self, *, total: int, pictures_per_update: int) -> None:
        self._total = total
        self._per_update = pictures_per_update
        self._losses: dict[str, float] = {}
        self.begin(0)

    def begin(self, step: int) -> None:
        """The sitting begins behind update `step`."""
        self._first = step
        self._started = time.perf_counter()

    def add(self, losses: Mapping[str, float]) -> None:
        """The losses of one update."""
        for name, value in losses.items():
            before = self._losses.get(name, value)
            self._losses[name] = _SMOOTH * before + (1 - _SMOOTH) * value

    def told(self, step: int) -> dict[str, float]:
        """Pictures so far, pictures per second, seconds left: for the log of the run."""
        done = step - self._first
        seconds = max(1e-6, time.perf_counter() - self._started)
        return {
            "pictures": step * self._per_update,
            "pictures_per_second": round(done * self._per_update / seconds, 2),
            "seconds_left": round(self._left(step)) if done else 0,
        }

    def _left(self, step: int) -> float:
        seconds = time.perf_counter() - self._started
        return (self._total - step) * seconds / max(1, step - self._first)

    def progress(self, stage: Stage, step: int) -> Progress:
        """What is shown to people."""
        return Progress(
            stage=stage,
            done=step * self._per_update,
            total=self._total * self._per_update,
            seconds_left=self._left(step) if step > self._first else None,
            note=f"loss {self._losses['loss']:.4f}" if "loss" in self._losses else "",
        )
