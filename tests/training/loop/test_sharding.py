"""Which layers become units of their own when weights are spread; plain tensors pass unchanged."""

from __future__ import annotations

import torch
from torch import nn

from training import nets
from training.loop import sharding

SHAPE = {"heads": 2, "head_dim": 8, "layers": 2}


def test_blocks_of_a_transformer_are_units() -> None:
    model = nets.pixart(SHAPE, channels=4, sample_size=8, caption_channels=8)
    assert sharding.units(model) == list(model.transformer_blocks)


def test_blocks_that_share_weights_stay_together() -> None:
    model = nets.dit(SHAPE, channels=4, sample_size=8, classes=3)
    assert sharding.units(model) == []


def test_plain_tensors_are_left_alone() -> None:
    tensor, weight = torch.ones(2), nn.Parameter(torch.zeros(2))
    assert not sharding.is_spread(tensor)
    for same in (sharding.whole(tensor), sharding.own(tensor), sharding.like(tensor, weight)):
        assert same is tensor
    sharding.hand_over([tensor], [weight], keep=True)
    assert torch.equal(weight, tensor)
