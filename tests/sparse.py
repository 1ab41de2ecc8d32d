"""Weight files of the real size whose numbers are all zero, and which take no room on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from transformers import T5Config, T5EncoderModel

Shape = tuple[int, ...]
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}


def write(file: Path, shapes: Mapping[str, Shape], dtype: str = "F16") -> Path:
    """Safetensors with these tensors."""
    table, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + prod(shape) * _BYTES[dtype]
        table[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    return file


def t5_xxl() -> dict[str, Shape]:
    """The tensors of T5 v1.1 XXL's encoder, by transformers' own class."""
    import torch

    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        state = T5EncoderModel(config).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    return {key: shape for key, shape in shapes.items() if key != "encoder.embed_tokens.weight"}


def vae() -> dict[str, Shape]:
    """The tensors of the VAE of Stable Diffusion, by diffusers' own class."""
    import torch
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        state = AutoencoderKL(**config).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def first_vae() -> dict[str, Shape]:
    """The same under the names of the first Stable Diffusion code, as its files have them."""
    found: dict[str, Shape] = {}
    for key, shape in vae().items():
        side, *rest = key.split(".")
        match rest:
            case ["down_blocks", n, "resnets", r, *end]:
                name = ["down", n, "block", r, *end]
            case ["up_blocks", n, "resnets", r, *end]:
                name = ["up", str(3 - int(n)), "block", r, *end]
            case ["down_blocks", n, "downsamplers", _, *end]:
                name = ["down", n, "downsample", *end]
            case ["up_blocks", n, "upsamplers", _, *end]:
                name = ["up", str(3 - int(n)), "upsample", *end]
            case ["mid_block", "resnets", n, *end]:
                name = ["mid", f"block_{int(n) + 1}", *end]
            case ["mid_block", "attentions", _, "group_norm", end]:
                name = ["mid", "attn_1", "norm", end]
            case ["mid_block", "attentions", _, layer, *_, end]:
                short = "proj_out" if layer == "to_out" else layer.removeprefix("to_")
                name = ["mid", "attn_1", short, end]
                shape = (*shape, 1, 1) if end == "weight" else shape
            case ["conv_norm_out", end]:
                name = ["norm_out", end]
            case _:
                name = rest
        last = [part.replace("conv_shortcut", "nin_shortcut") for part in name]
        found[".".join([side, *last])] = shape
    return found
