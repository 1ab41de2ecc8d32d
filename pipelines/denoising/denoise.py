"""The loop: every sampler, from noise or from a picture, with or without guidance.

Its behaviour is that of diffusers' PixArtAlphaPipeline where that can do the same thing (a test
holds it); beyond that it keeps the learned variance, starts from pictures, yields each step and
estimates the clean latents for previews.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import Generator, Tensor

from pipelines.denoising import samplers
from pipelines.denoising.transformer import Predict
from pipelines.request import GenerationRequest

# SA-Solver adds noise only in the middle of the trajectory (its paper, section 6). The authors
# count time from 0.001 to 1 for the timesteps 0 to 999, diffusers counts timesteps.
_SA_STOCHASTIC = (200, 800)
_LAST_TIMESTEP = 999


@dataclass(frozen=True, kw_only=True)
class DenoisingStep:
    """After step `done` of `total`: the latents and the predicted clean latents, (1, C, h, w).

    `upcoming` is the timestep whose noise the latents have now, None after the last step.
    """

    done: int
    total: int
    latents: Tensor
    denoised: Tensor
    upcoming: float | None = None


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

    @property
    def wants_variance(self) -> bool:
        """True where the scheduler reads the variance half of the model's output."""
        return bool(self.scheduler.config.get("variance_type") == "learned_range")

    def noised(self, clean: Tensor, noise: Tensor, upcoming: float | None) -> Tensor:
        """Clean latents with the noise that those of a step have, whose `upcoming` is given."""
        if upcoming is None:
            return clean
        timesteps = torch.tensor([upcoming], dtype=self.timesteps.dtype)
        made: Tensor = self.scheduler.add_noise(clean, noise, timesteps)
        return made


StepHook = Callable[[Schedule, DenoisingStep], Tensor | None]
"""Called between steps: other latents of the same shape to go on with, or None to keep them."""


def make_schedule(
    request: GenerationRequest,
    betas: dict[str, Any],
    *,
    learned_variance: bool,
) -> Schedule:
    """A fresh scheduler for `request`. `betas` is the noise schedule of the model.

    Its timesteps stay on the processor, so that no step waits for the GPU to tell one.

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
    if row.timesteps is not None:
        scheduler.set_timesteps(timesteps=list(row.timesteps))
    else:
        scheduler.set_timesteps(request.steps)
    if row.orders:
        # An attribute and not an argument: a function in the config could not be saved.
        scheduler.tau_func = _tau(request, scheduler.timesteps.tolist())
    first = 0
    if request.init is not None:
        kept = max(1, min(request.steps, int(request.steps * request.strength)))
        first = (request.steps - kept) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return Schedule(scheduler=scheduler, timesteps=scheduler.timesteps[first:], first=first)


def _tau(request: GenerationRequest, timesteps: list[int]) -> Callable[[Any], float]:
    """How much noise a step of SA-Solver adds, by the timestep at which it begins.

    The authors decide by the time at which a step ends, before it is rounded to a timestep; the
    last step ends without noise.
    """
    low, high = _SA_STOCHASTIC
    if request.tau_at_start:
        return lambda timestep: request.eta if low <= timestep <= high else 0
    steps = len(timesteps)
    ends = [_LAST_TIMESTEP * (1 - done / steps) for done in range(1, steps + 1)]
    noisy = {
        begin: request.eta if low <= end + 1 <= high else 0
        for begin, end in zip(timesteps, ends, strict=True)
    }
    return lambda timestep: noisy[int(timestep)]


def start_latents(
    schedule: Schedule, shape: tuple[int, ...], generator: Generator, clean: Tensor | None
) -> Tensor:
    """The latents (1, C, h, w) before the first step: noise, or noised clean latents."""
    noise = torch.randn(shape, generator=generator, device="cpu")
    if clean is None:
        return noise * schedule.scheduler.init_noise_sigma
    noised: Tensor = schedule.scheduler.add_noise(clean, noise, schedule.timesteps[:1])
    return noised


def denoise(
    predict: Predict,
    schedule: Schedule,
    latents: Tensor,
    *,
    guidance: float,
    generator: Generator,
    between: StepHook | None = None,
) -> Iterator[DenoisingStep]:
    """Walks the schedule, yielding after each step, as `between` leaves it.

    `latents` (1, C, h, w) float32 on the model's device; `predict` knows the texts [negative,
    prompt] where guidance > 1, else [prompt]. Guidance: classifier-free (arXiv 2207.12598), on
    the noise only; the variance half, where it is used, is the prompt's.
    """
    scheduler = schedule.scheduler
    guided = guidance > samplers.GUIDANCE_OFF
    extra = _step_arguments(scheduler, generator)
    channels = latents.shape[1]
    places = schedule.timesteps.tolist()
    for index, timestep in enumerate(schedule.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        output = predict(scaled, places[index])
        noise = output[:, :channels]
        if guided:
            without, with_prompt = noise.chunk(2)
            noise = without + guidance * (with_prompt - without)
        denoised = _clean(scheduler, scaled, noise, places[index])
        if schedule.wants_variance:
            noise = torch.cat([noise, output[-1:, channels:]], dim=1)
        result = scheduler.step(noise, timestep, latents, **extra, return_dict=False)
        # One-step models: the scheduler's second value is the prediction of the clean latents.
        one_step = len(schedule.timesteps) == 1 and schedule.first == 0
        latents = result[1] if one_step else result[0]
        step = DenoisingStep(
            done=index // scheduler.order + 1,
            total=schedule.steps,
            latents=latents,
            denoised=denoised,
            upcoming=places[index + 1] if index + 1 < len(places) else None,
        )
        if between is not None and (changed := between(schedule, step)) is not None:
            latents = changed
            step = replace(step, latents=latents)
        yield step


def _step_arguments(scheduler: Any, generator: Generator) -> dict[str, Any]:
    known = inspect.signature(scheduler.step).parameters
    return {"generator": generator} if "generator" in known else {}


def _clean(scheduler: Any, scaled: Tensor, noise: Tensor, position: float) -> Tensor:
    """The clean latents that `noise` implies: x0 = (x_t - sqrt(1 - a) eps) / sqrt(a).

    Timesteps may lie between the trained ones; a (the cumulative product) is interpolated.
    """
    table = scheduler.alphas_cumprod
    low = int(position)
    high = min(low + 1, len(table) - 1)
    a = torch.lerp(table[low].double(), table[high].double(), position - low).item()
    return (scaled - (1 - a) ** 0.5 * noise) / a**0.5
