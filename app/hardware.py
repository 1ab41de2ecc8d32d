"""What this computer has, and what a picture would need of it: numbers for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from app.models.download_jobs import free_bytes
from pipelines.catalog import ModelSpec
from pipelines.errors import ModelError
from pipelines.memory import forecast, model_numbers, ram
from pipelines.memory.planning import Machine, MemoryRequest, Numbers
from pipelines.models.hub_rows import Known

# Changes of the free memory below this share of all are not told.
_NOTICED = 0.04


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Memory in bytes, 0 where unknown. `machine` is None until the painting process has told."""

    machine: Machine | None
    ram_total: int
    ram_free: int
    disk_free: int


def look(machine: Machine | None, workspace: Path) -> Hardware:
    """The computer as it is now; the GPU as the painting process found it."""
    main = ram.look()
    return Hardware(
        machine=machine,
        ram_total=main.total,
        ram_free=main.free,
        disk_free=free_bytes(workspace),
    )


class Forecasts:
    """What pictures would need. Keeps the numbers of models, which are read from their files.

    `free` tells the bytes of main memory that are free now.
    """

    def __init__(self, free: Callable[[], int] = lambda: ram.look().free) -> None:
        self._free = free
        self._numbers: dict[tuple[str, str, int], Numbers] = {}
        # The machine as the painting process told of it, what the system said was free then, and
        # by how much that has changed.
        self._told: tuple[Machine, int, int] | None = None

    def of(self, machine: Machine | None, model: ModelSpec, memory_request: MemoryRequest) -> str:
        """One sentence, or "" where the machine or the model's numbers are not known."""
        sizes = self._of(model) if machine is not None else None
        if machine is None or sizes is None:
            return ""
        return forecast.told(self._now(machine), sizes, memory_request)

    def before_download(self, machine: Machine | None, row: Known) -> str:
        """What a released model would need for its default size, before it is here; "" where the
        machine is not known, or the model paints nothing by itself."""
        sizes = model_numbers.expected(row)
        if machine is None or sizes is None:
            return ""
        width, height = (int(side) for side in str(row.row["size"]).split("x"))
        told = forecast.told(self._now(machine), sizes, MemoryRequest(width=width, height=height))
        return f"{width}x{height} {told}"

    def _now(self, machine: Machine) -> Machine:
        """`machine` with the main memory that is free now, of which small changes are not told:
        a sentence must not flicker."""
        if not machine.ram_free or not machine.ram_total:
            return machine
        available = self._free()
        before = self._told
        if before is None or before[0] != machine:
            before = (machine, available, 0)
        _, then, change = before
        if abs(available - then - change) > machine.ram_total * _NOTICED:
            change = available - then
        self._told = (machine, then, change)
        free = max(1, min(machine.ram_total, machine.ram_free + change))
        return replace(machine, ram_free=free)

    def _of(self, model: ModelSpec) -> Numbers | None:
        folder = model.part("transformer")
        try:
            key = (model.id, str(folder), folder.stat().st_mtime_ns)
            if key not in self._numbers:
                self._numbers[key] = model_numbers.of(model)
        except (OSError, ModelError):
            return None
        return self._numbers[key]
