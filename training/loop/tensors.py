"""Weights and optimizer states as plain tensors and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from pipelines.memory.measured import give_back
from training.loop.sharding import is_spread, like, whole

_SEPARATOR = "/"


@torch.no_grad()
def copy(source: Mapping[str, Tensor], names: Sequence[str], targets: Sequence[Tensor]) -> None:
    """Copies tensors by name into `targets`, which belong to `names`."""
    for name, target in zip(names, targets, strict=True):
        target.copy_(like(source[name], target))


def pack_states(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by name, and the numbers as JSON can hold them."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for path, value in _flat(values):
            if isinstance(value, Tensor):
                tensors[f"{index}{_SEPARATOR}{path}"] = value
            else:
                numbers.setdefault(str(index), {})[path] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All values by their path: bitsandbytes keeps its tensors in a table within the state."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}{_SEPARATOR}{path}", inner) for path, inner in _flat(value))
        else:
            yield name, value


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """Gives `value` the place that `_flat` found it at."""
    *tables, name = path.split(_SEPARATOR)
    for table in tables:
        values = values.setdefault(table, {})
    values[name] = value


def unpack_states(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any], weights: Sequence[Tensor]
) -> dict[str, Any]:
    """The state_dict that `pack_states` took apart; `weights` are what the optimizer moves."""
    state: dict[int, dict[str, Any]] = {}
    for index, values in plain["numbers"].items():
        for path, value in values.items():
            _put(state.setdefault(int(index), {}), path, value)
    for full, tensor in tensors.items():
        index, _, path = full.partition(_SEPARATOR)
        _put(state.setdefault(int(index), {}), path, like(tensor, weights[int(index)]))
    groups = [
        {k: tuple(v) if k in ("betas", "ns_coefficients") else v for k, v in group.items()}
        for group in plain["groups"]
    ]
    return {"state": state, "param_groups": groups}


def numbers_of(
    losses: Sequence[Mapping[str, Tensor]], norm: Tensor | float | None
) -> tuple[dict[str, float], float]:
    """The means of every loss over micro-batches, and the norm, with one wait for the device."""
    names = list(losses[0])
    means = [torch.stack([part[name].float().mean() for part in losses]).mean() for name in names]
    norm = torch.as_tensor(0.0 if norm is None else norm)
    together = torch.stack([*means, whole(norm).float().to(means[0].device)]).tolist()
    return dict(zip(names, together, strict=False)), together[-1]


@torch.no_grad()
def settle(net: nn.Module) -> None:
    """Brings the memory of this process into the state from which a step can be measured.

    Weights may still lie in the file that they were read from: the first product would bring them
    into main memory. What was freed before would be used again, and the step look small.
    """
    for weight in net.parameters():
        if weight.device.type == "cpu" and not is_spread(weight):
            weight.sum()
    give_back()


@contextmanager
def swapped(
    ema: EMAModel | None, weights: Sequence[nn.Parameter], net: nn.Module
) -> Iterator[None]:
    """The averaged weights in place of the raw ones, and evaluation mode, for a while."""
    if ema is not None:
        ema.store(weights)
        ema.copy_to(weights)
    net.eval()
    try:
        yield
    finally:
        net.train()
        if ema is not None:
            ema.restore(weights)


def not_finite(seen: Sequence[tuple[Mapping[str, Tensor], Sequence[str]]]) -> list[str]:
    """The samples whose own loss is not finite; all of them where no single one is to blame."""
    bad = [
        name
        for losses, names in seen
        for name, value in zip(names, losses["loss"].tolist(), strict=True)
        if not math.isfinite(value)
    ]
    return bad or [name for _, names in seen for name in names]
