"""The VAE both ways: pixels <-> scaled latents."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

PIXELS_PER_LATENT = 8


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, H, W) float32 in [-1, 1]."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    # permute alone gives a channels_last view, on which some convolutions are several times slower.
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()


def to_picture(pixels: Tensor) -> Image.Image:
    """(1, 3, H, W) in about [-1, 1] as an RGB picture, rounded as diffusers does."""
    values = (pixels[0].float() / 2 + 0.5).nan_to_num(0).clamp(0, 1)
    # Whole numbers before the way from a GPU: a quarter of the bytes.
    whole = (values * 255).round().to(torch.uint8)
    return Image.fromarray(whole.permute(1, 2, 0).contiguous().cpu().numpy())


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """`picture` scaled to cover width x height and cropped around its centre."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> scaled latents (B, 4, H/8, W/8). The mode, so that a seed decides all."""
    weight = next(vae.parameters())
    posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
    return posterior.mode().float() * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor, *, tile: int | None = None) -> Tensor:
    """Scaled latents (B, 4, h, w) -> (B, 3, 8h, 8w) in about [-1, 1].

    `tile`: pieces of so many pixels a side, blended; it needs less memory, and is not the same
    picture, because each piece is normalised by itself.
    """
    weight = next(vae.parameters())
    unscaled = (latents / vae.config.scaling_factor).to(weight.device, weight.dtype)
    if tile is None:
        return vae.decode(unscaled, return_dict=False)[0].float()
    kept = (vae.tile_sample_min_size, vae.tile_latent_min_size)
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // PIXELS_PER_LATENT
    vae.enable_tiling()
    try:
        return vae.decode(unscaled, return_dict=False)[0].float()
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = kept
