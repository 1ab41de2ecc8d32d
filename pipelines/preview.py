"""A picture of unfinished latents for a thousandth of the VAE's cost.

A linear map from the 3x3 neighbourhood of a latent to its 8x8 pixels, fitted by ridge regression
on synthetic pictures that the VAE itself encodes. It needs no stored constants, so it fits every
VAE, and it shows edges where the usual one-pixel-per-latent factors show only colour.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor

from pipelines.latents import PIXELS_PER_LATENT, encode, to_picture, to_tensor

MAX_SIDE = 512
"""Pixels of a preview's longer side."""
_CHARTS = 12
_CHART_SIDE = 128
_RIDGE = 1e-2


class Preview:
    """Turns latents into small JPEGs. Fitted once per VAE, which takes a fraction of a second."""

    def __init__(self, vae: AutoencoderKL) -> None:
        charts = torch.cat([to_tensor(_chart(i)) for i in range(_CHARTS)])
        with torch.inference_mode():
            latents = torch.cat([encode(vae, chart[None]) for chart in charts]).cpu()
        # The widest that latents of a picture get; beyond it the map would only saturate.
        self._spread = 1.3 * latents.flatten(1).std(dim=1).max()
        features = _neighbourhoods(latents)
        patches = F.unfold(charts, PIXELS_PER_LATENT, stride=PIXELS_PER_LATENT)
        targets = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        gram = features.T @ features
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        self._map = torch.linalg.solve(gram, features.T @ targets)

    def jpeg(self, latents: Tensor) -> bytes:
        """(1, C, h, w) scaled latents as a JPEG of at most 512 px."""
        h, w = latents.shape[-2:]
        values = latents.float().cpu()
        # Guided predictions of the first steps overshoot several times.
        values = values * (self._spread / values.std()).clamp(max=1)
        patches = (_neighbourhoods(values) @ self._map).T.unsqueeze(0)
        size = (h * PIXELS_PER_LATENT, w * PIXELS_PER_LATENT)
        pixels = F.fold(patches, size, PIXELS_PER_LATENT, stride=PIXELS_PER_LATENT)
        picture = to_picture(pixels)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = BytesIO()
        picture.save(buffer, format="JPEG", quality=80)
        return buffer.getvalue()


def _neighbourhoods(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B*h*w, 9C + 1): each latent with its neighbours and a constant."""
    padded = F.pad(latents, (1, 1, 1, 1), mode="replicate")
    columns = F.unfold(padded, 3).transpose(1, 2)
    rows = columns.reshape(-1, columns.shape[-1])
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def _chart(index: int) -> Image.Image:
    """A picture with a gradient and coloured shapes, always the same for the same index."""
    rng = np.random.default_rng(index)
    corners = rng.integers(0, 256, (2, 2, 3)).astype("uint8")
    picture = Image.fromarray(corners).resize((_CHART_SIDE, _CHART_SIDE), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for _ in range(10):
        x, y = rng.integers(-20, _CHART_SIDE, 2)
        width, height = rng.integers(8, 64, 2)
        box = [int(x), int(y), int(x + width), int(y + height)]
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(box, fill=colour)
    return picture
