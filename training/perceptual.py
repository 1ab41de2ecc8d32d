"""How different two pictures look: distances between the features of a VGG16.

The convolutions are those of the edge detector in assets/hed. The distance is LPIPS's (arXiv
1801.03924) without its learned weights: features of unit length per place, squared differences.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines.catalog import ROOT

WEIGHTS = ROOT / "assets" / "hed" / "hed.safetensors"
_LAYOUT = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))


class Features(nn.Module):
    """The first `depth` blocks of the VGG16, frozen."""

    def __init__(self, depth: int = 4, weights: Path = WEIGHTS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for inside, outside, count in _LAYOUT[:depth]:
            layers: list[nn.Module] = []
            for a, b in pairwise([inside, *[outside] * count]):
                layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
            self.blocks.append(nn.Sequential(*layers))
        tensors = load_file(weights)
        own = {}
        for name in self.state_dict():
            _, block, number, kind = name.split(".")
            # Every second layer is a ReLU.
            place = f"block{int(block) + 1}.convs.{int(number) // 2}.{kind}"
            own[name] = tensors[place].float()
        self.load_state_dict(own)
        self.mean: Tensor
        self.register_buffer("mean", tensors["norm"].float(), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> one map (B, C, h, w) per block, before its pooling."""
        x = (pixels + 1) * 127.5 - self.mean
        maps = []
        for index, block in enumerate(self.blocks):
            if index:
                x = functional.max_pool2d(x, 2)
            x = block(x)
            maps.append(x)
        return maps

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """(B,): 0 for equal pictures. Gradients flow into `one` only."""
        with torch.no_grad():
            wanted = self(other)
        total = one.new_zeros(len(one), dtype=torch.float32)
        for a, b in zip(self(one), wanted, strict=True):
            total = total + (_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1)
        return total


def _unit(maps: Tensor) -> Tensor:
    return functional.normalize(maps.float(), dim=1, eps=1e-6)
