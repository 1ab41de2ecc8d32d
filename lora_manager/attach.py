"""Adding LoRAs to the weights of a net.

The change of a LoRA is `up @ down`. That of a DoRA depends on the weight W that it is put on: its
rows (or columns) get the directions of W + up @ down and the sizes that the file says,
`m * (W + up @ down) / |W + up @ down| - W` (arXiv 2402.09353, equation 5). A weight between 0 and 1
takes so much of that change, of several each from the same W (docs/decisions/0027).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lora_manager.errors import LoraError, printable
from lora_manager.files import ALL_ZERO, Lora, LoraPair

Weighted = Sequence[tuple[str, Lora, float]]
"""Names for people, LoRAs, and how much of each; below 0 takes it away."""
# The weights of a net are below 100. What may add more is computed before anything is changed.
_PLAUSIBLE = 1e3


def merge(net: nn.Module, loras: Weighted) -> int:
    """Adds `weight` times the change of every LoRA to the weights of `net`, in place.

    The changes of one layer are summed in float32 on its device, then added and rounded once to the
    type of the weight; one layer at a time is all the memory it takes. Returns how many layers were
    changed. Raises LoraError before anything is changed where a LoRA does not fit, where the net's
    weights are quantised, and where the sum is beyond the type of the weights; and where no number
    has become another one.
    """
    used = [(lora, weight) for _, lora, weight in loras if weight != 0]
    paths = list(dict.fromkeys(path for lora, _ in used for path in lora.pairs))
    weights = _fitting(net, loras)
    with torch.no_grad():
        for path in paths:
            _check_sum(path, weights[path], _at(path, used))
        moved = False
        for path in paths:
            weight = weights[path]
            made = _changed(weight, _at(path, used)).to(weight.dtype)
            moved = moved or not torch.equal(made, weight)
            # Weights that were loaded in inference mode can be changed in it only.
            with torch.inference_mode() if weight.is_inference() else nullcontext():
                weight.copy_(made)
    if paths and not moved:
        raise without_effect(loras)
    return len(paths)


def _at(path: str, used: list[tuple[Lora, float]]) -> list[tuple[LoraPair, float]]:
    return [(lora.pairs[path], weight) for lora, weight in used if path in lora.pairs]


def _changed(weight: Tensor, pairs: list[tuple[LoraPair, float]]) -> Tensor:
    """`weight` with all changes, in float32."""
    total = torch.zeros(weight.shape[0], weight[0].numel(), device=weight.device)
    for pair, factor in pairs:
        up, down = pair.up.flatten(1).to(weight.device), pair.down.flatten(1).to(weight.device)
        if pair.magnitude is None:
            total.addmm_(up, down, alpha=factor)
        else:
            own = _of_dora(weight.float(), (up @ down).view(weight.shape), pair.magnitude)
            total.add_(own.flatten(1), alpha=factor)
    return total.view(weight.shape).add_(weight)


def _of_dora(weight: Tensor, product: Tensor, magnitude: Tensor) -> Tensor:
    """The change of a DoRA; all in float32."""
    turned = weight + product
    along = tuple(axis for axis, count in enumerate(magnitude.shape) if count == 1)
    sizes = torch.linalg.vector_norm(turned, dim=along, keepdim=True)
    # A row of zeros has no direction, and stays what it is.
    scale = magnitude.to(weight.device) / sizes.clamp_min(torch.finfo(torch.float32).tiny)
    return turned * scale - weight


def added(path: str, weight: Tensor, loras: Weighted, dtype: torch.dtype) -> Tensor:
    """The weight of the layer `path` with all of `loras` in it, rounded once to `dtype`.

    `weight` stays as it is. Raises LoraError where the sum is beyond `dtype`.
    """
    pairs = _at(path, [(lora, factor) for _, lora, factor in loras if factor != 0])
    if not pairs:
        return weight.to(dtype)
    made = _changed(weight, pairs).to(dtype)
    if not made.isfinite().all():
        raise _too_strong(path)
    return made


def without_effect(loras: Weighted) -> LoraError:
    """What is said where a net is with `loras` what it is without them."""
    names = [f"“{printable(name)}”" for name, _, weight in loras if weight]
    who = f"The LoRA {names[0]} changes" if len(names) == 1 else "Together, the LoRAs change"
    return LoraError(
        f"{who} nothing in this model: rounded to the precision of its weights, every number stays"
        " as it is.",
        "Take other weights, or leave them out.",
    )


def check(loras: Weighted, shape_of: Callable[[str], tuple[int, ...] | None]) -> None:
    """Looks whether `loras` fit a net. `shape_of` knows the shape of the weight of each layer, None
    where there is no such layer. Raises LoraError for a misfit, also of one with the weight 0, and
    for one that would change nothing although it has a weight.
    """
    for name, lora, weight in loras:
        if not math.isfinite(weight):
            raise LoraError(f"The weight of the LoRA “{printable(name)}” is {weight}.")
        if weight:
            check_strength(name, lora)
        for path, pair in lora.pairs.items():
            shape = shape_of(path)
            if shape is None:
                raise _misfit(name, f"it changes “{path}”, which this model does not have")
            if shape != pair.shape:
                raise _misfit(name, _widths(path, pair.shape, shape))


def check_strength(name: str, lora: Lora) -> None:
    """Raises LoraError where `lora` changes nothing: nobody is to believe that it was used."""
    if lora.changes_nothing:
        raise LoraError(
            f"The LoRA “{printable(name)}” changes nothing: {ALL_ZERO}.",
            "Take it off, or take another one.",
        )


def _fitting(net: nn.Module, loras: Weighted) -> dict[str, Tensor]:
    """The weights of all layers that are changed, by path. Raises LoraError for a misfit."""
    weights: dict[str, Tensor | None] = {}

    def shape_of(path: str) -> tuple[int, ...] | None:
        if path not in weights:
            weights[path] = _weight(net, path)
        found = weights[path]
        return None if found is None else tuple(found.shape)

    check(loras, shape_of)
    return {path: found for path, found in weights.items() if found is not None}


def _weight(net: nn.Module, path: str) -> Tensor | None:
    """The weight of the layer at `path`, None where there is none. Raises LoraError."""
    try:
        layer = net.get_submodule(path)
    except AttributeError:
        return None
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    # Quantised weights are of classes of their own, whose numbers cannot be added to.
    plain = isinstance(layer, nn.Linear | nn.Conv2d) and type(weight) in (nn.Parameter, Tensor)
    if not plain or not weight.is_floating_point() or weight.is_meta:
        raise LoraError(
            f"The weights of this model are quantised or not loaded (“{path}”), so a LoRA cannot be"
            " added to them."
        )
    return weight


def _widths(path: str, wanted: tuple[int, ...], found: tuple[int, ...]) -> str:
    if wanted[1:] != found[1:] and len(wanted) == len(found) == 2:
        return f"it changes layers that are {wanted[1]} wide, this model's are {found[1]}"
    sizes = ["×".join(map(str, shape)) for shape in (wanted, found)]
    return f"it changes “{path}” of {sizes[0]}, this model's is of {sizes[1]}"


def _misfit(name: str, why: str) -> LoraError:
    return LoraError(
        f"The LoRA “{printable(name)}” does not fit this model: {why}.",
        "Take one that was trained on a model of this size.",
    )


def _check_sum(path: str, weight: Tensor, pairs: list[tuple[LoraPair, float]]) -> None:
    """Raises LoraError where the changed weight is beyond its type."""
    bound = sum(abs(factor) * _bound(pair) for pair, factor in pairs)
    if bound < _PLAUSIBLE or _changed(weight, pairs).to(weight.dtype).isfinite().all():
        return
    raise _too_strong(path)


def _too_strong(path: str) -> LoraError:
    return LoraError(
        f"The LoRAs change “{path}” so strongly that the result is not finite.",
        "Take a smaller weight.",
    )


def _bound(pair: LoraPair) -> float:
    """No number of up @ down is larger, and none that a DoRA makes of a weight."""
    largest = [float(value.abs().max()) for value in (pair.up, pair.down)]
    product = pair.rank * largest[0] * largest[1]
    return product if pair.magnitude is None else max(product, float(pair.magnitude.abs().max()))
