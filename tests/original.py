"""PixArt as the papers' code has it: its keys and shapes, written out, and its forward pass.

Written from the paper and the layout of the released checkpoints, and not from the studio's own
table of keys, so that the two can disagree.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def shapes(
    *, width: int, layers: int, captions: int, tokens: int = 120, micro: bool = False, grid: int = 8
) -> dict[str, tuple[int, ...]]:
    """Every key of a checkpoint."""
    h = width
    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, grid * grid, h),
        "x_embedder.proj.weight": (h, 4, 2, 2),
        "x_embedder.proj.bias": (h,),
        "t_embedder.mlp.0.weight": (h, 256),
        "t_embedder.mlp.0.bias": (h,),
        "t_embedder.mlp.2.weight": (h, h),
        "t_embedder.mlp.2.bias": (h,),
        "t_block.1.weight": (6 * h, h),
        "t_block.1.bias": (6 * h,),
        "y_embedder.y_embedding": (tokens, captions),
        "y_embedder.y_proj.fc1.weight": (h, captions),
        "y_embedder.y_proj.fc1.bias": (h,),
        "y_embedder.y_proj.fc2.weight": (h, h),
        "y_embedder.y_proj.fc2.bias": (h,),
        "final_layer.scale_shift_table": (2, h),
        "final_layer.linear.weight": (32, h),
        "final_layer.linear.bias": (32,),
    }
    if micro:
        for name in ("csize_embedder", "ar_embedder"):
            found[f"{name}.mlp.0.weight"] = (h // 3, 256)
            found[f"{name}.mlp.0.bias"] = (h // 3,)
            found[f"{name}.mlp.2.weight"] = (h // 3, h // 3)
            found[f"{name}.mlp.2.bias"] = (h // 3,)
    for n in range(layers):
        found |= block(f"blocks.{n}.", h)
    return found


def block(prefix: str, h: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}scale_shift_table": (6, h),
        f"{prefix}attn.qkv.weight": (3 * h, h),
        f"{prefix}attn.qkv.bias": (3 * h,),
        f"{prefix}attn.proj.weight": (h, h),
        f"{prefix}attn.proj.bias": (h,),
        f"{prefix}cross_attn.q_linear.weight": (h, h),
        f"{prefix}cross_attn.q_linear.bias": (h,),
        f"{prefix}cross_attn.kv_linear.weight": (2 * h, h),
        f"{prefix}cross_attn.kv_linear.bias": (2 * h,),
        f"{prefix}cross_attn.proj.weight": (h, h),
        f"{prefix}cross_attn.proj.bias": (h,),
        f"{prefix}mlp.fc1.weight": (4 * h, h),
        f"{prefix}mlp.fc1.bias": (4 * h,),
        f"{prefix}mlp.fc2.weight": (h, 4 * h),
        f"{prefix}mlp.fc2.bias": (h,),
    }


def positions(width: int, grid: int, scale: float) -> Tensor:
    """The stored positions (1, grid², width): loops instead of the studio's arrays."""
    table = np.zeros((grid, grid, width), dtype=np.float64)
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            for k in range(quarter):
                omega = 10_000 ** (-k / quarter)
                x = float(np.float32(column) / np.float32(scale)) * omega
                y = float(np.float32(row) / np.float32(scale)) * omega
                table[row, column, k] = np.sin(x)
                table[row, column, quarter + k] = np.cos(x)
                table[row, column, 2 * quarter + k] = np.sin(y)
                table[row, column, 3 * quarter + k] = np.cos(y)
    return torch.from_numpy(table.reshape(1, grid * grid, width)).float()


def state(scale: float = 1.0, seed: int = 0, **sizes: int | bool) -> dict[str, Tensor]:
    """A checkpoint of random numbers in which every part does something."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for key, shape in shapes(**sizes).items():  # type: ignore[arg-type]
        if key == "pos_embed":
            made[key] = positions(shape[2], int(shape[1] ** 0.5), scale)
        else:
            made[key] = torch.randn(shape, generator=generator) * 0.1
    return made


def forward(
    w: dict[str, Tensor],
    heads: int,
    latents: Tensor,
    captions: Tensor,
    timesteps: Tensor,
    size: Tensor | None = None,
) -> Tensor:
    """The net's output (B, 8, H, W) for latents (B, 4, H, W), H and W those of `pos_embed`.

    `size` (B, 2) is height and width in pixels, for nets with micro-conditions.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def sinusoid(values: Tensor) -> Tensor:
        frequencies = torch.exp(-np.log(10_000) * torch.arange(128) / 128)
        angles = values[:, None].float() * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def embedded(values: Tensor, name: str) -> Tensor:
        hidden = functional.silu(linear(sinusoid(values), f"{name}.mlp.0"))
        return linear(hidden, f"{name}.mlp.2")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, h = q.shape
        q, k, v = (x.reshape(b, -1, heads, h // heads).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / (h // heads) ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(b, n, h)

    def norm(x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    def gelu(x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")

    b, _, height, wide = latents.shape
    x = functional.conv2d(latents, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    t = embedded(timesteps, "t_embedder")
    if size is not None:
        sides = embedded(size.flatten(), "csize_embedder").reshape(b, -1)
        ratio = embedded(size[:, 0] / size[:, 1], "ar_embedder")
        t = t + torch.cat([sides, ratio], dim=1)
    t6 = linear(functional.silu(t), "t_block.1").reshape(b, 6, -1)
    y = linear(gelu(linear(captions, "y_embedder.y_proj.fc1")), "y_embedder.y_proj.fc2")
    layers = len([key for key in w if key.endswith(".attn.qkv.weight")])
    for n in range(layers):
        p = f"blocks.{n}"
        s1, k1, g1, s2, k2, g2 = (w[f"{p}.scale_shift_table"][None] + t6).chunk(6, dim=1)
        qkv = linear(norm(x) * (1 + k1) + s1, f"{p}.attn.qkv")
        qkv = qkv.reshape(b, -1, 3, x.shape[-1])
        x = x + g1 * linear(attention(*qkv.unbind(2)), f"{p}.attn.proj")
        kv = linear(y, f"{p}.cross_attn.kv_linear").reshape(b, -1, 2, x.shape[-1])
        q = linear(x, f"{p}.cross_attn.q_linear")
        x = x + linear(attention(q, *kv.unbind(2)), f"{p}.cross_attn.proj")
        hidden = gelu(linear(norm(x) * (1 + k2) + s2, f"{p}.mlp.fc1"))
        x = x + g2 * linear(hidden, f"{p}.mlp.fc2")
    shift, scale = (w["final_layer.scale_shift_table"][None] + t[:, None]).chunk(2, dim=1)
    x = linear(norm(x) * (1 + scale) + shift, "final_layer.linear")
    x = x.reshape(b, height // 2, wide // 2, 2, 2, 8)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(b, 8, height, wide)
