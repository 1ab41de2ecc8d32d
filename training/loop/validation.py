"""The loss on held-out pictures: always the same noise at the same timesteps, so that the curve
shows the training and not the dice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from training.config import RunConfig
from training.loop.draws import key
from training.loop.order import Order
from training.loop.task import Batch, Task

Forward = Callable[[Batch, int, int | None], dict[str, Tensor]]
"""(batch, seed, timestep) -> losses (B,) by name."""


@torch.no_grad()
def held_out_losses(
    task: Task, config: RunConfig, accelerator: Accelerator, forward: Forward
) -> list[float]:
    """The mean loss at each fixed timestep, or one where the method has no timesteps."""
    timesteps: list[int | None] = [None]
    if task.fixed_timesteps:
        timesteps = list(config.validation.timesteps)
    return [_mean(task, config, accelerator, forward, timestep) for timestep in timesteps]


def _mean(
    task: Task,
    config: RunConfig,
    accelerator: Accelerator,
    forward: Forward,
    timestep: int | None,
) -> float:
    world, rank = accelerator.num_processes, accelerator.process_index
    batches = list(task.held_out_batches)
    order = Order(
        plan=lambda _: batches,
        seed=config.seed,
        first=0,
        # Every process walks as many batches, whatever the rest: they wait for each other.
        last=-(-len(batches) // world) * world,
        rank=rank,
        world=world,
    )
    sums = torch.zeros(2, device=accelerator.device)
    for number, picks in enumerate(order):
        batch = task.collate([task.held_out[pick] for pick in picks])
        losses = forward(batch, key(config.seed, "validation", number * world + rank), timestep)
        values = losses.get("mse", losses["loss"])
        sums += torch.stack([values.sum(), torch.ones_like(values).sum()]).to(sums)
    total, pictures = accelerator.reduce(sums, "sum").tolist()
    return float(total / pictures)
