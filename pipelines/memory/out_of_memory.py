"""Running out of memory: in which stage, and what a person is told."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import OutOfMemoryError
from pipelines.memory import forecast
from pipelines.memory.planning import DevicePlan, Machine, PlanStage


@dataclass(frozen=True, kw_only=True)
class MemoryShortage:
    """Memory ran out in `stage`; `told` where somebody knew it before."""

    stage: PlanStage | None
    told: OutOfMemoryError | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A plan that ran out of memory, with the bytes that were free then."""

    model: str
    plan: DevicePlan
    free: int


def free(machine: Machine) -> int:
    """What is free where pictures are painted, in bytes; 0 where it is not known."""
    return machine.vram_free if machine.device == "cuda" else machine.ram_free


def changed(rough: DevicePlan) -> OutOfMemoryError:
    """Nobody is given another picture without having been asked."""
    return OutOfMemoryError(
        "There is not enough memory to paint exactly this picture, but a little changed it may fit"
        f" ({forecast.words(rough)}).",
        "Allow it (“Approximate where memory is short”, --approximate) and paint it again.",
    )


def too_little(why: str = "") -> OutOfMemoryError:
    """Nothing helps but to ask for less."""
    return OutOfMemoryError(
        f"There is not enough memory for this picture{why and f' ({why})'}.",
        "Choose a smaller size or model, or close other programs.",
    )
