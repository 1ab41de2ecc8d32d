"""A picture of unfinished latents for a thousandth of the VAE's cost.

A linear map from the 3x3 neighbourhood of a latent to its 8x8 pixels, fitted by ridge regression
on synthetic pictures that the VAE itself encodes. It needs no stored constants, so it fits every
VAE, and it shows edges where the usual one-pixel-per-latent factors show only colour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor

from pipelines.denoising.latents import PIXELS_PER_LATENT, encode, to_picture, to_tensor

MAX_SIDE = 512
"""Pixels of a preview's longer side."""
_PATCHES: tuple[int, ...] = (1, 2, 4, PIXELS_PER_LATENT)
_SHARE = 0.1
# Seconds in which a fast GPU has painted.
_MOMENT = 0.1
# GPUs only queue their steps.
_QUEUES = ("cuda", "mps")
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
        self._smaller = {each: _smaller(self._map, each) for each in _PATCHES}

    def jpeg(self, latents: Tensor) -> bytes:
        """(1, C, h, w) scaled latents as a JPEG of at most 512 px."""
        h, w = latents.shape[-2:]
        values = latents.float().cpu()
        # Guided predictions of the first steps overshoot several times.
        values = values * (self._spread / values.std()).clamp(max=1)
        # No more pixels than are shown: at 1024 px a latent gives 4x4 of them.
        each = next((n for n in _PATCHES if max(h, w) * n >= MAX_SIDE), PIXELS_PER_LATENT)
        patches = (_neighbourhoods(values) @ self._smaller[each]).T.unsqueeze(0)
        pixels = F.fold(patches, (h * each, w * each), each, stride=each)
        picture = to_picture(pixels)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = BytesIO()
        picture.save(buffer, format="JPEG", quality=80)
        return buffer.getvalue()


class Previews:
    """The previews of one picture: often enough to be seen, too seldom to cost much.

    They take a tenth of the time at most. On a GPU, where a picture may be there before anybody
    could see one, the first comes after a moment; and steps, which a GPU only queues, are let run
    no further ahead than one, or progress and stop would be those of the queue.
    """

    def __init__(
        self,
        preview: Preview,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._preview = preview
        self._clock = clock
        self._due = clock() + (_MOMENT if device.type in _QUEUES else 0.0)
        self._before: torch.cuda.Event | torch.mps.Event | None = None

    def after_step(self, denoised: Tensor) -> bytes | None:
        """The JPEG of the predicted clean latents (1, C, h, w), None where it is too soon."""
        if denoised.device.type in _QUEUES:
            self._wait_for_the_step_before(denoised.device.type)
        if self._clock() < self._due:
            return None
        # Waiting for a GPU is no cost of the preview's.
        values = denoised.float().cpu()
        started = self._clock()
        jpeg = self._preview.jpeg(values)
        ended = self._clock()
        self._due = ended + (ended - started) / _SHARE
        return jpeg

    def _wait_for_the_step_before(self, queue: str) -> None:
        event = torch.mps.Event() if queue == "mps" else torch.cuda.Event()
        event.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = event


def _smaller(patches: Tensor, each: int) -> Tensor:
    """The map to patches of 8x8 pixels -> that to their means, `each` x `each`."""
    pixels = patches.unflatten(1, (3, PIXELS_PER_LATENT, PIXELS_PER_LATENT))
    return F.avg_pool2d(pixels, PIXELS_PER_LATENT // each).flatten(1)


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
