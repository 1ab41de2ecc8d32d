"""How much memory a training needs: computed from the sizes, checked by one measured step.

`predicted` knows a PixArt transformer by its shapes alone (`training.predictions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from pipelines.memory import ram
from pipelines.sizes import Size
from training import predictions
from training.config import RunConfig
from training.loop.sharding import own

_GB = 1e9


def of_states(net: nn.Module, weights: Sequence[nn.Parameter], config: RunConfig) -> dict[str, int]:
    """Bytes of the trained `weights`, their gradients, the optimizer's states and the average, and
    of what lies in `net` besides and does not learn."""
    own = sum(_bytes(w) for w in weights)
    everything = sum(_bytes(t) for t in [*net.parameters(), *net.buffers()])
    matrices = sum(_bytes(w) for w in weights if w.ndim == 2)
    return predictions.states(own, matrices, everything - own, config)


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
    activations = max(predictions.moving(states, config), step_peak - states["gradients"])
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


def predicted(
    net: PixArtTransformer2DModel, config: RunConfig, size: Size, *, gpu: bool, texts: int = 120
) -> dict[str, int]:
    """`predictions.predicted` for a net, of which only the shapes are looked at."""
    lora = 0
    if "lora" in config.row.optional:
        from training.methods import adapted

        lora = adapted.parameters(net, config.lora)
    shape = predictions.NetShape(
        heads=net.config.num_attention_heads,
        head_dim=net.config.attention_head_dim,
        layers=net.config.num_layers,
        patch=net.config.patch_size,
        numbers=sum(weight.numel() for weight in net.parameters()),
        matrices=sum(weight.numel() for weight in net.parameters() if weight.ndim == 2),
        lora=lora,
    )
    return predictions.predicted(shape, config, size, gpu=gpu, texts=texts)


def sentence(values: dict[str, Any]) -> str:
    """What the forecast says to a person."""
    needed, free = values["peak"] / _GB, values["available"] / _GB
    words = f"needs about {needed:.1f} GB, {free:.1f} GB are free"
    if needed > free:
        words += "; make batch smaller if it runs out of memory"
    return words
