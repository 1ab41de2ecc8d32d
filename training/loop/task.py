"""What the loop needs to know of a method: one net with a loss, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from pipelines.errors import SaveError, printable
from training.loop.checkpoint import sync_folder
from training.loop.order import Pick, ReadingOrder

Batch = dict[str, Any]
"""Tensors by name; "ids" names the samples for messages."""


Collate = Callable[[list[dict[str, Any]]], Batch]


class Samples(Protocol):
    """A map-style dataset: what a picture is depends on the pick alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, pick: Pick) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training.

    `net` is called as `net(batch, seed, timestep)`: `seed` keys everything random, `timestep` is
    None in training and a fixed one in validation. It returns tensors (B,), one of them "loss".
    `samples` are learned from in the order of `plan`, and `collate` makes them a batch; the loss on
    `held_out`, in batches of these indices, is the validation. `fixed_timesteps` False says that it
    has no timesteps. `preview` paints a sample sheet with the weights as they are; `publish` writes
    the result into a folder and returns what is worth telling, as `facts` tells of the data.
    """

    net: nn.Module
    samples: Samples
    held_out: Samples
    held_out_batches: Sequence[tuple[int, ...]]
    plan: ReadingOrder
    collate: Collate
    publish: Callable[[Path], Mapping[str, Any]]
    preview: Callable[[], Image.Image] | None = None
    fixed_timesteps: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    def published(self, folder: Path) -> dict[str, Any]:
        """Publishes, and returns what is told once the result is on the disk. Raises SaveError."""
        try:
            told = dict(self.publish(folder))
            sync_folder(folder)
        except (OSError, SafetensorError) as error:
            raise SaveError(
                f"The result cannot be written to {folder} ({printable(error, 120)}).",
                "Free some space and give the same command again.",
            ) from None
        return told


def trained(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of `net` that learn, by name."""
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def stacked(samples: list[dict[str, Any]]) -> Batch:
    """Tensors of equal shape stacked; everything else as lists."""
    batch: Batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = values
    return batch
