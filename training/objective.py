"""The diffusion objective: noise prediction, min-SNR weighting, and the variational term that
trains the variance half of PixArt's output.

Equations: DDPM (arXiv 2006.11239), improved DDPM (arXiv 2102.09672; section 3.1 for the learned
range), min-SNR (arXiv 2303.09556). All tables in float64, all losses in float32 per picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TIMESTEPS = 1000
_HALF_STEP = 1.0 / 255.0
_TINY = 1e-12


def betas(schedule: dict[str, Any]) -> Tensor:
    """The variances beta_t (1000,) float64 of a scheduler configuration."""
    start, end = float(schedule["beta_start"]), float(schedule["beta_end"])
    if schedule["beta_schedule"] == "linear":
        return torch.linspace(start, end, TIMESTEPS, dtype=torch.float64)
    if schedule["beta_schedule"] == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    raise ValueError(f"no training with the beta schedule {schedule['beta_schedule']!r}")


LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""The noise schedule of PixArt-α."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Per picture, each (B,): `loss` is minimised; `mse` is the plain noise error, the number that
    can be compared across tools; `variational` in bits per dimension, 0 where it is not trained."""

    loss: Tensor
    mse: Tensor
    variational: Tensor

    def by_name(self) -> dict[str, Tensor]:
        """As the loop wants them."""
        return {"loss": self.loss, "mse": self.mse, "variational": self.variational}


class Diffusion:
    """The noising process of a model and the loss of a prediction."""

    def __init__(self, schedule: dict[str, Any] | None = None) -> None:
        beta = betas(schedule or LINEAR)
        alpha = torch.cumprod(1 - beta, dim=0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])
        # The posterior variance is 0 at the first timestep; its logarithm is that of the second.
        posterior = beta * (1 - before) / (1 - alpha)
        tables = {
            "signal": alpha.sqrt(),
            "noise": (1 - alpha).sqrt(),
            "snr": alpha / (1 - alpha),
            "log_beta": beta.log(),
            "log_posterior": torch.cat([posterior[1:2], posterior[1:]]).log(),
            "mean_start": beta * before.sqrt() / (1 - alpha),
            "mean_noised": (1 - before) * (1 - beta).sqrt() / (1 - alpha),
        }
        # Computed in float64; not every device has it.
        self._tables = {name: values.float() for name, values in tables.items()}

    def _at(self, table: str, timesteps: Tensor, like: Tensor) -> Tensor:
        """One number per picture of a table, shaped (B, 1, 1, 1) like `like`."""
        values = self._tables[table].to(like.device)[timesteps]
        return values.view(-1, *[1] * (like.ndim - 1))

    def noised(self, start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean latents (B, C, h, w) at timesteps (B,)."""
        signal = self._at("signal", timesteps, start)
        return signal * start + self._at("noise", timesteps, start) * noise

    def losses(
        self,
        output: Tensor,
        start: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        *,
        min_snr: float = 0.0,
        clean: float = 0.0,
        variational: float = 1.0,
    ) -> Losses:
        """Of a network's `output` (B, C or 2C, h, w) for x_t made from `start` and `noise`.

        The weight of the noise error is min(SNR, `min_snr`) / SNR, 1 where that is 0, and to it
        comes min(1 / SNR, `clean`).
        """
        channels = start.shape[1]
        output = output.float()
        predicted = output[:, :channels]
        mse = (predicted - noise).square().flatten(1).mean(1)
        weighted = mse * self.weight(timesteps, min_snr=min_snr, clean=clean)
        bound = torch.zeros_like(mse)
        if variational and output.shape[1] == 2 * channels:
            bound = self._variational(
                # The mean is trained by the squared error alone.
                predicted.detach(),
                output[:, channels:],
                start,
                self.noised(start, noise, timesteps),
                timesteps,
            )
        return Losses(loss=weighted + variational * bound, mse=mse, variational=bound)

    def weight(self, timesteps: Tensor, *, min_snr: float = 0.0, clean: float = 0.0) -> Tensor:
        """(B,): what a noise error at `timesteps` (B,) counts, see `losses`."""
        snr = self._tables["snr"].to(timesteps.device)[timesteps]
        weight = snr.clamp(max=min_snr) / snr if min_snr else torch.ones_like(snr)
        # 1 / SNR of the noise error is the error of the clean latents that it implies.
        return weight + (1 / snr).clamp(max=clean)

    def _variational(
        self, predicted: Tensor, values: Tensor, start: Tensor, noised: Tensor, timesteps: Tensor
    ) -> Tensor:
        """L_t of the bound in bits per dimension (B,): KL of two Gaussians, or at t = 0 the
        likelihood of the clean latents in bins of 1/127.5 on [-1, 1]."""
        low = self._at("log_posterior", timesteps, start)
        high = self._at("log_beta", timesteps, start)
        share = (values + 1) / 2
        log_variance = share * high + (1 - share) * low
        signal = self._at("signal", timesteps, start)
        guess = (noised - self._at("noise", timesteps, start) * predicted) / signal
        on_start = self._at("mean_start", timesteps, start)
        on_noised = self._at("mean_noised", timesteps, start)
        true_mean = on_start * start + on_noised * noised
        mean = on_start * guess + on_noised * noised
        kl = 0.5 * (
            log_variance
            - low
            - 1.0
            + (low - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
        )
        likelihood = _log_likelihood(start, mean, 0.5 * log_variance)
        first = (timesteps == 0).view(-1, *[1] * (start.ndim - 1))
        return torch.where(first, -likelihood, kl).flatten(1).mean(1) / math.log(2.0)


def _log_likelihood(start: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of each element under a Gaussian that is cut into bins of width 2/255."""
    centred = start - mean
    inverse = (-log_scale).exp()
    above = _gaussian_cdf(inverse * (centred + _HALF_STEP))
    below = _gaussian_cdf(inverse * (centred - _HALF_STEP))
    inside = (above - below).clamp(min=_TINY).log()
    inside = torch.where(start > 0.999, (1 - below).clamp(min=_TINY).log(), inside)
    return torch.where(start < -0.999, above.clamp(min=_TINY).log(), inside)


def _gaussian_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that the reference of the variational loss uses (GELU's)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
