"""A net with the layers of a LoRA on it, and the LoRA that they are.

LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353) are put on the layers by PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers import PixArtTransformer2DModel
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lora_manager import targets
from lora_manager.files import Lora, LoraPair
from pipelines.errors import RequestError, TrainingError
from training.adapter_config import LoraConfig

_KINDS = {
    "attention": targets.ATTENTION,
    "attention+feed-forward": targets.ATTENTION | targets.FEED_FORWARD,
    # The convolution is no matrix, and what paints reads it as one.
    "all": targets.ALL - {targets.CONVOLUTION},
}


def with_lora(net: PixArtTransformer2DModel, wanted: LoraConfig) -> PixArtTransformer2DModel:
    """Puts the layers of a new LoRA, which changes nothing yet, on `net`. Raises RequestError.

    What learns is in float32, whatever the precision of `net` is.
    """
    found = _ranks(net, wanted)
    alpha = wanted.alpha or wanted.rank
    inject_adapter_in_model(
        PeftConfig(
            r=wanted.rank,
            # PEFT takes fractions as well, whatever its types say.
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=wanted.dropout,
            use_dora=wanted.dora,
            target_modules=list(found),
            rank_pattern=dict(wanted.ranks),
            # A layer of another rank works as strongly as the rest.
            alpha_pattern={e: alpha * r / wanted.rank for e, r in wanted.ranks.items()},
        ),
        net,
    )
    for weight in net.parameters():
        if weight.requires_grad:
            # PEFT makes it like the layer that it lies beside.
            weight.data = weight.data.float()
    for path, layer in layers(net).items():
        # Autocast would make the input half as exact right behind it: a copy for nothing.
        # A DoRA takes from it how exactly it measures its rows.
        layer.cast_input_dtype_enabled = wanted.dora
        if wanted.dora:
            (name,) = layer.active_adapters
            # Measured by PEFT in the precision of the layer, in which it would not be what it was.
            rows = layer.get_base_layer().weight.float().norm(dim=1)
            if not rows.all():
                raise RequestError(
                    "lora.dora",
                    f"The layer {path} has rows of zeros, which have no direction to learn.",
                    "Train it without dora.",
                )
            layer.lora_magnitude_vector[name].weight.data.copy_(rows)
    return net.train()


def _ranks(net: PixArtTransformer2DModel, wanted: LoraConfig) -> dict[str, int]:
    """The layers that get a LoRA, with their ranks. Raises RequestError."""
    found = targets.paths(
        net.config.num_layers,
        _KINDS[wanted.targets],
        micro_conditions=net.config.use_additional_conditions,
    )
    unused = [end for end in wanted.ranks if not any(targets.matches(p, {end}) for p in found)]
    if unused:
        raise RequestError(
            "lora.ranks",
            f"No layer that is trained ends with “{unused[0]}”.",
            f"Layers are called as {found[0]}.",
        )
    ranks = {}
    for path in found:
        own = (r for end, r in wanted.ranks.items() if targets.matches(path, {end}))
        ranks[path] = rank = next(own, wanted.rank)
        layer: Any = net.get_submodule(path)
        smaller = min(layer.in_features, layer.out_features)
        if rank > smaller:
            raise RequestError(
                "lora.rank",
                f"The rank {rank} is larger than the layer {path}, which has {smaller}.",
                f"Take a rank of at most {smaller}.",
            )
    return ranks


def parameters(net: PixArtTransformer2DModel, wanted: LoraConfig) -> int:
    """How many numbers of a LoRA learn on `net`, of which only the shapes are looked at. Raises
    RequestError."""
    count = 0
    for path, rank in _ranks(net, wanted).items():
        layer: Any = net.get_submodule(path)
        count += rank * (layer.in_features + layer.out_features)
        count += layer.out_features if wanted.dora else 0
    return count


def layers(net: nn.Module) -> dict[str, Any]:
    """The layers that carry the LoRA (`LoraLayer`), by path."""
    return {name: one for name, one in net.named_modules() if isinstance(one, LoraLayer)}


def lora_of(net: nn.Module) -> Lora:
    """The LoRA on `net` as it is now, its strength included."""
    pairs = {}
    for path, layer in layers(net).items():
        (name,) = layer.active_adapters
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        sizes = None
        if name in layer.lora_magnitude_vector:
            sizes = layer.lora_magnitude_vector[name].weight.detach().float().cpu().clone()[:, None]
        pairs[path] = LoraPair(
            down=down.detach().float().cpu().clone(),
            up=(up.detach().float() * layer.scaling[name]).cpu(),
            magnitude=sizes,
        )
    return Lora(pairs=pairs)


_LEARNED = re.compile(r"transformer\.(.+)\.(lora_A|lora_B|lora_magnitude_vector)\.default\.weight")


def of_weights(weights: Mapping[str, Tensor], wanted: LoraConfig) -> Lora:
    """The LoRA of the weights that a checkpoint holds, by their names. Raises TrainingError."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if (match := _LEARNED.fullmatch(name)) is None:
            raise TrainingError("The checkpoint is not that of a LoRA.")
        found.setdefault(match[1], {})[match[2]] = tensor.float()
    # As strong as `with_lora` makes it, at every rank.
    scale = (wanted.alpha or wanted.rank) / wanted.rank
    pairs = {}
    for path, parts in found.items():
        if not {"lora_A", "lora_B"} <= set(parts):
            raise TrainingError(f"The checkpoint lacks a part of the layer {path}.")
        size = parts.get("lora_magnitude_vector")
        pairs[path] = LoraPair(
            down=parts["lora_A"],
            up=parts["lora_B"] * scale,
            magnitude=None if size is None else size.reshape(-1, 1),
        )
    return Lora(pairs=pairs)


@contextmanager
def without(net: nn.Module) -> Iterator[None]:
    """`net` as it was before it got a LoRA, for a while."""
    found = list(layers(net).values())
    try:
        for layer in found:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in found:
            layer.enable_adapters(True)
