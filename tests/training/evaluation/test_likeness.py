"""How pictures look beside others: blur and other content are seen, noise of sampling is small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from training.evaluation.likeness import Looks, frechet, gradient_energy, looks
from training.scenes.compose import draw, sample_scene
from training.scenes.objects import SceneObject


def drawn(things: tuple[SceneObject, ...], first: int, count: int = 12) -> list[Image.Image]:
    return [draw(sample_scene("single", n, things), 96, 96) for n in range(first, first + count)]


def test_gradient_energy_of_known_pictures() -> None:
    assert gradient_energy(torch.full((1, 3, 8, 8), 0.3)) == 0
    stripes = torch.tensor([-1.0, 1.0] * 4).expand(1, 3, 8, 8)
    # Luma steps by 2 along every row, never along columns.
    assert gradient_energy(stripes) == pytest.approx(4.0)
    assert gradient_energy(stripes / 2) == pytest.approx(1.0)


def test_frechet_of_known_distributions() -> None:
    chance = torch.Generator().manual_seed(0)
    one = torch.randn(4000, 3, generator=chance, dtype=torch.float64)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, one + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25, rel=1e-6)
    # Twice as wide in each of three directions: (2 - 1)² for each, times the variance.
    assert frechet(2 * one, one) == pytest.approx(
        float(torch.cov(one.T).trace() + one.mean(0).square().sum()), rel=1e-6
    )
    assert frechet(2 * one, one) == pytest.approx(frechet(one, 2 * one), rel=1e-6)


def test_blur_takes_energy_and_is_far_away(things: tuple[SceneObject, ...]) -> None:
    right = drawn(things, 0)
    reference = looks(drawn(things, 100))
    sharp = looks(right).against(reference)
    blurred = [picture.filter(ImageFilter.GaussianBlur(2)) for picture in right]
    soft = looks(blurred).against(reference)
    assert sharp is not None
    assert soft is not None
    assert 0.6 < sharp.energy < 1.6
    assert soft.energy < 0.5 * sharp.energy
    assert soft.distance > sharp.distance > 0


def test_noise_is_far_from_scenes(things: tuple[SceneObject, ...]) -> None:
    chance = np.random.default_rng(0)
    noise = [
        Image.fromarray(chance.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(12)
    ]
    reference = looks(drawn(things, 100))
    right, wrong = looks(drawn(things, 0)).against(reference), looks(noise).against(reference)
    assert right is not None
    assert wrong is not None
    assert wrong.distance > 5 * right.distance


def test_too_few_pictures_compare_to_nothing(things: tuple[SceneObject, ...]) -> None:
    few = looks([*drawn(things, 0, 1), None, *drawn(things, 1, 3)])
    assert len(few) == 1
    assert few.against(looks(drawn(things, 0))) is None
    assert Looks().against(few) is None
