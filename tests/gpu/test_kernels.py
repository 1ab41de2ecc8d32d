"""What a GPU is asked to do: the fast attention, and no waiting within a step."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.benchmark import Case
from pipelines.denoising import kernels
from pipelines.denoising.transformer import Transformer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


def test_attention_runs_in_the_fast_kernel_of_the_gpu() -> None:
    """cuDNN's on Hopper and data-centre Blackwell, FlashAttention elsewhere; never plain products.

    torch chooses (docs/decisions/0007); this says whether it chooses so.
    """
    q, k, v = (torch.randn(2, 16, 4096, 72, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    kernels.attention(q, k, v)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        kernels.attention(q, k, v)
        torch.cuda.synchronize()
    names = " ".join(event.key.lower() for event in seen.key_averages())
    wanted = "cudnn" if torch.cuda.get_device_capability()[0] in (9, 10) else "flash"
    assert wanted in names, names


def test_no_step_waits_for_the_gpu() -> None:
    case = Case(name="256", side=256, precision="bfloat16", layers=2)
    with torch.inference_mode():
        net = benchmark.random_net(case, torch.device("cuda"))
        texts = [torch.randn(n, 4096, device="cuda", dtype=torch.bfloat16) for n in (1, 24)]
        predict = Transformer(net).predictor(texts, (32, 32))
        x = torch.randn(1, 4, 32, 32, device="cuda")
        predict(x, 900.0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for timestep in (700.0, 500.0, 300.0):
                predict(x, timestep)
        finally:
            torch.cuda.set_sync_debug_mode("default")
