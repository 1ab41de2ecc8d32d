"""The products of a PixArt transformer, laid out for its fast forward pass.

Queries, keys and values in one product, the variance half of the last layer apart, the convolution
over patches as a product. Layers that are not plain (adapters) are called as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from pipelines.denoising.kernels import Linear, as_linear, linear


@dataclass(frozen=True)
class CrossLayers:
    """The layers before and behind cross-attention."""

    query: nn.Linear
    out: nn.Linear


@dataclass(frozen=True)
class BlockProducts:
    """The products of one block; `short` are its layers for short texts, where they are plain."""

    qkv: Linear
    out: Linear
    cross_q: Linear
    cross_kv: Linear
    cross_out: Linear
    short: CrossLayers | None
    up: Linear
    down: Linear


@dataclass(frozen=True)
class NetProducts:
    """All products of the net, ready to be used."""

    patch: Linear
    blocks: tuple[BlockProducts, ...]
    tables: Tensor
    last: Linear
    last_noise: Linear
    last_table: Tensor


def products(net: PixArtTransformer2DModel, owned: bool) -> NetProducts:
    """The products of `net`; `owned` weights may be laid out anew, see `Transformer`."""
    channels = net.config.in_channels
    noise = _first_channels(net, channels)
    return NetProducts(
        patch=_patch(net),
        blocks=tuple(_block(block, owned) for block in net.transformer_blocks),
        tables=torch.stack([block.scale_shift_table for block in net.transformer_blocks]).detach(),
        last=linear(net.proj_out),
        last_noise=noise,
        last_table=net.scale_shift_table.detach(),
    )


def _patch(net: PixArtTransformer2DModel) -> Linear:
    """The convolution over separate patches, as a product of flattened patches."""
    return linear(as_linear(net.pos_embed.proj.weight.flatten(1), net.pos_embed.proj.bias))


def _first_channels(net: PixArtTransformer2DModel, channels: int) -> Linear:
    """The last layer without the half of the channels that only the variance needs."""
    layer = net.proj_out
    if type(layer) is not nn.Linear or net.out_channels == channels:
        return linear(layer)
    kept = slice(0, channels)
    weight = layer.weight.unflatten(0, (-1, net.out_channels))[:, kept].flatten(0, 1)
    bias = layer.bias.unflatten(0, (-1, net.out_channels))[:, kept].flatten()
    return linear(as_linear(weight, bias))


def _block(block: Any, owned: bool) -> BlockProducts:
    own, cross, wide = block.attn1, block.attn2, block.ff.net
    return BlockProducts(
        qkv=linear([own.to_q, own.to_k, own.to_v], owned=owned),
        out=linear(own.to_out[0]),
        cross_q=linear(cross.to_q),
        cross_kv=linear([cross.to_k, cross.to_v], owned=owned),
        cross_out=linear(cross.to_out[0]),
        short=_short(cross.to_q, cross.to_out[0]),
        up=linear(wide[0].proj, gelu=True),
        down=linear(wide[2]),
    )


def _short(query: nn.Module, out: nn.Module) -> CrossLayers | None:
    # Exactly linear: an adapter is a subclass or a wrapper, and has its own way.
    if type(query) is not nn.Linear or type(out) is not nn.Linear:
        return None
    assert isinstance(query, nn.Linear)
    assert isinstance(out, nn.Linear)
    return None if query.bias is None or out.bias is None else CrossLayers(query=query, out=out)
