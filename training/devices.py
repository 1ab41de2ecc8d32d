"""Where a training runs: one processor, one card, or several processes of a launcher."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from pipelines.errors import RequestError
from training.config import RunConfig


def make_accelerator(config: RunConfig) -> Accelerator:
    """The device side of a run: one process, or one of several under `accelerate launch`."""
    precision = "no" if config.precision == "fp32" else config.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise RequestError(
            "precision", "fp16 needs an NVIDIA card.", "Choose bf16 or fp32 on this machine."
        )
    # Stages of other precision follow each other in one process; the processes stay connected.
    AcceleratorState._reset_state()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        mixed_precision=precision,
        # Without this, processes on processors do not find each other.
        cpu=several and not torch.cuda.is_available(),
        gradient_accumulation_steps=config.accumulate,
        # The first process may compute features for days while the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))],
    )
