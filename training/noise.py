"""Generators of random tensors that are keyed by their place; see `training.draws`."""

from __future__ import annotations

import torch

from training.draws import key


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator for one place, the same on every device and in every process."""
    return torch.Generator("cpu").manual_seed(key(*place))
