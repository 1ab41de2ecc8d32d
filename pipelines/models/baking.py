"""A transformer with LoRAs in its weights, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_manager import attach
from lora_manager.attach import Weighted
from pipelines.models import convert, original_layout
from pipelines.models.convert import SavedPrecision
from pipelines.models.original_layout import KeyPair
from pipelines.models.sources import Source

_WEIGHT = ".weight"


@dataclass(frozen=True, kw_only=True)
class BakedSource(Source):
    """A source whose layers are changed when they are read.

    `precision` is the type of what is given: the change is added in float32 and rounded to it once.
    `moved` are the layers of which a number has become another one, as far as they were read.
    """

    loras: Weighted
    precision: SavedPrecision = "keep"
    moved: set[str] = field(default_factory=set)

    def dtype(self, pair: KeyPair) -> torch.dtype:
        """The dtype that a pair of tensors is given in."""
        return convert.PRECISIONS[self.precision] or super().dtype(pair)

    def part(self, pair: KeyPair, index: int) -> Tensor:
        """A tensor of diffusers' layout, changed. Raises LoraError beyond the dtype."""
        stored, path = super().part(pair, index), pair.parts[index].removesuffix(_WEIGHT)
        dtype = self.dtype(pair)
        if path == pair.parts[index]:
            return stored.to(dtype)
        made = attach.added(path, stored, self.loras, dtype)
        if not torch.equal(made, stored.to(dtype)):
            self.moved.add(path)
        return made

    def check_moved(self) -> None:
        """Raises LoraError where all was read and nothing has become other than it was."""
        if not self.moved:
            raise attach.without_effect(self.loras)


def baked(net: Source, loras: Weighted, precision: SavedPrecision = "keep") -> BakedSource:
    """`net` with `loras` in its weights. Raises LoraError where one does not fit it."""
    shapes: Mapping[str, tuple[int, ...]] = {
        name.removesuffix(_WEIGHT): pair.part_shape
        for pair in original_layout.pairs(net.design.sizes)
        for name in pair.parts
        if name.endswith(_WEIGHT)
    }
    attach.check(loras, shapes.get)
    return BakedSource(
        weights=net.weights,
        layout=net.layout,
        design=net.design,
        null_caption=net.null_caption,
        loras=loras,
        precision=precision,
    )
