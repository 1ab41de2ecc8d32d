"""Small random nets in diffusers layout, built offline: the same folders that real models have.

The libraries are imported by what needs them, so that a test that builds no net stays quick.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.catalog import ROOT

if TYPE_CHECKING:
    from diffusers import PixArtTransformer2DModel

NANO = ROOT / "assets" / "models" / "nano"
TOKENS = 24
_ROW = """
title = "Tiny"
summary = "Random weights for tests."
licence = "none"
tokens = 24
bins = "128"
size = "64x64"
max_side = 256
learned_variance = true
examples = ["a red apple"]
"""


def transformer(
    *, micro_conditions: bool = False, sigma: bool = False, layers: int = 2
) -> PixArtTransformer2DModel:
    """A PixArt of two blocks whose every part, also those that start at zero, does something.

    `sigma`: of the size of the 1024 models, and never told sizes all the same.
    """
    import torch
    from diffusers import PixArtTransformer2DModel

    large = micro_conditions or sigma
    net = PixArtTransformer2DModel(
        num_attention_heads=2,
        # One third of the width goes to each size embedding: 48 is divisible by 3.
        attention_head_dim=24,
        num_layers=layers,
        in_channels=4,
        out_channels=8,
        sample_size=128 if large else 16,
        patch_size=2,
        cross_attention_dim=48,
        caption_channels=32,
        interpolation_scale=2 if large else 1,
        use_additional_conditions=micro_conditions,
        attention_bias=True,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.03)
        # Mostly position and little picture: the norms inside then leave the picture's scale alone.
        net.pos_embed.proj.weight.mul_(0.3)
        for block in net.transformer_blocks:
            block.attn2.to_out[0].weight.mul_(0.1)
        net.eval()
        _predict_noise(net)
    return net


def _predict_noise(net: PixArtTransformer2DModel) -> None:
    """Fits the last layer by least squares so that the net roughly returns its input as noise.

    With noise that has nothing to do with the input, latents would grow to hundreds within a few
    steps, and an absolute comparison would measure float32's rounding of large numbers.
    """
    import torch

    channels, out, patch = net.config.in_channels, net.config.out_channels, net.config.patch_size
    micro = net.config.use_additional_conditions
    inputs: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    hook = net.proj_out.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for height, width in ((8, 8), (8, 12)):
        latents = torch.randn(40, channels, height, width)
        size = torch.tensor([[8.0 * height, 8.0 * width]]).repeat(40, 1)
        net(
            latents,
            encoder_hidden_states=torch.randn(40, 6, net.config.caption_channels),
            timestep=torch.randint(0, 1000, (40,)),
            added_cond_kwargs={
                "resolution": size if micro else None,
                "aspect_ratio": size[:, :1] / size[:, 1:] if micro else None,
            },
        )
        patches = latents.unfold(2, patch, patch).unfold(3, patch, patch)
        targets.append(patches.permute(0, 2, 3, 4, 5, 1).reshape(-1, patch * patch * channels))
    hook.remove()
    hidden = torch.cat([part.flatten(0, 1) for part in inputs])
    solution = torch.linalg.lstsq(hidden, torch.cat(targets)).solution.T
    weight = net.proj_out.weight.view(patch * patch, out, -1)
    weight[:, :channels] = solution.view(patch * patch, channels, -1)


def build(
    folder: Path, *, micro_conditions: bool = False, sigma: bool = False, seed: int = 0
) -> Path:
    """Writes a complete model into `folder` (its name becomes the model's id); returns it."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
    from tokenizers import Tokenizer
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    net = transformer(micro_conditions=micro_conditions, sigma=sigma)
    net.save_pretrained(folder / "transformer")
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.13025 if sigma else 0.2,
    )
    vae.save_pretrained(folder / "vae")
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer" / "tokenizer.json"))
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    shutil.copytree(NANO / "tokenizer", folder / "tokenizer")
    DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    row = _ROW.replace("tokens = 24", 'family = "sigma"\ntokens = 300') if sigma else _ROW
    (folder / "model.toml").write_text(row, "utf-8")
    return folder
