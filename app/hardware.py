"""What this computer has, and what a picture would need of it: numbers for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from app.model_jobs import free_bytes
from pipelines import forecast, numbers
from pipelines.catalog import ModelSpec
from pipelines.errors import ModelError
from pipelines.memory import Machine, Numbers, Wish


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Memory in bytes, 0 where unknown. `machine` is None until the painting process has told."""

    machine: Machine | None
    ram_total: int
    ram_free: int
    disk_free: int


def look(machine: Machine | None, workspace: Path) -> Hardware:
    """The computer as it is now; the card as the painting process found it."""
    ram = psutil.virtual_memory()
    return Hardware(
        machine=machine,
        ram_total=int(ram.total),
        ram_free=int(ram.available),
        disk_free=free_bytes(workspace),
    )


class Forecasts:
    """What pictures would need. Keeps the numbers of models, which are read from their files."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, int], Numbers] = {}

    def of(self, machine: Machine | None, model: ModelSpec, wish: Wish) -> str:
        """One sentence, or "" where the machine or the model's numbers are not known."""
        sizes = self._of(model) if machine is not None else None
        if machine is None or sizes is None:
            return ""
        return forecast.told(machine, sizes, wish)

    def _of(self, model: ModelSpec) -> Numbers | None:
        folder = model.part("transformer")
        try:
            key = (model.id, str(folder), folder.stat().st_mtime_ns)
            if key not in self._numbers:
                self._numbers[key] = numbers.of(model)
        except (OSError, ModelError):
            return None
        return self._numbers[key]
