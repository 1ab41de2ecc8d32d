"""Predicted peaks against a GPU's own count, at the real sizes with random weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKL

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.benchmark import Case
from pipelines.denoising import latents
from pipelines.denoising.transformer import Transformer
from pipelines.memory import planning
from pipelines.memory.planning import CONTEXT, MemoryRequest
from pipelines.models import loader
from tests.pipelines.memory.test_planning import REAL, gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
LARGE = MemoryRequest(width=1024, height=1024, approximate=True)
WITHIN = 0.15


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        yield


def test_a_step_at_1024_px() -> None:
    case = Case(name="1024", side=1024, precision="bfloat16", layers=28)
    with torch.inference_mode(False):
        net = benchmark.random_net(case, torch.device("cuda"))
    texts = [torch.randn(n, 4096, device="cuda", dtype=torch.bfloat16) for n in (1, 24)]
    start = torch.randn(1, 4, 128, 128, device="cuda")
    # As the engine has it: joined weights take no memory of their own.
    predict = Transformer(net, owned=True).predictor(texts, (128, 128))
    predict(start, 500.0)
    torch.cuda.reset_peak_memory_stats()
    predict(start, 400.0)
    # The plan counts the VAE beside it; here it is not loaded.
    expected = planning.plan(gpu(8), REAL, LARGE).peaks[1] - CONTEXT - 2 * REAL.vae
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=WITHIN)


@pytest.mark.parametrize("side", [512, 1024])
def test_a_picture_is_decoded(side: int) -> None:
    vae = AutoencoderKL(
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    memory_request = MemoryRequest(width=side, height=side, approximate=True)
    alone = planning.plan(gpu(3), REAL, memory_request)
    vae = vae.to("cuda", torch.bfloat16, memory_format=loader.memory_format(alone)).eval()
    latents.decode(vae, torch.randn(1, 4, side // 8, side // 8))
    expected = alone.peaks[2] - CONTEXT - (0 if alone.decodes_alone else 2 * REAL.transformer)
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=WITHIN)
