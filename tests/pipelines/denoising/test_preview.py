"""Which steps are shown, and how large."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines.catalog import Catalog
from pipelines.denoising import latents
from pipelines.denoising.preview import MAX_SIDE, Preview, Previews
from pipelines.memory.planning import DevicePlan
from pipelines.models import loader

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLAN = DevicePlan(device="cpu", precision="float32")


class Time:
    """A clock that goes on by what the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Costly:
    """A preview that takes `cost` seconds."""

    def __init__(self, clock: Time, cost: float) -> None:
        self._clock, self._cost = clock, cost

    def jpeg(self, latents: Tensor) -> bytes:
        self._clock.now += self._cost
        return b"jpeg"


def shown(device: torch.device, cost: float, step: float, steps: int) -> list[int]:
    """Which of the steps are shown, counted from 1."""
    clock = Time()
    costly: Any = Costly(clock, cost)
    previews, found = Previews(costly, device, clock), []
    for number in range(1, steps + 1):
        clock.now += step
        if previews.after_step(torch.zeros(1, 4, 2, 2)):
            found.append(number)
    return found


def test_a_slow_processor_shows_every_step() -> None:
    assert shown(CPU, cost=0.01, step=0.2, steps=5) == [1, 2, 3, 4, 5]


def test_previews_take_a_tenth_of_the_time_at_most() -> None:
    found = shown(CPU, cost=0.01, step=0.03, steps=41)
    assert found[:3] == [1, 5, 9]
    assert len(found) * 0.01 <= 0.1 * (41 * 0.03 + len(found) * 0.01) + 0.01


def test_a_fast_gpu_has_painted_before_there_is_anything_to_show() -> None:
    assert shown(GPU, cost=0.01, step=0.02, steps=4) == []
    assert shown(GPU, cost=0.01, step=0.05, steps=8) == [2, 5, 8]


@pytest.fixture(scope="module")
def preview() -> Preview:
    with torch.inference_mode():
        return Preview(loader.vae(Catalog().find("nano"), PLAN))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (16, 16, (128, 128)),
        (64, 64, (512, 512)),
        (128, 128, (512, 512)),
        (96, 168, (512, 293)),
        (256, 128, (256, 512)),
    ],
)
def test_large_pictures_are_shown_small(
    preview: Preview, height: int, width: int, size: tuple[int, int]
) -> None:
    shown = Image.open(io.BytesIO(preview.jpeg(torch.randn(1, 4, height, width))))
    assert shown.size == size
    assert max(shown.size) <= MAX_SIDE


def test_the_small_one_is_the_large_one_made_small(preview: Preview) -> None:
    """Means of pixels come from means of the map: nothing but rounding is lost."""
    values = torch.nn.functional.interpolate(
        torch.randn(1, 4, 8, 8), size=(128, 128), mode="bicubic"
    )
    small = np.asarray(Image.open(io.BytesIO(preview.jpeg(values))), dtype=float)
    whole = preview._smaller[4]
    preview._smaller[4] = torch.zeros_like(whole)
    try:
        assert np.asarray(Image.open(io.BytesIO(preview.jpeg(values)))).std() < 1
    finally:
        preview._smaller[4] = whole
    quarters = [
        np.asarray(Image.open(io.BytesIO(preview.jpeg(part))), dtype=float)
        for part in (values[..., :64, :64], values[..., 64:, 64:])
    ]
    for place, part in zip((slice(0, 256), slice(256, 512)), quarters, strict=True):
        reduced = part.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
        assert np.abs(small[place, place] - reduced).mean() < 6


def test_pixels_are_rounded_as_numpy_rounds_them() -> None:
    pixels = torch.linspace(-1.2, 1.2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    pixels[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    values = (pixels[0] / 2 + 0.5).nan_to_num(0).clamp(0, 1).permute(1, 2, 0).numpy()
    expected = (values * 255).round().astype("uint8")
    assert np.array_equal(np.asarray(latents.to_picture(pixels)), expected)


@pytest.mark.parametrize(
    ("precision", "device", "last"),
    [("bfloat16", "cpu", True), ("float32", "cpu", False), ("bfloat16", "cuda", False)],
)
def test_convolutions_have_the_order_that_is_fast(precision: Any, device: Any, last: bool) -> None:
    plan = replace(PLAN, precision=precision, device=device)
    expected = torch.channels_last if last else torch.contiguous_format
    assert loader.memory_format(plan) is expected
    if device == "cpu":
        vae = loader.vae(Catalog().find("nano"), plan)
        assert vae.decoder.conv_in.weight.is_contiguous(memory_format=expected)
