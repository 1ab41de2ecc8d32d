"""PixArt's transformer with less work: the weights of diffusers' PixArtTransformer2DModel, and its
result up to rounding.

What does not depend on the step is computed once per job: the projected captions, keys and values
of cross-attention, positions. What depends on the timestep alone is computed once for both halves
of guidance. Texts carry no padding, so nothing is masked; a text of one token (the empty negative)
gives every query the same value, a constant. Source: docs/decisions/0007 with the measurements.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from torch.nn import functional

from pipelines.denoising.kernels import as_linear, attention, linear
from pipelines.denoising.latents import PIXELS_PER_LATENT
from pipelines.denoising.net_state import NetState
from pipelines.denoising.products import BlockProducts, CrossLayers, NetProducts, products
from pipelines.denoising.residual import EPS, Apart, Compiler, Joined, Residual, norm

Predict = Callable[[Tensor, float], Tensor]
"""(latents (1, C, h, w), timestep) -> (rows, C or 2C, h, w) float32; a row for every text."""

BlockResidual = Callable[[int, Tensor, float], Tensor | None]
"""(number of a block, its tokens (B, N, D), timestep) -> what is added to them, or None.

That is (B, N, D) or (1, N, D). The tokens change afterwards: whoever keeps them makes a copy."""

# Bytes of the tables of positions that are kept: one of 1024 px has 19 MB.
_MAX_POSITIONS = 64 * 2**20


_CrossAttention = Callable[[Tensor], Tensor]
"""Cross-attention of one block to one text: (1, N, D) -> what is added to it."""


class Transformer:
    """One net. Weights may change between jobs (adapters); what was derived is then made anew.

    Changes behind PyTorch's back, through `.data`, have to be told by `refresh`. `owned`: the net
    serves nobody else and is never saved, so its weights may be laid out anew. `compiler`, a back
    end of torch.compile, joins small kernels: the same numbers up to rounding.
    """

    def __init__(
        self,
        net: PixArtTransformer2DModel,
        *,
        owned: bool = False,
        compiler: Compiler | None = None,
    ) -> None:
        self._net = net
        self._owned = owned
        self._compiler = compiler
        self._made_for: NetState | None = None
        self._weights: NetProducts | None = None
        self._residual: Residual = self._new_residual()
        self._positions: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @property
    def net(self) -> PixArtTransformer2DModel:
        """The net whose weights are used."""
        return self._net

    @property
    def channels(self) -> int:
        """Channels of its latents."""
        count: int = self._net.config.in_channels
        return count

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self._net.scale_shift_table.device

    def refresh(self) -> None:
        """Forgets everything that was derived from the weights."""
        self._weights = None
        self._residual = self._new_residual()
        self._positions.clear()

    def predictor(
        self,
        texts: Sequence[Tensor],
        size: tuple[int, int],
        *,
        variance: bool = False,
        original_size: tuple[int, int] | None = None,
        residual: BlockResidual | None = None,
    ) -> Predict:
        """What predicts the noise of latents of `size` (h, w) for each of `texts`, (T, C) each.

        `variance` asks for the variance half of the channels too. `original_size` (height, width)
        in pixels is told to nets with micro-conditions, by default that of the picture. What
        `residual` returns is added to the tokens behind each block.
        """
        weights = self._ready()
        return _Forward(
            net=self._net,
            weights=weights,
            residual=self._residual,
            texts=[self._cross_attentions(weights, text) for text in texts],
            positions=self._position(size),
            size=size,
            variance=variance,
            conditions=conditions(self._net, size, 1, original_size),
            block_residual=residual,
        )

    def _ready(self) -> NetProducts:
        if self._weights is None or not (self._made_for and self._made_for.holds(self._net)):
            self.refresh()
            self._weights = products(self._net, self._owned)
            self._made_for = NetState(self._net)
        return self._weights

    def _new_residual(self) -> Residual:
        config, like = self._net.config, self._net.scale_shift_table
        if self._compiler is None or config.norm_eps != EPS:
            return Apart(config.norm_eps)
        return Joined(like.shape[-1], like, self._compiler)

    def _position(self, size: tuple[int, int]) -> Tensor:
        """The table of positions (1, N, D) float32, built once per size."""
        if size not in self._positions:
            self._positions[size] = _positions(self._net, size)
        self._positions.move_to_end(size)
        while len(self._positions) > 1 and self._table_bytes() > _MAX_POSITIONS:
            self._positions.popitem(last=False)
        return self._positions[size]

    def _table_bytes(self) -> int:
        return sum(table.nbytes for table in self._positions.values())

    def _cross_attentions(self, weights: NetProducts, text: Tensor) -> list[_CrossAttention]:
        net = self._net
        caption = text.unsqueeze(0).to(net.scale_shift_table)
        if net.caption_projection is not None:
            caption = net.caption_projection(caption)
        heads = net.config.num_attention_heads
        return [_cross_attention(block, caption, heads) for block in weights.blocks]


class _Forward:
    """The predictor of one job; remembers the modulation of each timestep."""

    def __init__(
        self,
        *,
        net: PixArtTransformer2DModel,
        weights: NetProducts,
        residual: Residual,
        texts: list[list[_CrossAttention]],
        positions: Tensor,
        size: tuple[int, int],
        variance: bool,
        conditions: dict[str, Tensor | None],
        block_residual: BlockResidual | None,
    ) -> None:
        self._net, self._weights, self._residual, self._texts = net, weights, residual, texts
        self._positions, self._size, self._variance = positions, size, variance
        self._conditions, self._block_residual = conditions, block_residual
        self._modulations: dict[float, tuple[Tensor, Tensor]] = {}

    def __call__(self, latents: Tensor, timestep: float) -> Tensor:
        """See `Predict`."""
        blocks, last = self._modulation(timestep)
        x = self._patches(latents)
        normed = norm(x, blocks[0][0], blocks[0][1], self._net.config.norm_eps)
        # Every block ends with the norm of what comes behind it.
        following = [*blocks[1:, :2], last]
        for index, block in enumerate(self._weights.blocks):
            _, _, gate, shift_mlp, scale_mlp, gate_mlp = blocks[index]
            # Tensors go as soon as they were read: what lives at once decides the memory.
            x = torch.addcmul(x, gate, block.out(self._attended(block.qkv(normed))))
            del normed
            x, normed = self._cross_attended(index, x, shift_mlp, scale_mlp)
            y = block.down(block.up(normed))
            del normed
            if self._block_residual is None:
                x, normed = self._residual.gated(x, y, gate_mlp, *following[index])
            else:
                x = torch.addcmul(x, gate_mlp, y)
                x, normed = self._with_block_residual(index, timestep, x, *following[index])
            del y
        product = self._weights.last if self._variance else self._weights.last_noise
        return self._unpatched(product(normed)).float()

    def _patches(self, latents: Tensor) -> Tensor:
        """(1, C, h, w) -> tokens (1, N, D); the first block is shared by all texts."""
        p = self._net.config.patch_size
        pieces = functional.unfold(latents.to(self._positions.device), p, stride=p).transpose(1, 2)
        tokens = self._weights.patch(pieces.to(_dtype(self._net)).contiguous())
        return (tokens + self._positions).to(tokens.dtype)

    def _attended(self, qkv: Tensor) -> Tensor:
        """Self-attention: queries, keys and values (B, N, 3D) -> (B, N, D)."""
        heads = self._net.config.num_attention_heads
        q, k, v = (_heads(part, heads) for part in qkv.chunk(3, dim=-1))
        return attention(q, k, v)

    def _cross_attended(
        self, index: int, x: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The tokens after cross-attention in block `index`, and their norm."""
        if len(x) != len(self._texts):
            # Until the first cross-attention, the rows are equal.
            x = x.repeat(len(self._texts), 1, 1)
        outputs = [blocks[index](x[row : row + 1]) for row, blocks in enumerate(self._texts)]
        return self._residual.cross_attended(x, outputs, shift, scale)

    def _with_block_residual(
        self, index: int, timestep: float, x: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The tokens of block `index` with what is added to them from outside, and their norm."""
        assert self._block_residual is not None
        added = self._block_residual(index, x, timestep)
        if added is None:
            return x, norm(x, shift, scale, self._net.config.norm_eps)
        return self._residual.added(x, added.to(x), shift, scale)

    def _modulation(self, timestep: float) -> tuple[Tensor, Tensor]:
        """Shift, 1 + scale and gate of every block (L, 6, D), and of the last layer (2, D)."""
        if timestep not in self._modulations:
            dtype = _dtype(self._net)
            # Filled on the device: a copy of a number would wait there for all that is queued.
            given = torch.full((1,), timestep, device=self._positions.device)
            six, embedded = self._net.adaln_single(
                given, self._conditions, batch_size=1, hidden_dtype=dtype
            )
            blocks = self._weights.tables + six.reshape(1, 6, -1)
            last = self._weights.last_table + embedded
            # In one piece, behind one another: a graph tells the start of a tensor from the rest.
            both = torch.cat([blocks.flatten(0, 1), last])
            # The scales stand in the places 1 and 4, and 1 in the last layer.
            both[1::3] += 1
            self._modulations[timestep] = (both[:-2].unflatten(0, (-1, 6)), both[-2:])
        return self._modulations[timestep]

    def _unpatched(self, tokens: Tensor) -> Tensor:
        """(B, N, p x p x C) -> (B, C, h, w)."""
        p = self._net.config.patch_size
        rows, columns = self._size[0] // p, self._size[1] // p
        grid = tokens.reshape(len(tokens), rows, columns, p, p, -1)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, *self._size)


def _cross_attention(block: BlockProducts, caption: Tensor, heads: int) -> _CrossAttention:
    """Cross-attention to a projected caption (1, T, D), with all that the picture cannot change."""
    keys, values = block.cross_kv(caption).chunk(2, dim=-1)
    tokens, width = caption.shape[1:]
    if tokens == 1:
        # The softmax over one key is 1: every query gets this value.
        constant = block.cross_out(values)
        return lambda x: constant
    if block.short is not None and heads * tokens < width:
        return _folded(block.short, keys[0], values[0], heads)
    keys, values = _heads(keys, heads).contiguous(), _heads(values, heads).contiguous()

    def attend(x: Tensor) -> Tensor:
        return block.cross_out(attention(_heads(block.cross_q(x), heads), keys, values))

    return attend


def _folded(short: CrossLayers, keys: Tensor, values: Tensor, heads: int) -> _CrossAttention:
    """Cross-attention to a short text in two small products.

    q k^T = (x Wq + b) k^T = x (Wq k^T) + b k^T, and (a v) Wo = a (v Wo): of each pair the text's
    side is known, and with fewer than D / H tokens what is left is smaller than Wq and Wo.
    """
    width = keys.shape[-1]
    each = width // heads
    k = keys.float().unflatten(-1, (heads, each)) / math.sqrt(each)
    v = values.float().unflatten(-1, (heads, each))
    wq = short.query.weight.float().unflatten(0, (heads, each))
    wo = short.out.weight.float().unflatten(1, (heads, each))
    dtype = keys.dtype
    query_by_text = torch.einsum("hdi,thd->hti", wq, k).flatten(0, 1).to(dtype)
    bias = torch.einsum("hd,thd->ht", short.query.bias.float().unflatten(0, (heads, each)), k)
    values_out = torch.einsum("ohd,thd->oht", wo, v).flatten(1).to(dtype)
    scores = linear(as_linear(query_by_text, bias.flatten().to(dtype)))
    mixed = linear(as_linear(values_out, short.out.bias))

    def attend(x: Tensor) -> Tensor:
        shares = scores(x).unflatten(-1, (heads, -1)).softmax(dim=-1)
        return mixed(shares.flatten(2))

    return attend


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H x d) -> (B, H, N, d), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _dtype(net: PixArtTransformer2DModel) -> torch.dtype:
    return net.scale_shift_table.dtype


def _positions(net: PixArtTransformer2DModel, size: tuple[int, int]) -> Tensor:
    embed, p = net.pos_embed, net.config.patch_size
    rows, columns = size[0] // p, size[1] // p
    if (rows, columns) == (embed.height, embed.width):
        table: Tensor = embed.pos_embed
        return table.float()
    built = get_2d_sincos_pos_embed(
        embed_dim=embed.pos_embed.shape[-1],
        grid_size=(rows, columns),
        base_size=embed.base_size,
        interpolation_scale=embed.interpolation_scale,
        device=embed.pos_embed.device,
        output_type="pt",
    )
    return built.float().unsqueeze(0)


def conditions(
    net: PixArtTransformer2DModel,
    size: tuple[int, int],
    rows: int,
    original_size: tuple[int, int] | None = None,
) -> dict[str, Tensor | None]:
    """Original size and aspect ratio for nets that were trained with them (1024 px), else Nones.

    `size` (h, w) counts latents, `original_size` pixels.
    """
    if not net.config.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    height, width = original_size or tuple(PIXELS_PER_LATENT * side for side in size)
    weight = net.scale_shift_table
    told = torch.tensor([[height, width]], dtype=weight.dtype, device=weight.device)
    # The ratio is that of the picture; only the size can be chosen.
    ratio = torch.tensor([[size[0] / size[1]]], dtype=weight.dtype, device=weight.device)
    return {"resolution": told.repeat(rows, 1), "aspect_ratio": ratio.repeat(rows, 1)}
