"""The forecast against what lives at once: a tracker counts every storage that is made."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.denoising import kernels, latents
from pipelines.denoising.transformer import Transformer
from pipelines.memory import planning
from pipelines.memory.planning import Machine, MemoryRequest, Numbers
from tests.pipelines.denoising.test_transformer import CAPTION, make

CPU = Machine(device="cpu", name="CPU", bf16=False)


class Tracker(TorchDispatchMode):
    """The most bytes of new storages that lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def numbers(width: int, vae_width: int) -> Numbers:
    """Only activations: no parameters."""
    return Numbers(
        transformer=0,
        text=0,
        text_kept=0,
        text_block=0,
        text_rest=0,
        vae=0,
        width=width,
        vae_width=vae_width,
    )


@pytest.mark.parametrize("side", [128, 256])
def test_a_decoded_picture_needs_what_was_forecast(side: int) -> None:
    vae = AutoencoderKL(
        block_out_channels=[16, 32, 64, 64],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
    ).eval()
    start = torch.randn(1, 4, side // 8, side // 8)
    with torch.inference_mode(), Tracker() as tracker:
        latents.decode(vae, start)
    way = planning.plan(CPU, numbers(1, 32), MemoryRequest(width=side, height=side))
    assert tracker.peak == pytest.approx(way.peaks[2], rel=0.05)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_needs_what_was_forecast(
    rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed weights, on processors, apply GELU within the product and need less."""
    if not packed:
        monkeypatch.setattr(kernels, "_can_pack", lambda weight: False)
    net = make(2, heads=8, each=48)
    texts = [torch.randn(6, CAPTION) for _ in range(rows)]
    predict = Transformer(net).predictor(texts, (32, 32))
    start = torch.randn(1, 4, 32, 32)
    with torch.inference_mode():
        predict(start, 500.0)
        with Tracker() as tracker:
            predict(start, 500.0)
    way = planning.plan(CPU, numbers(384, 1), MemoryRequest(width=256, height=256, rows=rows))
    if packed:
        assert 0.6 * way.peaks[1] < tracker.peak <= 1.05 * way.peaks[1]
    else:
        assert tracker.peak == pytest.approx(way.peaks[1], rel=0.05)
