"""SA-Solver as its authors run it, held to the equations of the paper (arXiv 2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SASolverScheduler
from torch import Tensor

from pipelines.catalog import Catalog
from pipelines.denoising.denoise import denoise, make_schedule
from pipelines.request import GenerationRequest, complete, from_mapping

BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SHAPE = (1, 4, 8, 8)
Net = Callable[[np.ndarray, float], np.ndarray]


# How much of the picture is left at each timestep.
LEFT = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def net(x: np.ndarray, timestep: float) -> np.ndarray:
    """The noise in pictures around 0.3, bent a little so that no step is exact."""
    left = np.interp(timestep, np.arange(1000), LEFT)
    noise = (x - 0.3 * np.sqrt(left)) * np.sqrt(1 - left) / (1 - 0.75 * left)
    return noise + 0.1 * np.sin(3 * x + timestep / 90)


def papers_way(
    net: Net, start: np.ndarray, noises: list[np.ndarray], steps: int, eta: float
) -> np.ndarray:
    """Predictor and corrector of order two, one evaluation per step, float64.

    Between two times, the clean latents are a line in the logarithm of the signal-to-noise ratio.
    The integral of its slope is replaced by half a square (appendix D of the paper). tau is that
    of the time at which a step ends: eta from 0.2 to 0.8, where 0.001 is timestep 0; the last step
    adds no noise.
    """
    places = np.linspace(999, 0, steps + 1)
    kept = np.interp(places, np.arange(1000), LEFT)
    alpha, sigma = np.sqrt(kept), np.sqrt(1 - kept)
    level = np.log(alpha / sigma)

    def move(x: np.ndarray, k: int, base: np.ndarray, slope: Any, tau: float) -> np.ndarray:
        h, a = level[k] - level[k - 1], 1 + tau**2
        area = (math.exp(a * level[k]) - math.exp(a * level[k - 1])) / a
        drift = base * area + slope * math.exp(a * level[k]) * h**2 / 2
        moved = math.exp(-(tau**2) * h) * sigma[k] / sigma[k - 1] * x
        moved += a * sigma[k] * math.exp(-(tau**2) * level[k]) * drift
        return moved + sigma[k] * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * noises[k - 1]

    def clean(x: np.ndarray, k: int) -> np.ndarray:
        return (x - sigma[k] * net(x, places[k])) / alpha[k]

    x, seen = start, [clean(start, 0)]
    for k in range(1, steps + 1):
        time = (places[k] + 1) / 1000
        tau = eta if 0.2 <= time <= 0.8 and k < steps else 0.0
        slope: Any = 0.0
        if 1 < k < steps:
            slope = (seen[-1] - seen[-2]) / (level[k - 1] - level[k - 2])
        predicted = move(x, k, seen[-1], slope, tau)
        if k == steps:
            return predicted
        found = clean(predicted, k)
        x = move(x, k, seen[-1], (found - seen[-1]) / (level[k] - level[k - 1]), tau)
        seen.append(found)
    raise AssertionError("no step")


def ours(request: GenerationRequest) -> tuple[Tensor, np.ndarray, list[np.ndarray]]:
    """The last latents, the start and the noise of each step."""
    schedule = make_schedule(request, BETAS, learned_variance=False)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same = torch.Generator().manual_seed(2)
    noises = [
        torch.randn(SHAPE, generator=same, dtype=torch.float64).numpy()
        for _ in range(request.steps)
    ]

    def predict(latents: Tensor, timestep: float) -> Tensor:
        return torch.from_numpy(net(latents.numpy(), timestep))

    last = start
    for step in denoise(
        predict, schedule, start, guidance=1.0, generator=torch.Generator().manual_seed(2)
    ):
        last = step.latents
    return last, start.numpy(), noises


def request_of(catalog: Catalog, **values: Any) -> GenerationRequest:
    wanted = {"prompt": "x", "model": "tiny", "sampler": "sa-solver", "seed": 1}
    return complete(wanted | values, catalog)


# 999 is a multiple of both, so that no timestep is rounded.
@pytest.mark.parametrize("steps", [27, 37])
@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
def test_it_is_the_authors_way(catalog: Catalog, steps: int, eta: float) -> None:
    last, start, noises = ours(request_of(catalog, steps=steps, eta=eta))
    expected = papers_way(net, start, noises, steps, eta)
    assert np.abs(expected).max() > 0.1
    assert np.abs(last.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("steps", [14, 20, 25, 50, 199, 200])
def test_noise_is_added_in_the_authors_steps_where_timesteps_are_rounded(
    catalog: Catalog, steps: int
) -> None:
    schedule = make_schedule(request_of(catalog, steps=steps), BETAS, learned_variance=False)
    tau = schedule.scheduler.tau_func
    times = np.linspace(1, 0.001, steps + 1)[1:]
    assert [tau(t) for t in schedule.timesteps] == [float(0.2 <= t <= 0.8) for t in times]
    assert 0.5 < sum(tau(t) for t in schedule.timesteps) / steps < 0.7


def test_a_start_from_a_picture_walks_the_same_steps(catalog: Catalog) -> None:
    whole = request_of(catalog, steps=27)
    part = whole.model_copy(update={"init": "0" * 16 + ".png", "strength": 0.5})
    left = make_schedule(part, BETAS, learned_variance=False)
    assert len(left.timesteps) == 13
    tau = make_schedule(whole, BETAS, learned_variance=False).scheduler.tau_func
    for timestep in left.timesteps:
        assert left.scheduler.tau_func(timestep) == tau(timestep)


def diffusers_way(steps: int, start: np.ndarray) -> Tensor:
    """What `tau_at_start` was called before there was a choice: the class as it is."""
    scheduler = SASolverScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(2)
    x = torch.from_numpy(start)
    for timestep in scheduler.timesteps:
        noise = torch.from_numpy(net(x.numpy(), int(timestep)))
        x = scheduler.step(noise, timestep, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("steps", [12, 25, 27])
def test_the_recipe_of_an_older_picture_paints_the_same(catalog: Catalog, steps: int) -> None:
    new = request_of(catalog, steps=steps)
    old_recipe = new.model_dump(mode="json")
    del old_recipe["tau_at_start"], old_recipe["loras"]
    old = from_mapping(old_recipe)
    assert old.tau_at_start
    last, start, _ = ours(old)
    assert torch.equal(last, diffusers_way(steps, start))
    if steps != 12:
        assert not torch.equal(ours(new)[0], last)


@pytest.mark.parametrize("sampler", ["sa-solver", "dpm-solver++"])
@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("at_start", [True, False])
def test_a_recipe_keeps_its_way(catalog: Catalog, sampler: str, eta: float, at_start: bool) -> None:
    request = request_of(catalog, sampler=sampler, eta=eta, tau_at_start=at_start)
    assert from_mapping(request.recipe()) == request
    plain = request_of(catalog, sampler=sampler, eta=eta)
    assert not plain.tau_at_start
    # What earlier studios can paint, they can read.
    assert ("tau_at_start" in plain.recipe()) == (sampler == "sa-solver" and eta > 0)
