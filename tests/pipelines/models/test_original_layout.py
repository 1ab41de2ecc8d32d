"""Keys, shapes and families of PixArt transformers, at their real sizes where nothing is held."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from pipelines.errors import ModelError, RequestError
from pipelines.models import original_layout, positions
from tests import original

XL: dict[str, Any] = {"width": 1152, "layers": 28, "captions": 4096}


@pytest.mark.parametrize(("micro", "parameters"), [(False, 610_856_096), (True, 611_349_152)])
def test_the_real_xl_has_every_key_and_shape_of_both_layouts(micro: bool, parameters: int) -> None:
    """Checkpoint as written out by hand; diffusers' own class, both without memory."""
    shapes = original.shapes(**XL, micro=micro, grid=64)
    sizes = original_layout.measure(shapes, original_layout.layout_of(shapes))
    side = {key: shapes.pop(key) for key in original_layout.SIDE_TENSORS["original"]}
    assert original_layout.expected(sizes, "original") == shapes
    assert side["y_embedder.y_embedding"] == (120, 4096)
    design = original_layout.Design(
        sizes=sizes, head_dim=72, sample_size=128, interpolation_scale=2.0, tokens=120
    )
    with torch.device("meta"):
        net = PixArtTransformer2DModel.from_config(design.config())
        state = {pair.original: torch.empty(pair.shape) for pair in original_layout.pairs(sizes)}
    theirs = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert original_layout.expected(sizes, "diffusers") == theirs
    assert sum(p.numel() for p in net.parameters()) == parameters
    parts = {
        name: part
        for pair in original_layout.pairs(sizes)
        for name, part in zip(pair.parts, state[pair.original].chunk(len(pair.parts)), strict=True)
    }
    net.load_state_dict(parts, assign=True)


@pytest.mark.parametrize(
    ("tokens", "micro", "sample", "name", "sigma"),
    [
        (120, False, 32, "PixArt-α 256", False),
        (120, False, 64, "PixArt-α 512", False),
        (120, True, 128, "PixArt-α 1024-MS", False),
        (None, True, 128, "PixArt-α 1024-MS", False),
        (300, False, 32, "PixArt-Σ 256", True),
        (300, False, 64, "PixArt-Σ 512-MS", True),
        (None, False, 128, "PixArt-Σ 1024-MS", True),
        (300, False, 256, "PixArt-Σ 2048-MS", True),
    ],
)
def test_families(tokens: int | None, micro: bool, sample: int, name: str, sigma: bool) -> None:
    sizes = original_layout.measure(original.shapes(**XL, micro=micro), "original")
    design = original_layout.Design(
        sizes=sizes, head_dim=72, sample_size=sample, interpolation_scale=1, tokens=tokens
    )
    assert (design.family, design.is_sigma) == (name, sigma)


