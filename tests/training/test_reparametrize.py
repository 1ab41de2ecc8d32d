"""From a class-conditional DiT to PixArt: equal where the paper says so."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from pipelines.errors import TrainingError
from training import nets
from training.reparametrize import ANCHOR, reparametrize

SHAPE = {"heads": 2, "head_dim": 24, "layers": 3}


def pair() -> tuple[DiTTransformer2DModel, PixArtTransformer2DModel]:
    """A DiT whose every weight does something, and the PixArt that it becomes."""
    torch.manual_seed(0)
    dit = nets.dit(SHAPE, channels=4, sample_size=8, classes=5)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[2] = 0
    model = nets.pixart(SHAPE, channels=4, sample_size=8, caption_channels=16)
    reparametrize(dit, model)
    return dit.eval(), model.eval()


@torch.no_grad()
def both(timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
    dit, model = pair()
    torch.manual_seed(1)
    latents = torch.randn(3, 4, 8, 8)
    timesteps = torch.full((3,), timestep)
    # Class 2 has the embedding zero: the net without a class.
    theirs = dit(latents, timestep=timesteps, class_labels=torch.full((3,), 2)).sample
    mine = model(
        latents,
        encoder_hidden_states=torch.randn(3, 5, 16),
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return theirs, mine


def test_exact_at_the_anchor_whatever_the_text_says() -> None:
    theirs, mine = both(ANCHOR)
    assert theirs.std() > 0.05
    assert (theirs - mine).abs().max() < 1e-5


def test_near_and_not_equal_elsewhere() -> None:
    theirs, mine = both(100)
    assert (theirs - mine).abs().max() > 1e-4


def test_another_shape_is_refused() -> None:
    dit = nets.dit(SHAPE, channels=4, sample_size=8, classes=5)
    for change in ({"layers": 2}, {"heads": 3}):
        model = nets.pixart(SHAPE | change, channels=4, sample_size=8, caption_channels=16)
        with pytest.raises(TrainingError, match="class-conditional net has"):
            reparametrize(dit, model)


def test_positions_that_mean_something_else_are_refused() -> None:
    scaled = SHAPE | {"interpolation_scale": 0.5}
    dit = nets.dit(scaled, channels=4, sample_size=8, classes=5)
    model = nets.pixart(SHAPE, channels=4, sample_size=8, caption_channels=16)
    with pytest.raises(TrainingError, match=r"interpolation_scale 0.5, the new one 1.0"):
        reparametrize(dit, model)
    same = nets.pixart(scaled, channels=4, sample_size=8, caption_channels=16)
    reparametrize(dit, same)
    assert torch.equal(dit.pos_embed.pos_embed, same.pos_embed.pos_embed)


def test_fresh_nets_begin_as_the_papers_say() -> None:
    dit = nets.dit(SHAPE, channels=4, sample_size=8, classes=5).eval()
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        out = dit(latents, timestep=torch.tensor([3, 900]), class_labels=torch.tensor([0, 4]))
    assert torch.count_nonzero(out.sample) == 0
    shared = {id(block.norm1.emb) for block in dit.transformer_blocks}
    assert len(shared) == 1
    model = nets.pixart(
        SHAPE | {"micro_conditions": True}, channels=4, sample_size=8, caption_channels=16
    )
    for block in model.transformer_blocks:
        assert torch.count_nonzero(block.attn2.to_out[0].weight) == 0
    assert torch.count_nonzero(model.proj_out.weight) == 0
