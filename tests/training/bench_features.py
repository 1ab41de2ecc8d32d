"""How fast a processor encodes pictures for a training, by what goes together and by precision.

The small model's VAE, one thread, processor time, all ways in one process by turns:
python tests/training/bench_features.py [turns]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.catalog import Catalog
from pipelines.sizes import Size
from training.data.features import pictures_together

SIDES = (64, 128, 256)
PICTURES = 16


@torch.inference_mode()
def rate(vae: AutoencoderKL, pixels: torch.Tensor, together: int, *, bf16: bool) -> float:
    """Pictures per second of processor time."""
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for group in pixels.split(together):
            vae.encode(group).latent_dist.mode()
    return len(pixels) / (time.process_time() - began)


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(Catalog().find("nano").part("vae")).eval()
    for side in SIDES:
        pixels = torch.rand(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0))
        pixels = pixels * 2 - 1
        pieces = pictures_together(Size(side, side), torch.device("cpu"))
        ways = {
            f"fp32, {PICTURES} together": (PICTURES, False),
            f"fp32, {pieces} together": (pieces, False),
            f"bf16, {PICTURES} together": (PICTURES, True),
            f"bf16, {pieces} together": (pieces, True),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, (together, bf16) in ways.items():
                rates[name].append(rate(vae, pixels, together, bf16=bf16))
        first = statistics.median(next(iter(rates.values())))
        for name, found in rates.items():
            middle = statistics.median(found)
            print(f"{side} px, {name}: {middle:.1f} pictures/s, {middle / first:.2f} x")


if __name__ == "__main__":
    main()
