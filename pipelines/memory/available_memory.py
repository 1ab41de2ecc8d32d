"""What this machine has now, and what ran out of it."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.memory import out_of_memory, planning, probe, ram
from pipelines.memory.measured import held
from pipelines.memory.planning import DevicePlan, Machine

# So many times the memory that was free when it ran out is worth another try.
_MORE = 1.1


class Supply:
    """The memory of one engine: looked at before every picture, unless `machine` was given."""

    def __init__(self, machine: Machine | None) -> None:
        self._is_given = machine is not None
        self.machine = machine or probe.machine()
        self._failure: out_of_memory.Failure | None = None
        self._begin()

    def _begin(self) -> None:
        # Before the first model: what is freed stays with the process for a while.
        self.empty = held(torch.device(self.machine.device))
        self._private = ram.private()

    def look(self) -> bool:
        """Looks again, counting what this process would give back as free.

        False where the machine paints with another device than before: a GPU may come to an end.
        """
        if self._is_given:
            return True
        before, self.machine = self.machine.device, probe.machine()
        same = self.machine.device == before
        if not same:
            self._begin()
        if self.machine.device != "cuda":
            own = max(0, ram.private() - self._private)
            total = self.machine.ram_total
            self.machine = replace(self.machine, ram_free=min(total, self.machine.ram_free + own))
        return same

    def of(self, model_id: str) -> Machine:
        """The machine for a plan of `model_id`: with less than what it ran out of."""
        before = self._failure
        if before is None or before.model != model_id:
            return self.machine
        if out_of_memory.free(self.machine) > _MORE * before.free:
            # Something else was closed meanwhile.
            self._failure = None
            return self.machine
        return planning.limited(self.machine, before.plan)

    def failed(self, model_id: str, plan: DevicePlan, stage: planning.PlanStage | None) -> None:
        """`plan` ran out of memory: the next picture of the model begins lower."""
        # What is free of the main memory is known before every picture.
        if stage != "main memory":
            free = out_of_memory.free(self.machine)
            self._failure = out_of_memory.Failure(model=model_id, plan=plan, free=free)
