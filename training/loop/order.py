"""Which pictures are read in which micro-batch: a pure function of the seed and the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from training.loop.draws import key

ReadingOrder = Callable[[int], list[tuple[int, ...]]]
"""Epoch -> its micro-batches, each a tuple of sample numbers of one size."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One sample of a micro-batch. `key` seeds whatever is drawn for it (crop, flip, caption)."""

    index: int
    key: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """A batch sampler without state: process `rank` of `world` reads every world-th micro-batch.

    It starts behind the `first` micro-batches that all processes together have read.
    """

    plan: ReadingOrder
    seed: int
    first: int
    last: int
    rank: int
    world: int

    def __len__(self) -> int:
        return len(range(self.first + self.rank, self.last, self.world))

    def __iter__(self) -> Iterator[list[Pick]]:
        epoch, batches = -1, self.plan(0)
        per_epoch = len(batches)
        for place in range(self.first + self.rank, self.last, self.world):
            if place // per_epoch != epoch:
                epoch = place // per_epoch
                batches = self.plan(epoch)
            yield [
                Pick(index=index, key=key(self.seed, "sample", place, row))
                for row, index in enumerate(batches[place % per_epoch])
            ]
