"""How much memory a training needs: computed from the sizes, checked by one measured step.

`predicted` knows a PixArt transformer before it is read, for a recipe that is still being written.
Its factors were counted storage by storage on small nets, those of GPUs on a pretended one, and
tests hold them; what a GPU's own kernels take beside is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from pipelines.denoising.latents import PIXELS_PER_LATENT
from pipelines.memory import ram
from pipelines.sizes import Size
from training.config import RunConfig
from training.loop.devices import SHORT, computes_in
from training.loop.sharding import own

_GB = 1e9


def of_states(net: nn.Module, weights: Sequence[nn.Parameter], config: RunConfig) -> dict[str, int]:
    """Bytes of the trained `weights`, their gradients, the optimizer's states and the average, and
    of what lies in `net` besides and does not learn."""
    own = sum(_bytes(w) for w in weights)
    everything = sum(_bytes(t) for t in [*net.parameters(), *net.buffers()])
    matrices = sum(_bytes(w) for w in weights if w.ndim == 2)
    return _states(own, matrices, everything - own, config)


def _states(own: int, matrices: int, frozen: int, config: RunConfig) -> dict[str, int]:
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
        "frozen": frozen,
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
    activations = max(_moving(states, config), step_peak - states["gradients"])
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


def _moving(states: dict[str, int], config: RunConfig) -> int:
    """What moving the weights takes for a moment."""
    return states["weights"] if config.optimizer.name == "adamw" or config.ema.decay else 0


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """Bytes of a step per token and channel of the net.

    `block` stays of a block until the way back, `carried` is what comes into it, `rest` is kept
    around the blocks, and `back` lives for a moment on the way back.
    """

    block: float
    carried: float
    rest: float
    back: float


# By (on a GPU, in half precision, with a LoRA). Autocast has more in float32 on a GPU; with a LoRA
# the net itself is in half precision.
_FACTORS = {
    (True, True, True): _Factors(block=50.6, carried=2, rest=4.6, back=15.5),
    (True, True, False): _Factors(block=62.4, carried=4, rest=13, back=10),
    (True, False, True): _Factors(block=84.7, carried=4, rest=4.6, back=31.5),
    (True, False, False): _Factors(block=100.4, carried=4, rest=13.2, back=10),
    (False, True, True): _Factors(block=38.6, carried=2, rest=2.6, back=15.5),
    (False, True, False): _Factors(block=58.5, carried=4, rest=11, back=10),
    (False, False, True): _Factors(block=76.8, carried=4, rest=4.6, back=31.5),
    (False, False, False): _Factors(block=92.5, carried=4, rest=13.2, back=10),
}

# What a DoRA keeps of a block besides, and for a moment, by half precision.
_DORA = {True: (52, 40), False: (88, 5)}


def predicted(
    net: PixArtTransformer2DModel, config: RunConfig, size: Size, *, gpu: bool, texts: int = 120
) -> dict[str, int]:
    """The forecast of a training of `net`, of which only the shapes are looked at: the parts of
    `told` and their sum, in bytes.

    `size` is that of its pictures, `texts` the longest caption in tokens. T5 and the VAE are not
    counted: they are gone by then. Nor is what CUDA itself takes.
    """
    has_lora = "lora" in config.row.optional
    plain = sum(weight.numel() for weight in net.parameters())
    half = computes_in(config).itemsize
    if has_lora:
        from training.methods import adapted

        trained = adapted.parameters(net, config.lora)
        own, matrices, frozen = 4 * trained, 4 * trained, half * plain
    else:
        flat = sum(weight.numel() for weight in net.parameters() if weight.ndim == 2)
        own, matrices, frozen = 4 * plain, 4 * flat, 0
        if "subject" in config.row.optional and config.subject.prior == "base":
            frozen = half * plain
    states = _states(own, matrices, frozen, config)
    step = _step_peak(net, config, size, gpu=gpu, texts=texts, own=own)
    activations = max(_moving(states, config), step - states["gradients"])
    return {**states, "activations": activations, "peak": sum(states.values()) + activations}


def _step_peak(
    net: PixArtTransformer2DModel,
    config: RunConfig,
    size: Size,
    *,
    gpu: bool,
    texts: int,
    own: int,
) -> int:
    """Bytes of activations, copies of weights and gradients at the highest of a step."""
    is_half = computes_in(config).itemsize < 4
    factors = _FACTORS[gpu, is_half, "lora" in config.row.optional]
    heads, layers = net.config.num_attention_heads, net.config.num_layers
    width = heads * net.config.attention_head_dim
    patch = PIXELS_PER_LATENT * net.config.patch_size
    tokens = (size.width // patch) * (size.height // patch)
    unit = config.batch * tokens * width
    item = 2 if is_half else 4
    block = factors.block * unit + 2 * item * config.batch * texts * width
    around = (factors.rest + factors.back) * unit
    if "lora" in config.row.optional and config.lora.dora:
        more, moment = _DORA[is_half]
        block += more * unit
        around += moment * unit
    if not gpu and tokens <= SHORT:
        # Plain products keep what every token thinks of every other.
        block += item * config.batch * heads * tokens**2
    # Autocast keeps a copy of each weight that learns.
    copies = own // 2 if is_half else 0
    if config.gradient_checkpointing:
        # At its first block, on the way back, all gradients are there.
        kept = own + copies / layers + layers * factors.carried * unit
        return int(kept + block + around)
    forward = copies + layers * block + around
    return int(max(forward, own + copies / layers + block + around))


def sentence(values: dict[str, Any]) -> str:
    """What the forecast says to a person."""
    needed, free = values["peak"] / _GB, values["available"] / _GB
    words = f"needs about {needed:.1f} GB, {free:.1f} GB are free"
    if needed > free:
        words += "; make batch smaller if it runs out of memory"
    return words
