"""Joined kernels on a GPU: what Triton makes of them, in one graph."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.benchmark import Case
from pipelines.denoising.transformer import Transformer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


def test_one_graph_paints_every_size_as_the_separate_kernels_do() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    case = Case(name="256", side=256, precision="bfloat16", layers=4)
    with torch.inference_mode():
        net = benchmark.random_net(case, torch.device("cuda"))
        apart, joined = Transformer(net), Transformer(net, compiler=counter)
        for rows in ((1, 24), (24,)):
            texts = [torch.randn(n, 4096, device="cuda", dtype=torch.bfloat16) for n in rows]
            for size in ((32, 32), (24, 40), (40, 24), (64, 64), (128, 128), (96, 160)):
                x = torch.randn(1, 4, *size, device="cuda")
                expected = apart.predictor(texts, size)(x, 500.0)
                found = joined.predictor(texts, size)(x, 500.0)
                # Both round to bf16, in other places.
                assert (found - expected).abs().mean() < 0.02 * expected.std()
    assert counter.frame_count <= 2
