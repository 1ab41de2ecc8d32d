"""The VAE's training: what the adversary moves, and that a tuned decoder keeps latents valid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from pydantic import ValidationError
from torch import nn

from tests.training import small
from training import recipes, stages
from training.config import RunConfig
from training.methods.adversary import Adversary
from training.methods.vae import VaeLoss, build

NET = {"channels": [8, 8, 8, 8], "norm_num_groups": 4}


def walk(root: Path, data: Path, stage: dict[str, Any]) -> Path:
    """The result of a recipe of one stage."""
    recipe = recipes.resolve({"title": "VAE", "stage": [stage]}, name="vae.toml")
    outcome = stages.walk(
        recipe,
        root=root,
        data=data,
        report=lambda _: lambda _: None,
        should_stop=lambda: False,
    )
    assert outcome.reason == "finished"
    return stages.folder_of(root, recipe, stage["name"]) / "result"


def weights(result: Path) -> dict[str, torch.Tensor]:
    return dict(AutoencoderKL.from_pretrained(result / "vae").state_dict())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small.pictures(folder / "pictures")
    return folder


def test_the_critic_and_the_vae_do_not_share_gradients() -> None:
    torch.manual_seed(0)
    adversary = Adversary()
    rebuilt = torch.randn(2, 3, 32, 32, requires_grad=True)
    pixels = torch.randn(2, 3, 32, 32)
    fooled, critic = adversary(rebuilt, pixels)
    assert fooled.shape == critic.shape == (2,)
    fooled.sum().backward(retain_graph=True)
    assert rebuilt.grad is not None
    assert rebuilt.grad.abs().max() > 0
    assert all(p.grad is None for p in adversary.parameters())
    rebuilt.grad = None
    critic.sum().backward()
    assert rebuilt.grad is None
    assert all(p.grad is not None for p in adversary.parameters())


def test_a_critic_learns_to_tell_noise_from_planes() -> None:
    torch.manual_seed(0)
    adversary = Adversary()
    optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-3)
    for _ in range(30):
        planes = torch.rand(4, 3, 1, 1).expand(-1, -1, 32, 32) * 2 - 1
        _, critic = adversary(torch.randn(4, 3, 32, 32), planes)
        optimizer.zero_grad()
        critic.mean().backward()
        optimizer.step()
    # Two hinges of 1 each, halved, is what a critic that knows nothing pays.
    assert critic.mean() < 0.3


def test_the_loss_counts_the_adversary_with_its_weight() -> None:
    stage = small.stage("a", "vae", net=NET, objective={"adversarial": 0.25})
    recipe = recipes.resolve({"title": "VAE", "stage": [stage]}, name="vae.toml")
    (config,) = recipe.stages
    torch.manual_seed(0)
    loss = VaeLoss(build(config, None), config)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    found = loss({"pixels": pixels}, 1, None)
    wanted = found["l1"] + config.objective.kl * found["kl"]
    wanted = wanted + 0.25 * found["fooled"] + found["critic"]
    assert torch.allclose(found["loss"], wanted)
    assert isinstance(loss.adversary, nn.Module)


def test_a_tuned_decoder_leaves_encoder_and_scale_as_they_were(data: Path, tmp_path: Path) -> None:
    first = walk(tmp_path / "one", data, small.stage("vae", "vae", net=NET, data={"side": 32}))
    stage = small.stage(
        "sharp",
        "vae",
        base={"vae": str(first)},
        parts="decoder",
        data={"side": 32},
        objective={"adversarial": 0.1},
    )
    second = walk(tmp_path / "two", data, stage)
    before, after = weights(first), weights(second)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} <= {"decoder", "post_quant_conv"}
    one, two = (AutoencoderKL.from_pretrained(r / "vae").config for r in (first, second))
    assert one.scaling_factor == two.scaling_factor
    # The critic is kept in checkpoints, to go on from, and is no part of the result.
    assert set(before) == set(after)
    shutil.rmtree(tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"parts": "decoder"}, "base.vae to go on from"),
        ({"parts": "encoder"}, "Input should be 'all' or 'decoder'"),
        ({"method": "text-encoder", "objective": {"adversarial": 1.0}}, "belongs to the method"),
    ],
)
def test_what_cannot_be_trained_is_said(change: dict[str, Any], told: str) -> None:
    values = {"name": "a", "method": "vae", "steps": 3, "data": {"source": "x"}} | change
    with pytest.raises(ValidationError, match=told):
        RunConfig.model_validate(values)
