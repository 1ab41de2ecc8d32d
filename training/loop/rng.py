"""Generators of random tensors that are keyed by their place; see `training.loop.draws`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.loop.draws import key
from training.objective import TIMESTEPS


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator for one place, the same on every device and in every process."""
    return torch.Generator("cpu").manual_seed(key(*place))


# Small pictures lose what they show at less noise than large ones (arXiv 2301.11093, section 3), so
# evenly drawn timesteps show a small model mostly noise. The logit of the middle, and the spread.
_MIDDLE = math.log(0.31 / 0.69)
_SPREAD = 0.8


def drawn(
    latents: Tensor, draw: torch.Generator, timestep: int | None = None, *, middle: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(noise like `latents` (B, ...), timesteps (B,)) on their device; `timestep` fixes all.

    A timestep is drawn evenly, or with the chance `middle` logit-normally (arXiv 2403.03206,
    section 3.1) around 310: two of three lie between 170 and 500.
    """
    count = len(latents)
    noise = torch.randn(latents.shape, generator=draw).to(latents.device)
    timesteps = torch.randint(0, TIMESTEPS, (count,), generator=draw)
    if middle:
        chosen = torch.rand(count, generator=draw) < middle
        logits = _MIDDLE + _SPREAD * torch.randn(count, generator=draw)
        around = (logits.sigmoid() * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        timesteps = torch.where(chosen, around, timesteps)
    if timestep is not None:
        timesteps = torch.full_like(timesteps, timestep)
    return noise, timesteps.to(latents.device)
