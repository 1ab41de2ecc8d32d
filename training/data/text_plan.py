"""How a frozen T5 computes the features of captions on this machine.

In fp32 its numbers are the same in every way: whole on the GPU, its blocks one after another, or on
the processor. Other precisions are asked for in the recipe, because other features come of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.catalog import ModelSpec
from pipelines.memory import model_numbers, planning
from pipelines.memory.planning import DevicePlan, Precision, TextMode
from pipelines.models import loader
from training.data import features
from training.data.features import TextPrecision

_FLOATS: dict[str, Precision] = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """What `text_loader` loads, and a sentence where it is not the fastest way."""

    plan: DevicePlan
    told: str | None = None


def make(model: ModelSpec, precision: TextPrecision, device: torch.device, free: int) -> TextPlan:
    """The plan for `device`, a GPU with `free` bytes or the processor. Raises ModelError.

    It counts weights and activations of the captions that are computed together.
    """
    # What is quantised computes in bf16: T5 leaves the range of fp16.
    dtype = _FLOATS.get(precision, "bfloat16")
    numbers = model_numbers.of_text(model)
    net = loader.unfilled(model, "text_encoder").to(getattr(torch, dtype))
    size = getattr(torch, dtype).itemsize
    needed = features.text_bytes(net, model.tokens)
    mode, told = _float_mode(numbers, size, needed, free), None
    if precision == "int8" or precision == "nf4":
        mode = precision
    elif device.type != "cuda":
        mode = "resident"
    elif mode != "resident":
        how = {
            "streamed": "its blocks come to the GPU one after another",
            "cpu": "it computes the features of the captions on the processor",
        }
        told = (
            f"The text encoder needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of the GPU are"
            f" free: {how[mode]}, once."
        )
    waits = mode in ("streamed", "cpu") or device.type != "cuda"
    on_disk_size = planning.text_bytes(numbers, "resident" if mode == "streamed" else mode, size)
    plan = DevicePlan(
        device="cuda" if device.type == "cuda" else "cpu",
        precision="float32",
        text=mode,
        text_precision=dtype,
        keeps_text=False,
        text_ram=on_disk_size if waits else 0,
    )
    return TextPlan(plan=plan, told=told)


def _float_mode(numbers: planning.Numbers, size: int, needed: int, free: int) -> TextMode:
    """The fastest way for a T5 that is not quantised and needs `needed` bytes of a GPU."""
    if needed <= free:
        return "resident"
    spared = numbers.text * size - planning.text_bytes(numbers, "streamed", size)
    return "streamed" if needed - spared <= free else "cpu"
