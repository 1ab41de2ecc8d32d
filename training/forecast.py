"""How much memory a training needs: computed from the sizes, checked by one measured step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.memory import ram
from training.config import RunConfig
from training.loop.sharding import own

_GB = 1e9


def of_states(net: nn.Module, weights: Sequence[nn.Parameter], config: RunConfig) -> dict[str, int]:
    """Bytes of the trained `weights`, their gradients, the optimizer's states and the average, and
    of what lies in `net` besides and does not learn."""
    own = sum(_bytes(w) for w in weights)
    everything = sum(_bytes(t) for t in [*net.parameters(), *net.buffers()])
    matrices = sum(_bytes(w) for w in weights if w.ndim == 2)
    states = {
        "adamw": 2 * own,
        # One byte per element and moment instead of four.
        "adamw8bit": own // 2,
        "muon": matrices + 2 * (own - matrices),
        # Two moments, the start, and a running sum.
        "prodigy": 4 * own,
    }
    return {
        "weights": own,
        "gradients": own,
        "optimizer": states[config.optimizer.name],
        "average": own if config.ema.decay else 0,
        "frozen": everything - own,
    }


def _bytes(tensor: Tensor) -> int:
    held = own(tensor)
    return held.numel() * held.element_size()


def told(
    states: dict[str, int], step_peak: int, device: torch.device, config: RunConfig
) -> dict[str, Any]:
    """The forecast as an event: every part, the sum and what is free, in bytes.

    The measured step already holds the gradients, so they are not counted twice. It ends before the
    weights move, for which AdamW and the average each hold one more copy of all weights for a
    moment, when the activations are gone.
    """
    moving = states["weights"] if config.optimizer.name == "adamw" or config.ema.decay else 0
    activations = max(moving, step_peak - states["gradients"])
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        available = total - (total - free) + torch.cuda.memory_reserved(device)
    else:
        available = ram.look().free
    return {
        **states,
        "activations": activations,
        "peak": sum(states.values()) + activations,
        "available": int(available),
    }


def sentence(values: dict[str, Any]) -> str:
    """What the forecast says to a person."""
    needed, free = values["peak"] / _GB, values["available"] / _GB
    words = f"needs about {needed:.1f} GB, {free:.1f} GB are free"
    if needed > free:
        words += "; make batch smaller if it runs out of memory"
    return words
