"""Sample pictures with the weights as they are, through the studio's own denoising loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor

from pipelines.denoising.denoise import denoise, make_schedule, start_latents
from pipelines.denoising.latents import PIXELS_PER_LATENT, decode, to_picture
from pipelines.denoising.samplers import DEFAULT_SAMPLER
from pipelines.denoising.transformer import Transformer
from pipelines.request import GenerationRequest
from pipelines.sizes import Size


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How samples are painted; picture i gets seed + i."""

    seed: int
    steps: int
    guidance: float
    size: Size


def paint(
    transformer: PixArtTransformer2DModel,
    vae: AutoencoderKL,
    features: Sequence[Tensor],
    null: Tensor,
    wish: SamplingOptions,
    schedule: dict[str, Any],
) -> list[Image.Image]:
    """One picture per features (T, C), with `null` as what guidance steers away from."""
    device = next(transformer.parameters()).device
    net = Transformer(transformer)
    found = []
    for index, one in enumerate(features):
        request = GenerationRequest(
            prompt="sample",
            model="training",
            sampler=DEFAULT_SAMPLER,
            steps=wish.steps,
            guidance=wish.guidance,
            width=wish.size.width,
            height=wish.size.height,
            seed=wish.seed + index,
        )
        walk = make_schedule(request, schedule, learned_variance=False)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        shape = _latent_shape(transformer.config.in_channels, wish.size)
        latents = start_latents(walk, shape, generator, None).to(device)
        pair = [null, one] if request.guided else [one]
        predict = net.predictor(
            [part.to(device) for part in pair], (latents.shape[2], latents.shape[3])
        )
        for step in denoise(predict, walk, latents, guidance=request.guidance, generator=generator):
            latents = step.latents
        found.append(to_picture(decode(vae, latents)))
    return found


def _latent_shape(channels: int, size: Size) -> tuple[int, int, int, int]:
    return (1, channels, size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT)


def paint_classes(
    dit: DiTTransformer2DModel,
    vae: AutoencoderKL,
    labels: Sequence[int],
    wish: SamplingOptions,
    schedule: dict[str, Any],
) -> list[Image.Image]:
    """One picture per class, all in one batch, with classifier-free guidance."""
    device = next(dit.parameters()).device
    scheduler = DDIMScheduler(**schedule, clip_sample=False)
    scheduler.set_timesteps(wish.steps, device=device)
    shape = (len(labels), *_latent_shape(dit.config.in_channels, wish.size)[1:])
    generator = torch.Generator("cpu").manual_seed(wish.seed)
    latents = torch.randn(shape, generator=generator).to(device)
    classes = torch.tensor(labels, device=device)
    none = torch.full_like(classes, dit.config.num_embeds_ada_norm)
    for timestep in scheduler.timesteps:
        output = dit(
            torch.cat([latents, latents]),
            timestep=timestep.expand(2 * len(labels)),
            class_labels=torch.cat([none, classes]),
        ).sample.float()[:, : shape[1]]
        without, with_class = output.chunk(2)
        guided = without + wish.guidance * (with_class - without)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return [to_picture(decode(vae, one.unsqueeze(0))) for one in latents]


def sheet(found: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures in rows on white."""
    width = max(p.width for p in found)
    height = max(p.height for p in found)
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    result = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(found):
        place = ((index % columns) * width, (index // columns) * height)
        result.paste(picture, place)
    return result
