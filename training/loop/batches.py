"""Batches from the pictures of a task, by this process or by workers.

A fault of a picture travels as words: what a worker raises would arrive as a trace of its calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipelines.errors import StudioError, TrainingError
from training.config import RunConfig
from training.loop.order import Order, Pick
from training.loop.task import Batch, Collate, Samples, Task

_FAULT = "fault"


@dataclass(frozen=True)
class _Telling:
    """Samples that give the words of a fault instead of raising it."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        try:
            return self.samples[pick]
        except StudioError as error:
            return {_FAULT: (error.message, error.way_out)}


@dataclass(frozen=True)
class _Collating:
    """`collate`, unless one of the samples is a fault."""

    collate: Collate

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        faults = [sample for sample in samples if _FAULT in sample]
        return faults[0] if faults else self.collate(samples)


def batches(
    task: Task,
    config: RunConfig,
    *,
    first: int,
    rank: int,
    world: int,
    device: torch.device,
    workers: int | None = None,
) -> Iterator[Batch]:
    """The micro-batches of process `rank` of `world` behind the `first` updates.

    Raises TrainingError with the words of a picture that cannot be read any more.
    """
    per_update = config.accumulate * world
    order = Order(
        plan=task.plan,
        seed=config.seed,
        first=first * per_update,
        last=config.steps * per_update,
        rank=rank,
        world=world,
    )
    loader: DataLoader[Batch] = DataLoader(
        _Telling(task.samples),  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=_Collating(task.collate),
        num_workers=config.workers if workers is None else workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(config.seed),
    )
    for batch in loader:
        if _FAULT in batch:
            raise TrainingError(*batch[_FAULT])
        yield batch
