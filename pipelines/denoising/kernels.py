"""The two heavy products of a transformer, linear layers and attention, as each device likes them.

Processors: oneDNN reads weights fastest in an order of its own, and torch's attention does not gain
from bf16 there, while products of blocks of queries do. The choice follows from what the processor
can do and never from a measurement, so that a seed gives the same picture every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
# Scores of one block of queries, so many for each thread: enough to be worth its waking up, and
# not so many that the block leaves the caches (docs/benchmarks.md).
_QUERIES = 512
_SCORES = 1024 * 1024
# Below this the blocks cost more than they save.
_MIN_BLOCKED = 128


def linear(
    layers: nn.Module | Sequence[nn.Module], *, gelu: bool = False, owned: bool = False
) -> Linear:
    """(..., in) -> (..., out): one layer, or several of the same input side by side in one product.

    `gelu` applies the tanh form of GELU. `owned`: the layers may become views of the joined
    weights, so that these take no memory of their own. Layers that are not plain (adapters,
    quantised weights) are called as they are.
    """
    group = [layers] if isinstance(layers, nn.Module) else list(layers)
    plain = [layer for layer in group if type(layer) is nn.Linear]
    if len(plain) != len(group):
        return _called(group, gelu)
    packs = _can_pack(plain[0].weight)
    weight, bias = _joined(plain, in_place=owned and not packs)
    if packs:
        return _packed(weight, bias, gelu)

    def product(x: Tensor) -> Tensor:
        y = functional.linear(x, weight, bias)
        return functional.gelu(y, approximate="tanh") if gelu else y

    return product


def as_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of the given weight (out, in) and bias (out,)."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return layer


def _joined(layers: Sequence[nn.Linear], *, in_place: bool) -> tuple[Tensor, Tensor | None]:
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    # Made outside of inference mode: the weights that become views must stay what they are.
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.cat([layer.weight for layer in layers])
        bias = None
        if all(layer.bias is not None for layer in layers):
            bias = torch.cat([layer.bias for layer in layers])
        if in_place:
            rows = [len(layer.weight) for layer in layers]
            for layer, piece in zip(layers, weight.split(rows), strict=True):
                layer.weight.data = piece
    return weight, bias


def _called(layers: Sequence[nn.Module], gelu: bool) -> Linear:
    def product(x: Tensor) -> Tensor:
        y = torch.cat([layer(x) for layer in layers], dim=-1) if len(layers) > 1 else layers[0](x)
        return functional.gelu(y, approximate="tanh") if gelu else y

    return product


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in _PACKED_DTYPES
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _packed(weight: Tensor, bias: Tensor | None, gelu: bool) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    own = None if bias is None else bias.detach()
    run = torch.ops.mkldnn._linear_pointwise

    def product(x: Tensor) -> Tensor:
        y: Tensor = run(x, packed, own, *after)
        return y

    return product


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v without a mask: (B, H, N, d), (B, H, M, d) -> (B, N, H x d)."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and not _has_tiles():
        if q.shape[-2] >= _MIN_BLOCKED:
            return _blocked(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _has_tiles() -> bool:
    """Processors with matrix tiles (AMX) have a fast attention of their own."""
    return bool(torch.cpu._is_amx_tile_supported())


def _blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, block by block of queries and heads: exact, each row of scores is whole."""
    batch, heads, queries, width = q.shape
    scale = 1 / math.sqrt(width)
    rows = min(queries, _QUERIES)
    scores_at_once = _SCORES * torch.get_num_threads()
    together = max(1, min(heads, scores_at_once // (rows * k.shape[-2])))
    q, keys, values = q.contiguous(), k.transpose(2, 3).contiguous(), v.transpose(2, 3).contiguous()
    # The second product is the faster one with the short side, the width of a head, in front.
    out = q.new_empty(batch, heads, width, queries)
    unused = q.new_empty(1)
    for b in range(batch):
        for h in range(0, heads, together):
            part = slice(h, h + together)
            for i in range(0, queries, rows):
                block = slice(i, i + rows)
                scores = torch.baddbmm(
                    unused, q[b, part, block], keys[b, part], beta=0, alpha=scale
                )
                shares = scores.softmax(dim=-1).transpose(1, 2)
                out[b, part, :, block] = torch.bmm(values[b, part], shares)
    return out.flatten(1, 2).transpose(1, 2).contiguous()
