"""Generators of random tensors that are keyed by their place; see `training.draws`."""

from __future__ import annotations

import torch
from torch import Tensor

from training.draws import key
from training.objective import TIMESTEPS


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator for one place, the same on every device and in every process."""
    return torch.Generator("cpu").manual_seed(key(*place))


def drawn(
    latents: Tensor, draw: torch.Generator, timestep: int | None = None
) -> tuple[Tensor, Tensor]:
    """(noise like `latents` (B, ...), timesteps (B,)) on their device; `timestep` fixes all."""
    noise = torch.randn(latents.shape, generator=draw).to(latents.device)
    timesteps = torch.randint(0, TIMESTEPS, (len(latents),), generator=draw)
    if timestep is not None:
        timesteps = torch.full_like(timesteps, timestep)
    return noise, timesteps.to(latents.device)
