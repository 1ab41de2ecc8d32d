"""The list of layers, against diffusers' own nets and against names written by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from lora_manager import targets
from tests import tiny
from tests.lora_manager.made import ORIGINAL


@pytest.mark.parametrize("micro", [False, True])
def test_all_are_exactly_the_layers_with_a_matrix(micro: bool) -> None:
    net = tiny.transformer(micro_conditions=micro)
    layers = {
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    found = targets.paths(2, targets.ALL, micro_conditions=micro)
    assert set(found) == layers
    assert len(found) == len(layers)


def test_attention_and_feed_forward_of_the_xl_have_the_published_size() -> None:
    with torch.device("meta"):
        net = PixArtTransformer2DModel(num_layers=28)
    counts = {}
    for kind, suffixes in (
        ("attention", targets.ATTENTION),
        ("both", targets.ATTENTION | targets.FEED_FORWARD),
    ):
        paths = targets.paths(28, suffixes)
        weights = [net.get_submodule(path).weight for path in paths]
        counts[kind] = len(paths), sum(16 * sum(weight.shape) for weight in weights)
    # 8.26 M and 13.4 M numbers at rank 16.
    assert counts == {"attention": (224, 8_257_536), "both": (280, 13_418_496)}


def test_the_original_names_are_those_written_by_hand() -> None:
    for path, original in ORIGINAL.items():
        assert path in targets.paths_of(original)
        assert targets.paths_of(path) == (path,)
        assert targets.paths_of_flat(original.replace(".", "_")) == targets.paths_of(original)
        assert targets.paths_of_flat(path.replace(".", "_")) == (path,)
    heads = tuple(f"transformer_blocks.1.attn1.to_{name}" for name in "qkv")
    assert targets.paths_of("blocks.1.attn.qkv") == heads


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blocks.0",
        "blocks.00.attn.qkv",
        "blocks.256.attn.qkv",
        "blocks.-1.attn.qkv",
        "blocks.0.attn_qkv",
        "blocks_0_attn_qkv",
        "blocks.0_attn.qkv",
        "transformer_blocks.0.attn.qkv",
        "transformer_blocks.0.attn1.to_out.1",
        "xtransformer_blocks.0.attn1.to_q",
        "blocks.0.attn.qkv ",
        "blocks.٣.attn.qkv",
        "controlnet.0.copied_block.attn.qkv",
        "proj",
    ],
)
def test_other_names_are_none(name: str) -> None:
    assert targets.paths_of(name) == ()


def test_flat_names_are_looked_up_and_never_guessed() -> None:
    assert targets.paths_of_flat("transformer_blocks_3_attn1_to_out_0") == (
        "transformer_blocks.3.attn1.to_out.0",
    )
    for name in ("transformer_blocks.3.attn1.to_q", "blocks_3_attn", "transformer_blocks_3_to_q"):
        assert targets.paths_of_flat(name) == ()
