"""Around the transformer and in its products, in two ways each.

`python tests/pipelines/benchmarks/bench_around.py`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ROUNDS = 7


def best(work: Callable[[], object]) -> float:
    """Milliseconds of the quickest of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> None:
    """Prints a line for each comparison."""
    import torch
    from diffusers import AutoencoderKL

    from pipelines.catalog import Catalog
    from pipelines.denoising import kernels, preview
    from pipelines.memory import model_numbers, planning
    from pipelines.memory.planning import Machine, MemoryRequest
    from pipelines.models import loader

    torch.set_grad_enabled(False)
    model = Catalog().find("nano")
    machine = Machine(device="cpu", name="CPU", bf16=False)
    plan = planning.plan(machine, model_numbers.of(model), MemoryRequest(width=128, height=128))
    made = preview.Preview(loader.vae(model, plan))
    small = dict(made._smaller)
    for side in (512, 1024, 1280):
        shown = partial(made.jpeg, torch.randn(1, 4, side // 8, side // 8))
        few = best(shown)
        # As if no smaller map were known.
        preview._PATCHES = (8,)
        every = best(shown)
        preview._PATCHES = tuple(small)
        print(f"preview at {side} px: {few:.1f} ms, of all pixels {every:.1f} ms", flush=True)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    gpu = torch.cuda.is_available()
    device, side = ("cuda", 1024) if gpu else ("cpu", 256)
    vae = vae.to(device, torch.bfloat16).eval()
    latents, pixels = (
        torch.randn(shape, device=device, dtype=torch.bfloat16)
        for shape in ((1, 4, side // 8, side // 8), (1, 3, side, side))
    )

    def finished(work: Callable[[object], object], given: object) -> None:
        work(given)
        if gpu:
            torch.cuda.synchronize()

    for order in (torch.contiguous_format, torch.channels_last):
        vae.to(memory_format=order)
        decoding = best(partial(finished, vae.decode, latents))
        peak = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most" if gpu else ""
        encoding = best(partial(finished, vae.encode, pixels))
        print(
            f"{order}, {side} px: decoding {decoding:.0f} ms{peak}, encoding {encoding:.0f} ms",
            flush=True,
        )
        if gpu:
            torch.cuda.reset_peak_memory_stats()
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Linear(1152, 4608, dtype=dtype)
        tokens = torch.randn(1, 2048, 1152, dtype=dtype)
        rates = [
            2 * 2048 * 1152 * 4608 / best(partial(each, tokens)) / 1e6
            for each in (layer, kernels.linear(layer))
        ]
        print(f"{dtype}: torch {rates[0]:.0f} GFLOP/s, ours {rates[1]:.0f}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
