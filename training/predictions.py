"""How much memory a training will need, from the shapes of a transformer and its recipe. No torch.

The factors were counted storage by storage on small nets, those of GPUs on a pretended one, and
tests hold them; what a GPU's own kernels take beside is not known.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipelines.catalog import ModelSpec
from pipelines.errors import ModelError
from pipelines.memory import model_numbers
from pipelines.sizes import Size
from training.adapter_config import LoraConfig
from training.config import RunConfig

PIXELS_PER_LATENT = 8
_MOST_CONFIG_BYTES = 1_000_000
SHORT = 512
"""Tokens up to which plain products are the faster attention on a processor."""


@dataclass(frozen=True, kw_only=True)
class NetShape:
    """What decides the memory: of the transformer its heads, their size, layers, pixels of a
    latent that are one token, and how many numbers it has; `matrices` those of its matrices, and
    `lora` those that a LoRA on it learns, 0 where the net itself does."""

    heads: int
    head_dim: int
    layers: int
    patch: int
    numbers: int
    matrices: int
    lora: int = 0

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim


def shape_of(model: ModelSpec, lora: LoraConfig) -> NetShape:
    """The shape of a model of the catalog, read off its files, and of such a LoRA on it.

    Raises ModelError where they are missing or damaged.
    """
    file = model.part("transformer") / "config.json"
    numbers = model_numbers.of(model).transformer
    try:
        with file.open("rb") as stream:
            told = json.loads(stream.read(_MOST_CONFIG_BYTES))
        heads, size = int(told["num_attention_heads"]), int(told["attention_head_dim"])
        layers, patch = int(told["num_layers"]), int(told["patch_size"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(f"{file} does not say the shape of the model “{model.id}”.") from None
    width = heads * size
    # Eight matrices of attention in a block, of `width` by `width`; the two of the feed-forward
    # layer are four times as wide at one end. The few layers around the blocks are not counted.
    sides = 8 * 2 * width + (2 * 5 * width if lora.targets != "attention" else 0)
    rows = 8 * width + (5 * width if lora.targets != "attention" else 0)
    learns = layers * (lora.rank * sides + (rows if lora.dora else 0))
    return NetShape(
        heads=heads,
        head_dim=size,
        layers=layers,
        patch=patch,
        numbers=numbers,
        matrices=numbers,
        lora=learns,
    )


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


def item_size(config: RunConfig) -> int:
    """Bytes of a number in the precision of the products."""
    return 4 if config.precision == "fp32" else 2


def states(own: int, matrices: int, frozen: int, config: RunConfig) -> dict[str, int]:
    """Bytes of what stays through a training, where `own` bytes learn, `matrices` of them in
    matrices, and `frozen` bytes do not."""
    optimizer = {
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
        "optimizer": optimizer[config.optimizer.name],
        "average": own if config.ema.decay else 0,
        "frozen": frozen,
    }


def moving(kept: dict[str, int], config: RunConfig) -> int:
    """What moving the weights takes for a moment."""
    return kept["weights"] if config.optimizer.name == "adamw" or config.ema.decay else 0


def predicted(
    shape: NetShape, config: RunConfig, size: Size, *, gpu: bool, texts: int = 120
) -> dict[str, int]:
    """The forecast of a training: what stays, the activations, and their sum, in bytes.

    `size` is that of its pictures, `texts` the longest caption in tokens. T5 and the VAE are not
    counted: they are gone by then. Nor is what CUDA itself takes.
    """
    half = item_size(config)
    if "lora" in config.row.optional:
        own, matrices, frozen = 4 * shape.lora, 4 * shape.lora, half * shape.numbers
    else:
        own, matrices, frozen = 4 * shape.numbers, 4 * shape.matrices, 0
        if "subject" in config.row.optional and config.subject.prior == "base":
            frozen = half * shape.numbers
    kept = states(own, matrices, frozen, config)
    step = _step_peak(shape, config, size, gpu=gpu, texts=texts, own=own)
    activations = max(moving(kept, config), step - kept["gradients"])
    return {**kept, "activations": activations, "peak": sum(kept.values()) + activations}


def _step_peak(
    shape: NetShape,
    config: RunConfig,
    size: Size,
    *,
    gpu: bool,
    texts: int,
    own: int,
) -> int:
    """Bytes of activations, copies of weights and gradients at the highest of a step."""
    is_half = item_size(config) < 4
    factors = _FACTORS[gpu, is_half, "lora" in config.row.optional]
    heads, layers, width = shape.heads, shape.layers, shape.width
    patch = PIXELS_PER_LATENT * shape.patch
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
