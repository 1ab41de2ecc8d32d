"""The loss against equations written down a second time, in float64 and without shared code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from training.objective import LINEAR, Diffusion


def reference_bound(
    predicted: np.ndarray, values: np.ndarray, start: np.ndarray, noise: np.ndarray, t: int
) -> float:
    """Improved DDPM, equations 9 to 15, for one picture, in bits per dimension.

    The Gaussians and their KL are taken from torch.distributions.
    """
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha = np.cumprod(1 - beta)
    before = alpha[t - 1] if t else 1.0
    noised = np.sqrt(alpha[t]) * start + np.sqrt(1 - alpha[t]) * noise
    posterior = beta * (1 - np.append(1.0, alpha[:-1])) / (1 - alpha)
    low = np.log(posterior[max(t, 1)])
    high = np.log(beta[t])
    v = (values + 1) / 2
    log_variance = v * high + (1 - v) * low

    def mean(x0: np.ndarray) -> np.ndarray:
        first = np.sqrt(before) * beta[t] / (1 - alpha[t])
        second = np.sqrt(1 - beta[t]) * (1 - before) / (1 - alpha[t])
        return first * x0 + second * noised

    guess = (noised - np.sqrt(1 - alpha[t]) * predicted) / np.sqrt(alpha[t])
    model = torch.distributions.Normal(
        torch.from_numpy(mean(guess)), torch.from_numpy(np.exp(0.5 * log_variance))
    )
    if t == 0:
        x = torch.from_numpy(start)

        def cdf(point: torch.Tensor) -> torch.Tensor:
            z = (point - model.mean) / model.stddev
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

        high_edge = torch.where(x > 0.999, torch.ones_like(x), cdf(x + 1 / 255))
        low_edge = torch.where(x < -0.999, torch.zeros_like(x), cdf(x - 1 / 255))
        nats = -(high_edge - low_edge).clamp(min=1e-12).log()
    else:
        truth = torch.distributions.Normal(
            torch.from_numpy(mean(start)), torch.full(start.shape, math.exp(0.5 * low)).double()
        )
        nats = torch.distributions.kl_divergence(truth, model)
    return float(nats.mean()) / math.log(2)


@pytest.mark.parametrize("t", [0, 1, 2, 250, 777, 999])
def test_the_variational_term_is_that_of_the_paper(t: int) -> None:
    dice = np.random.default_rng(t)
    shape = (2, 4, 6, 6)
    start, noise, predicted, values = (dice.standard_normal(shape) for _ in range(4))
    start = np.clip(start, -1.2, 1.2)
    values = np.tanh(values)
    losses = Diffusion().losses(
        torch.from_numpy(np.concatenate([predicted, values], axis=1)).float(),
        torch.from_numpy(start).float(),
        torch.from_numpy(noise).float(),
        torch.tensor([t, t]),
    )
    for i in range(2):
        wanted = reference_bound(predicted[i], values[i], start[i], noise[i], t)
        assert float(losses.variational[i]) == pytest.approx(wanted, rel=2e-3)
    mse = ((predicted - noise) ** 2).mean(axis=(1, 2, 3))
    assert losses.mse.tolist() == pytest.approx(mse.tolist(), rel=1e-5)
    together = losses.mse + losses.variational
    assert torch.allclose(losses.loss, together)


def test_the_variational_term_trains_the_variance_and_leaves_the_mean_alone() -> None:
    output = torch.randn(3, 8, 4, 4, requires_grad=True)
    start, noise = torch.randn(2, 3, 4, 4, 4)
    losses = Diffusion().losses(output, start, noise, torch.tensor([5, 400, 900]))
    (gradient,) = torch.autograd.grad(losses.variational.sum(), output)
    assert torch.count_nonzero(gradient[:, :4]) == 0
    assert torch.count_nonzero(gradient[:, 4:]) == gradient[:, 4:].numel()


def test_min_snr_weights() -> None:
    alpha = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    timesteps = torch.tensor([0, 10, 300, 999])
    output = torch.zeros(4, 8, 2, 2)
    noise = torch.ones(4, 4, 2, 2)
    losses = Diffusion().losses(
        output, torch.zeros_like(noise), noise, timesteps, min_snr=5.0, variational=0.0
    )
    snr = (alpha / (1 - alpha))[timesteps.numpy()]
    assert losses.loss.tolist() == pytest.approx((np.minimum(snr, 5) / snr).tolist(), rel=1e-4)


def test_the_clean_picture_counts_up_to_a_limit() -> None:
    diffusion = Diffusion()
    start, noise = torch.randn(2, 3, 4, 2, 2)
    output = torch.randn(3, 4, 2, 2)
    timesteps = torch.tensor([100, 500, 990])
    losses = diffusion.losses(output, start, noise, timesteps, clean=50.0)
    alpha = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[timesteps].float()
    alpha = alpha.view(3, 1, 1, 1)
    noised = alpha.sqrt() * start + (1 - alpha).sqrt() * noise
    implied = (noised - (1 - alpha).sqrt() * output) / alpha.sqrt()
    error = (implied - start).square().flatten(1).mean(1)
    wanted = losses.mse + torch.stack([error[0], error[1], 50 * losses.mse[2]])
    assert torch.allclose(losses.loss, wanted, rtol=1e-3)
    # Of the velocity, where nothing limits it.
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * start
    told = alpha.sqrt() * output - (1 - alpha).sqrt() * implied
    of_velocity = (told - velocity).square().flatten(1).mean(1)
    assert torch.allclose(losses.loss[:2], of_velocity[:2], rtol=1e-3)


def test_noising_is_that_of_the_schedulers() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, **LINEAR)
    start, noise = torch.randn(2, 4, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 500, 999])
    wanted = scheduler.add_noise(start, noise, timesteps)
    assert torch.allclose(Diffusion().noised(start, noise, timesteps), wanted, atol=1e-5)


def test_without_a_variance_half_there_is_nothing_to_train() -> None:
    start, noise, output = torch.randn(3, 2, 4, 4, 4)
    losses = Diffusion().losses(output, start, noise, torch.tensor([5, 400]))
    assert losses.variational.tolist() == [0.0, 0.0]
