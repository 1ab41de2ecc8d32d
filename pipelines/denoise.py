"""The loop: every sampler, from noise or from a picture, with or without guidance.

Its behaviour is that of diffusers' PixArtAlphaPipeline where that can do the same thing (a test
holds it); beyond that it keeps the learned variance, starts from pictures, yields each step and
estimates the clean latents for previews.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import PixArtTransformer2DModel
from torch import Generator, Tensor

from pipelines import samplers
from pipelines.request import GenerationRequest
from pipelines.text import PromptFeatures

# SA-Solver paints stochastically only in the middle of the trajectory (its paper, section 6;
# timesteps of 1000).
_SA_STOCHASTIC = (200, 800)


@dataclass(frozen=True, kw_only=True)
class Step:
    """After step `done` of `total`: the latents and the predicted clean latents, (1, C, h, w)."""

    done: int
    total: int
    latents: Tensor
    denoised: Tensor


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A scheduler made for one job and the timesteps that are left to walk."""

    scheduler: Any
    timesteps: Tensor
    first: int

    @property
    def steps(self) -> int:
        """Steps as people count them; Heun evaluates the model twice in one."""
        order: int = self.scheduler.order
        return -(-len(self.timesteps) // order)


def make_schedule(
    request: GenerationRequest,
    betas: dict[str, Any],
    *,
    learned_variance: bool,
    device: torch.device | None = None,
) -> Schedule:
    """A fresh scheduler for `request`. `betas` is the noise schedule of the model.

    A start from a picture skips the first (1 - strength) of the steps; at least one is left.
    """
    row = samplers.find(request.sampler)
    arguments = samplers.scheduler_arguments(
        row,
        steps=request.steps,
        predictor_order=request.predictor_order,
        corrector_order=request.corrector_order,
        learned_variance=learned_variance,
    )
    scheduler = getattr(diffusers, row.scheduler)(**betas, **arguments)
    if row.orders:
        low, high = _SA_STOCHASTIC
        # An attribute and not an argument: a function in the config could not be saved.
        scheduler.tau_func = lambda t: request.eta if low <= t <= high else 0
    if row.timesteps is not None:
        scheduler.set_timesteps(timesteps=list(row.timesteps), device=device)
    else:
        scheduler.set_timesteps(request.steps, device=device)
    first = 0
    if request.init is not None:
        kept = max(1, min(request.steps, int(request.steps * request.strength)))
        first = (request.steps - kept) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return Schedule(scheduler=scheduler, timesteps=scheduler.timesteps[first:], first=first)


def start_latents(
    schedule: Schedule, shape: tuple[int, ...], generator: Generator, clean: Tensor | None
) -> Tensor:
    """The latents (1, C, h, w) before the first step: noise, or noised clean latents."""
    noise = torch.randn(shape, generator=generator, device="cpu")
    if clean is None:
        return noise * schedule.scheduler.init_noise_sigma
    noised: Tensor = schedule.scheduler.add_noise(clean, noise, schedule.timesteps[:1].cpu())
    return noised


def denoise(
    transformer: PixArtTransformer2DModel,
    schedule: Schedule,
    latents: Tensor,
    features: PromptFeatures,
    *,
    guidance: float,
    generator: Generator,
) -> Iterator[Step]:
    """Walks the schedule, yielding after each step.

    `latents` (1, C, h, w) float32 on the model's device; `features` holds [negative, prompt] where
    guidance > 1, else [prompt]. Guidance: classifier-free (arXiv 2207.12598), on the noise only;
    the variance half, where it is used, is the prompt's.
    """
    scheduler = schedule.scheduler
    guided = guidance > samplers.GUIDANCE_OFF
    extra = _step_arguments(scheduler, generator)
    conditions = _micro_conditions(transformer, latents, 2 if guided else 1)
    dtype = next(transformer.parameters()).dtype
    channels = latents.shape[1]
    wants_variance = scheduler.config.get("variance_type") == "learned_range"
    for index, timestep in enumerate(schedule.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        pair = torch.cat([scaled, scaled]) if guided else scaled
        output = transformer(
            pair.to(dtype),
            encoder_hidden_states=features.embeds,
            encoder_attention_mask=features.mask,
            timestep=timestep.to(latents.device).expand(len(pair)),
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0].float()
        noise = output[:, :channels]
        if guided:
            without, with_prompt = noise.chunk(2)
            noise = without + guidance * (with_prompt - without)
        denoised = _clean(scheduler, scaled, noise, timestep)
        if wants_variance:
            noise = torch.cat([noise, output[-1:, channels:]], dim=1)
        result = scheduler.step(noise, timestep, latents, **extra, return_dict=False)
        # One-step models: the scheduler's second value is the prediction of the clean latents.
        one_step = len(schedule.timesteps) == 1 and schedule.first == 0
        latents = result[1] if one_step else result[0]
        yield Step(
            done=index // scheduler.order + 1,
            total=schedule.steps,
            latents=latents,
            denoised=denoised,
        )


def _step_arguments(scheduler: Any, generator: Generator) -> dict[str, Any]:
    known = inspect.signature(scheduler.step).parameters
    return {"generator": generator} if "generator" in known else {}


def _micro_conditions(
    transformer: PixArtTransformer2DModel, latents: Tensor, rows: int
) -> dict[str, Tensor | None]:
    """Original size and aspect ratio, for the models that were trained with them (1024 px)."""
    if not transformer.config.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    height, width = (8 * side for side in latents.shape[-2:])
    dtype = next(transformer.parameters()).dtype
    size = torch.tensor([[height, width]], dtype=dtype, device=latents.device)
    ratio = torch.tensor([[height / width]], dtype=dtype, device=latents.device)
    return {"resolution": size.repeat(rows, 1), "aspect_ratio": ratio.repeat(rows, 1)}


def _clean(scheduler: Any, scaled: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """The clean latents that `noise` implies: x0 = (x_t - sqrt(1 - a) eps) / sqrt(a).

    Timesteps may lie between the trained ones; a (the cumulative product) is interpolated.
    """
    table = scheduler.alphas_cumprod
    position = float(timestep)
    low = int(position)
    high = min(low + 1, len(table) - 1)
    a = torch.lerp(table[low].double(), table[high].double(), position - low).item()
    return (scaled - (1 - a) ** 0.5 * noise) / a**0.5
