"""Whether the weights of a net are still those that something was derived from."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn


class NetState:
    """The layers and weights of a net at one moment, without keeping them alive.

    Identity besides addresses: a new weight may get the address of one that is gone.
    """

    def __init__(self, net: nn.Module) -> None:
        self._layers = [weakref.ref(module) for module in net.modules()]
        self._weights = [(weakref.ref(p), _version(p)) for p in net.parameters()]

    def holds(self, net: nn.Module) -> bool:
        """True while every layer and every weight is the one that was seen, unchanged."""
        layers: list[Any] = list(net.modules())
        weights: list[Any] = list(net.parameters())
        return (
            len(layers) == len(self._layers)
            and len(weights) == len(self._weights)
            and all(seen() is now for seen, now in zip(self._layers, layers, strict=True))
            and all(
                version == _version(now) and seen() is now
                for (seen, version), now in zip(self._weights, weights, strict=True)
            )
        )


def _version(weight: Tensor) -> tuple[int, int, torch.dtype]:
    count = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), count, weight.dtype
