"""The distance of features: zero for equal pictures, small for near ones, with useful gradients."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from training.perceptual import WEIGHTS, Features


@pytest.fixture(scope="module")
def features() -> Features:
    return Features(depth=3)


def test_the_weights_are_those_of_the_file(features: Features) -> None:
    tensors = load_file(WEIGHTS)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    x = (pixels + 1) * 127.5 - tensors["norm"].float()
    for number in (0, 1):
        weight = tensors[f"block1.convs.{number}.weight"].float()
        bias = tensors[f"block1.convs.{number}.bias"].float()
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
    maps = features(pixels)
    assert [tuple(m.shape) for m in maps] == [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4)]
    assert torch.allclose(maps[0], x, atol=1e-3)


def test_near_is_nearer_than_far(features: Features) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    near = (pixels + 0.02 * torch.randn_like(pixels)).requires_grad_()
    equal = features.distance(pixels, pixels)
    assert equal.tolist() == pytest.approx([0, 0], abs=1e-6)
    distance = features.distance(near, pixels)
    far = features.distance(torch.rand_like(pixels) * 2 - 1, pixels)
    assert (distance < far).all()
    distance.sum().backward()
    assert near.grad is not None
    assert torch.isfinite(near.grad).all()
    assert all(p.grad is None for p in features.parameters())