def test_blocks_of_a_controlnet_map_by_the_same_pairs() -> None:
    pairs = list(
        original_layout.block_pairs(
            "controlnet.3.copied_block.", "controlnet_blocks.3.transformer_block.", 48
        )
    )
    assert {p.original: p.shape for p in pairs} == original.block("controlnet.3.copied_block.", 48)
    qkv = next(p for p in pairs if p.original.endswith("attn.qkv.weight"))
    assert qkv.parts == tuple(
        f"controlnet_blocks.3.transformer_block.attn1.to_{x}.weight" for x in "qkv"
    )
    assert qkv.part_shape == (48, 48)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("controlnet.0.copied_block.attn.qkv.weight", "a ControlNet"),
        ("controlnet_blocks.0.after_proj.weight", "a ControlNet"),
        ("transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_magnitude_vector", "a LoRA"),
        ("lora_unet_blocks_0_attn_qkv.alpha", "a LoRA"),
        ("lycoris_transformer_blocks_0_attn1_to_q.lokr_w1_a", "a LoRA"),
        ("blocks.0.attn.qkv.hada_w1_b", "a LoRA"),
        ("blocks.0.attn.qkv.dora_scale", "a LoRA"),
        ("y_embedder.embedding_table.weight", "class-conditional"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("decoder.conv_in.weight", "a VAE"),
        ("something.else", "begins with “something.else”"),
    ],
)
def test_other_nets_are_named(key: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        original_layout.layout_of([key])


def test_a_controlnet_file_with_its_base_is_a_controlnet() -> None:
    keys = [f"base_model.{key}" for key in original.shapes(width=48, layers=1, captions=32)]
    with pytest.raises(ModelError, match="ControlNet"):
        original_layout.layout_of([*keys, "controlnet.0.copied_block.scale_shift_table"])
    assert original_layout.unwrapped(keys) == ""


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off(prefix: str) -> None:
    keys = [prefix + key for key in original.shapes(width=48, layers=1, captions=32)]
    assert original_layout.unwrapped(keys) == prefix
    assert original_layout.unwrapped([*keys, "other"]) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks.1.mlp.fc1.weight": None}, "lacks “blocks.1.mlp.fc1.weight”"),
        ({"blocks.0.attn.qkv.weight": (144, 47)}, "144×47 where 144×48"),
        ({"blocks.0.attn.q_norm.weight": (24,)}, "normalised or compressed"),
        ({"blocks.0.attn.sr.weight": (48, 1, 2, 2)}, "normalised or compressed"),
        ({"blocks.0.extra": (1,)}, "“blocks.0.extra”, which no PixArt has"),
        ({"csize_embedder.mlp.0.weight": (16, 256)}, "lacks “csize_embedder"),
        ({"blocks.999.scale_shift_table": (6, 48)}, "1,000 as layers"),
        ({"x_embedder.proj.weight": (48, 4)}, "the shape 48×4"),
        ({"x_embedder.proj.weight": (2**40, 4, 2, 2)}, "as width"),
        ({"x_embedder.proj.weight": (0, 4, 2, 2)}, "the shape 0×4"),
        ({"y_embedder.y_proj.fc1.weight": (48, 2**33)}, "as caption channels"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    shapes: dict[str, Any] = original.shapes(width=48, layers=2, captions=32) | change
    shapes = {key: shape for key, shape in shapes.items() if shape is not None}
    with pytest.raises(ModelError, match=words):
        original_layout.measure(shapes, "original")


def test_widths_that_positions_cannot_fill_are_refused() -> None:
    with pytest.raises(ModelError, match="46 wide"):
        original_layout.measure(original.shapes(width=46, layers=1, captions=32), "original")


def test_heads_are_known_asked_for_or_refused() -> None:
    assert original_layout.head_dim(1152, None) == 72
    assert original_layout.head_dim(384, None) == 64
    assert original_layout.head_dim(576, 72) == 72
    with pytest.raises(RequestError, match="--head-dim"):
        original_layout.head_dim(576, None)
    with pytest.raises(RequestError, match="do not fill"):
        original_layout.head_dim(1152, 70)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0, 4.0, 1.5])
def test_the_interpolation_scale_is_read_from_the_positions(scale: float) -> None:
    stored = original.positions(48, 8, scale)
    assert positions.derive(stored.numpy(), 2, 1e-4) == (16, scale)
    assert np.array_equal(positions.sincos(48, 8, scale), stored.numpy())
    rounded = stored.bfloat16().float().numpy()
    assert positions.derive(rounded, 2, positions.TOLERANCES["bfloat16"]) == (16, scale)


@pytest.mark.parametrize(("grid", "scale"), [(16, 0.5), (16, 1.0), (32, 1.0), (64, 2.0)])
def test_the_positions_of_the_real_sizes(grid: int, scale: float) -> None:
    """diffusers' own positions, computed in single precision, are recognised, too."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    theirs = get_2d_sincos_pos_embed(
        1152, grid, base_size=grid, interpolation_scale=scale, output_type="pt"
    )
    stored = theirs.float()[None].numpy()
    assert positions.derive(stored, 2, 1e-4) == (2 * grid, scale)
    assert np.abs(positions.sincos(1152, grid, scale) - stored).max() < 1e-4


def test_positions_that_are_none() -> None:
    stored = original.positions(48, 8, 1.0).numpy()
    assert positions.derive(np.zeros_like(stored), 2, 1e-4) is None
    for wrong in (stored + 0.01, np.full_like(stored, np.nan), np.random.default_rng(0).random):
        table = wrong((1, 64, 48)) if callable(wrong) else wrong
        with pytest.raises(ModelError, match="no interpolation scale"):
            positions.derive(table.astype(np.float32), 2, 1e-4)
    with pytest.raises(ModelError, match="not those of a square"):
        positions.derive(stored[:, :63], 2, 1e-4)
    with pytest.raises(ModelError, match="the shape 64×48"):
        positions.derive(stored[0], 2, 1e-4)
