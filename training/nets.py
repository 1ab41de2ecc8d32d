"""The transformers from scratch: shapes, and the starting weights of the papers.

DiT (arXiv 2212.09748): every modulation starts at zero, so each block starts as the identity.
PixArt-α (arXiv 2310.00426): cross-attention and output start at zero.

Both papers' code keeps query, key and value in one matrix and draws that one (Xavier); diffusers
keeps them apart, so each is drawn here with the bound of the matrix that it is a part of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from torch import nn

_EPS = 1e-6
_EMBEDDER_STD = 0.02
_SHAPE = {"heads": 6, "head_dim": 64, "layers": 6, "patch": 2}


def dit(net: Mapping[str, Any], *, channels: int, sample_size: int, classes: int) -> Any:
    """A class-conditional DiT with adaLN-Zero and one embedder for time and class.

    diffusers keeps an embedder per block, copies of the original's single one; here all blocks
    share the first, as in the paper. `sample_size` counts latents.
    """
    shape = _SHAPE | {"interpolation_scale": 1.0} | dict(net)
    model = DiTTransformer2DModel(
        **_arguments(shape, channels, sample_size), num_embeds_ada_norm=classes
    )
    # diffusers' DiT knows no interpolation of positions; its embedding of patches does.
    width = shape["heads"] * shape["head_dim"]
    model.pos_embed = PatchEmbed(
        height=sample_size,
        width=sample_size,
        patch_size=shape["patch"],
        in_channels=channels,
        embed_dim=width,
        interpolation_scale=shape["interpolation_scale"],
    )
    shared = model.transformer_blocks[0].norm1.emb
    # PixArt's sinusoids; DiT's differ by this shift, and the weights are handed on to a PixArt.
    shared.time_proj.downscale_freq_shift = 0
    for block in model.transformer_blocks:
        block.norm1.emb = shared
    _xavier(model)
    for block in model.transformer_blocks:
        _stacked(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    _zero_bias(model.pos_embed.proj)
    _embedder(shared.timestep_embedder)
    nn.init.normal_(shared.class_embedder.embedding_table.weight, std=_EMBEDDER_STD)
    for block in model.transformer_blocks:
        _zero(block.norm1.linear)
    _zero(model.proj_out_1)
    _zero(model.proj_out_2)
    return model


def pixart(
    net: Mapping[str, Any], *, channels: int, sample_size: int, caption_channels: int
) -> PixArtTransformer2DModel:
    """A PixArt transformer; `micro_conditions` and `interpolation_scale` as `net` says."""
    shape = _SHAPE | {"micro_conditions": False, "interpolation_scale": 1.0} | dict(net)
    model = PixArtTransformer2DModel(
        **_arguments(shape, channels, sample_size),
        cross_attention_dim=shape["heads"] * shape["head_dim"],
        caption_channels=caption_channels,
        interpolation_scale=shape["interpolation_scale"],
        use_additional_conditions=shape["micro_conditions"],
    )
    _xavier(model)
    for block in model.transformer_blocks:
        _stacked(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        _stacked(block.attn2.to_k, block.attn2.to_v)
        _zero(block.attn2.to_out[0])
    _convolution_bias(model.pos_embed.proj)
    for layer in (model.caption_projection.linear_1, model.caption_projection.linear_2):
        nn.init.normal_(layer.weight, std=_EMBEDDER_STD)
    time = model.adaln_single
    _embedder(time.emb.timestep_embedder)
    nn.init.normal_(time.linear.weight, std=_EMBEDDER_STD)
    if shape["micro_conditions"]:
        for embedder in _size_side(model):
            _embedder(embedder)
    _zero(model.proj_out)
    return model


def silence_size_side(model: PixArtTransformer2DModel) -> None:
    """Lets the embedders of size and aspect ratio add nothing yet.

    For a net that gets them late: it then starts as exactly the net that it goes on from.
    """
    for embedder in _size_side(model):
        _zero(embedder.linear_2)


def _size_side(model: PixArtTransformer2DModel) -> tuple[Any, ...]:
    time = model.adaln_single.emb
    if not time.use_additional_conditions:
        return ()
    return (time.resolution_embedder, time.aspect_ratio_embedder)


def _arguments(shape: Mapping[str, Any], channels: int, sample_size: int) -> dict[str, Any]:
    """What both classes of diffusers call by the same name; half of the output is variance."""
    return {
        "num_attention_heads": shape["heads"],
        "attention_head_dim": shape["head_dim"],
        "num_layers": shape["layers"],
        "patch_size": shape["patch"],
        "in_channels": channels,
        "out_channels": 2 * channels,
        "sample_size": sample_size,
        "attention_bias": True,
        "norm_eps": _EPS,
    }


def _xavier(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            _zero_bias(module)
        elif isinstance(module, nn.Conv2d):
            # The patch embedding is a matrix over flattened patches.
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))


def _stacked(*layers: nn.Linear) -> None:
    """Draws matrices as if they were one, stacked over their outputs."""
    fan_out = sum(layer.out_features for layer in layers)
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + fan_out))
        nn.init.uniform_(layer.weight, -bound, bound)


def _convolution_bias(layer: nn.Conv2d) -> None:
    """PixArt leaves this bias as a convolution draws it (DiT sets it to zero)."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound)


def _embedder(embedder: Any) -> None:
    nn.init.normal_(embedder.linear_1.weight, std=_EMBEDDER_STD)
    nn.init.normal_(embedder.linear_2.weight, std=_EMBEDDER_STD)


@torch.no_grad()
def _zero(layer: nn.Linear) -> None:
    layer.weight.zero_()
    _zero_bias(layer)


@torch.no_grad()
def _zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        layer.bias.zero_()
