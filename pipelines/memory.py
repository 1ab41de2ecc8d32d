"""Where and in which precision a model runs. `plan` is a pure function of measured facts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found on this machine. `name` is the card's or processor's name for people."""

    device: Device
    name: str
    bf16: bool


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """Read by the loader and shown to the user."""

    device: Device
    precision: Precision


def share_processor() -> None:
    """Lets torch's threads sleep while they wait. Call it before torch is imported.

    By default they spin. With a browser on the same two cores, a spinning thread keeps its partner
    from running, and a picture took twenty times as long (docs/decisions/0005).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def is_out_of_memory(error: BaseException) -> bool:
    """True for a lack of memory of the card or of the machine, however torch words it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in words or "allocate memory" in words
    )


def plan(machine: Machine) -> DevicePlan:
    """bf16 on every GPU that has it; fp32 on processors, where half precision is slow or absent."""
    if machine.device == "cpu":
        return DevicePlan(device="cpu", precision="float32")
    return DevicePlan(device=machine.device, precision="bfloat16" if machine.bf16 else "float32")
