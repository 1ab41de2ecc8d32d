"""Which timesteps are drawn."""

from __future__ import annotations

import torch

from training.loop.rng import drawn, generator

LATENTS = torch.zeros(20_000, 1, 1, 1)


def test_timesteps_are_drawn_evenly() -> None:
    _, timesteps = drawn(LATENTS, generator(1))
    assert int(timesteps.min()) == 0
    assert int(timesteps.max()) == 999
    assert abs(float(timesteps.float().mean()) - 499.5) < 10


def test_a_share_of_them_is_drawn_around_the_middle() -> None:
    _, timesteps = drawn(LATENTS, generator(1), middle=1.0)
    assert abs(float(timesteps.float().median()) - 310) < 8
    inside = ((timesteps > 168) & (timesteps < 500)).float().mean()
    assert abs(float(inside) - 0.683) < 0.02
    _, mixed = drawn(LATENTS, generator(1), middle=0.5)
    # Half of the even ones lie there beyond 500, a sixth of the others.
    late = (mixed >= 500).float().mean()
    assert abs(float(late) - (0.25 + 0.5 * 0.16)) < 0.02


def test_noise_and_validation_do_not_depend_on_the_share() -> None:
    plain, _ = drawn(LATENTS, generator(1))
    noise, timesteps = drawn(LATENTS, generator(1), 350, middle=0.7)
    assert torch.equal(plain, noise)
    assert timesteps.unique().tolist() == [350]
