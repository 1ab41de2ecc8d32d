"""A LoRA and a Dreambooth of real size on this machine: the peak against the forecast.

PixArt-XL/2 with random weights at 256 px in bf16, two updates of one picture each; VAE and T5 are
small ones. Nothing is downloaded. Takes 4 GB for the LoRA and 13 GB for the whole net:
python tests/training/bench_lora.py [lora|dreambooth-net]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.catalog import Catalog
from pipelines.memory.measured import give_back, held, measured
from tests import tiny
from tests.training import small
from training import stages
from training.recipes import resolve

GB = 1e9
UPDATES = 2


def model(folder: Path) -> Path:
    """PixArt-XL/2 with random weights, which reads the features of the small T5."""
    made = tiny.build(folder / "xl")
    torch.manual_seed(0)
    net = PixArtTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        num_layers=28,
        sample_size=32,
        caption_channels=32,
        interpolation_scale=0.5,
        use_additional_conditions=False,
    ).to(torch.bfloat16)
    net.save_pretrained(made / "transformer")
    row = (made / "model.toml").read_text("utf-8")
    (made / "model.toml").write_text(row.replace('size = "64x64"', 'size = "256x256"'), "utf-8")
    return made


def recipe(method: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "title": "Real size",
        "method": method,
        "steps": UPDATES,
        "batch": 1,
        "precision": "bf16",
        "log_every": 1,
        "data": {"source": ".", "side": 256, "held_out": 0.0},
        "base": {"model": "xl"},
        "objective": {"variational": 0.0},
        "ema": {"decay": 0.0},
        "checkpoints": {"every": 1000},
        "validation": {"every": 0},
    }
    if method == "lora":
        values["lora"] = {"rank": 16}
    else:
        values["subject"] = {"word": "sks", "kind": "disc", "prior": "none"}
    return values


def main() -> None:
    method = sys.argv[1] if len(sys.argv) > 1 else "lora"
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        # Apart, so that nothing of it is left in this process.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            other.submit(model, models).result()
        data = small.pictures(Path(folder, "data"), count=4, size=(256, 256))
        device = torch.device("cpu")
        give_back()
        before, began = held(device), time.perf_counter()
        with measured(device, before=before) as peak:
            stages.walk(
                resolve(recipe(method), name="real"),
                root=Path(folder, "run"),
                data=data,
                report=lambda config: lambda progress: None,
                should_stop=lambda: False,
                catalog=Catalog(user_models=models),
            )
        (events,) = Path(folder, "run").glob("*/events.jsonl")
        told = [json.loads(line) for line in events.read_text("utf-8").splitlines()]
        memory = next(event for event in told if event["event"] == "memory")
        parts = {name: f"{memory[name] / GB:.2f}" for name in memory if name not in _NO_BYTES}
        print(f"{method}: forecast of the training {parts} GB")
        print(f"measured peak of everything {peak.bytes / GB:.2f} GB")
        print(f"{time.perf_counter() - began:.0f} s with loading, {UPDATES} updates")


_NO_BYTES = ("time", "event", "available")

if __name__ == "__main__":
    main()
