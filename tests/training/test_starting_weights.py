"""The weights that a training from scratch starts with, held to the papers' own code.

PixArt (`PixArt.initialize_weights`, `PixArtMS.initialize`) and DiT (`DiT.initialize_weights`) keep
query, key and value in one matrix. The laws below are written out from there; every parameter of
both nets has one, and one that had none would fail.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import nets

HEADS, HEAD_DIM, LAYERS, PATCH, CHANNELS, TEXT, CLASSES = 8, 24, 3, 2, 4, 96, 50
C = HEADS * HEAD_DIM
SHAPE = {"heads": HEADS, "head_dim": HEAD_DIM, "layers": LAYERS, "patch": PATCH}
PIXELS = CHANNELS * PATCH * PATCH

Law = Callable[[Tensor], None]


def near(measured: float, expected: float, count: int) -> None:
    """Six standard errors of a standard deviation: chance alone never fails this."""
    assert measured == pytest.approx(expected, rel=6 / math.sqrt(2 * count))


def uniform(bound: float) -> Law:
    def law(weight: Tensor) -> None:
        assert weight.abs().max() <= bound * (1 + 1e-6)
        # The largest of n draws misses the bound by about bound / n.
        assert weight.abs().max() >= bound * (1 - 20 / weight.numel())
        near(weight.std().item(), bound / math.sqrt(3), weight.numel())

    return law


def xavier(inputs: int, outputs: int) -> Law:
    return uniform(math.sqrt(6 / (inputs + outputs)))


def normal(std: float) -> Law:
    def law(weight: Tensor) -> None:
        near(weight.std().item(), std, weight.numel())
        # No bounded law: some draws lie beyond two standard deviations.
        assert weight.abs().max() > 2 * std

    return law


def zero(weight: Tensor) -> None:
    assert torch.count_nonzero(weight) == 0


BLOCK: dict[str, Law] = {
    r"attn1\.to_[qkv]\.weight": xavier(C, 3 * C),
    r"attn1\.to_out\.0\.weight": xavier(C, C),
    r"ff\.net\.0\.proj\.weight": xavier(C, 4 * C),
    r"ff\.net\.2\.weight": xavier(4 * C, C),
}
PIXART: dict[str, Law] = {
    r"pos_embed\.proj\.weight": xavier(PIXELS, C),
    r"pos_embed\.proj\.bias": uniform(1 / math.sqrt(PIXELS)),
    **{rf"transformer_blocks\.\d\.{name}": law for name, law in BLOCK.items()},
    r"transformer_blocks\.\d\.attn2\.to_q\.weight": xavier(C, C),
    r"transformer_blocks\.\d\.attn2\.to_[kv]\.weight": xavier(C, 2 * C),
    r"transformer_blocks\.\d\.attn2\.to_out\.0\.weight": zero,
    r"(transformer_blocks\.\d\.)?scale_shift_table": normal(1 / math.sqrt(C)),
    r"adaln_single\.linear\.weight": normal(0.02),
    r"adaln_single\.emb\.\w+_embedder\.linear_[12]\.weight": normal(0.02),
    r"caption_projection\.linear_[12]\.weight": normal(0.02),
    r"proj_out\.weight": zero,
    r".*\.bias": zero,
}
DIT: dict[str, Law] = {
    r"pos_embed\.proj\.weight": xavier(PIXELS, C),
    **{rf"transformer_blocks\.\d\.{name}": law for name, law in BLOCK.items()},
    r"transformer_blocks\.\d\.norm1\.linear\.weight": zero,
    r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_[12]\.weight": normal(0.02),
    r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.weight": normal(0.02),
    r"proj_out_[12]\.weight": zero,
    r".*\.bias": zero,
}


def hold(net: nn.Module, laws: dict[str, Law]) -> None:
    used = set()
    for name, parameter in net.named_parameters():
        pattern = next((p for p in laws if re.fullmatch(p, name)), None)
        assert pattern is not None, f"{name}: no law"
        used.add(pattern)
        try:
            laws[pattern](parameter.detach())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    assert used == set(laws)


def pixart(**change: Any) -> Any:
    return nets.pixart(SHAPE | change, channels=CHANNELS, sample_size=8, caption_channels=TEXT)


def test_a_pixart_starts_as_the_authors() -> None:
    torch.manual_seed(3)
    hold(pixart(micro_conditions=True), PIXART)


def test_a_dit_starts_as_the_authors() -> None:
    torch.manual_seed(4)
    hold(nets.dit(SHAPE, channels=CHANNELS, sample_size=8, classes=CLASSES), DIT)


def test_the_parts_of_a_stacked_matrix_have_its_law() -> None:
    """The same law as the reference reaches by another way: one matrix, drawn and cut."""
    torch.manual_seed(5)
    stacked = nn.Linear(C, 3 * C)
    nn.init.xavier_uniform_(stacked.weight)
    attention = pixart().transformer_blocks[1].attn1
    for part, layer in zip(
        stacked.weight.chunk(3), (attention.to_q, attention.to_k, attention.to_v), strict=True
    ):
        near(layer.weight.std().item(), part.std().item(), part.numel() // 2)


def test_size_conditions_that_come_late_add_nothing() -> None:
    torch.manual_seed(6)
    model = pixart(micro_conditions=True)
    nets.silence_size_side(model)
    embedding = model.adaln_single.emb
    timestep = torch.tensor([3, 700])
    with torch.no_grad():
        alone = embedding.timestep_embedder(embedding.time_proj(timestep))
        sized = embedding(
            timestep,
            resolution=torch.tensor([[512.0, 768.0], [64.0, 64.0]]),
            aspect_ratio=torch.tensor([[0.67], [1.0]]),
            batch_size=2,
            hidden_dtype=torch.float32,
        )
    assert torch.equal(alone, sized)
    nets.silence_size_side(pixart())
