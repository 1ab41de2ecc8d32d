"""Weights and optimizer states as plain tensors and numbers, whole on every process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_SEPARATOR = "/"


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, gathered where it is sharded over processes. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor laid out as `target` is."""
    if isinstance(target, DTensor) and value.shape == target.shape:
        return distribute_tensor(
            value.to(target.device), target.device_mesh, list(target.placements)
        )
    return value


@torch.no_grad()
def copy(source: Mapping[str, Tensor], names: Sequence[str], targets: Sequence[Tensor]) -> None:
    """Copies tensors by name into `targets`, which belong to `names`."""
    for name, target in zip(names, targets, strict=True):
        target.copy_(_like(source[name], target))


def pack_states(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by name, and the numbers as JSON can hold them."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}{_SEPARATOR}{name}"] = whole(value)
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def unpack_states(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any], weights: Sequence[Tensor]
) -> dict[str, Any]:
    """The state_dict that `pack_states` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for index, values in plain["numbers"].items():
        state.setdefault(int(index), {}).update(values)
    shapes = {w.shape: w for w in weights if isinstance(w, DTensor)}
    for path, tensor in tensors.items():
        index, _, name = path.partition(_SEPARATOR)
        target = shapes.get(tensor.shape, tensor)
        state.setdefault(int(index), {})[name] = _like(tensor, target)
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
