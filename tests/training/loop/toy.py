"""The smallest training there is: a net with dropout learns to add random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.progress import Progress
from training.config import RunConfig
from training.loop.checkpoint import found, read
from training.loop.devices import make_accelerator
from training.loop.draws import full_batches
from training.loop.order import Pick
from training.loop.rng import generator
from training.loop.run_state import RunEnd
from training.loop.task import Batch, Task, stacked
from training.loop.trainer import train
from training.recipes import resolve
from training.run import Run, only_one, open_run

WIDTH = 6
EIGHT_BIT = "optimizer-0/0/__bnb_optimizer_quant_state__/state1"
"""Where `weights` has the first moment of a net whose matrices are large enough for 8 bits."""


class ToyNet(nn.Module):
    """Guesses the sum of its input; the dropout draws from the global generator."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.block = nn.Sequential(
            nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        values: Tensor = batch["values"]
        noise = torch.randn(values.shape, generator=generator(seed)).to(values.device) * 0.1
        guess = self.block(values + noise)[:, 0]
        return {"loss": (guess - values.sum(1)).square()}


class ToySamples:
    """Sample i is decided by i, and a little by the pick; `poison` is not a number."""

    def __init__(self, count: int, poison: tuple[int, ...] = ()) -> None:
        self.count = count
        self.poison = poison

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        values = torch.randn(WIDTH, generator=generator("toy", pick.index))
        values += 0.01 * torch.randn(WIDTH, generator=generator(pick.key))
        if pick.index in self.poison:
            values = values * math.nan
        return {"values": values, "ids": f"sample-{pick.index}"}


def config(**changes: Any) -> RunConfig:
    """Twenty updates of two micro-batches."""
    values: dict[str, Any] = {
        "name": "toy",
        "method": "text-to-image",
        "steps": 20,
        "batch": 3,
        "accumulate": 2,
        "precision": "fp32",
        "log_every": 1,
        "data": {"source": "toy"},
        "optimizer": {"lr": 1e-2},
        "schedule": {"kind": "cosine", "warmup": 3},
        "ema": {"decay": 0.9},
        "checkpoints": {"every": 5, "keep": 2},
        "validation": {"every": 5},
    }
    for key, value in changes.items():
        known = values.get(key)
        values[key] = known | value if isinstance(known, dict) else value
    return resolve(values, name="toy").stages[0]


def task(
    config: RunConfig, *, count: int = 17, poison: tuple[int, ...] = (), hidden: int = 8
) -> Task:
    """17 samples do not divide into batches of 3: updates reach over the end of an epoch."""
    net = ToyNet(hidden)

    def publish(folder: Path) -> Mapping[str, Any]:
        folder.mkdir(exist_ok=True)
        save_file(dict(net.state_dict()), folder / "toy.safetensors")
        return {"made": "toy"}

    return Task(
        net=net,
        samples=ToySamples(count, poison),
        held_out=ToySamples(4),
        held_out_batches=[(0, 1), (2, 3)],
        plan=lambda epoch: full_batches(count, config.batch, config.seed, "epoch", epoch),
        collate=stacked,
        publish=publish,
        fixed_timesteps=False,
    )


def go(
    folder: Path,
    config: RunConfig,
    *,
    toy: Task | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Run, RunEnd]:
    """Trains in `folder` as the stages do."""
    with only_one(folder):
        accelerator = make_accelerator(config)
        with accelerator.main_process_first():
            run = open_run(folder, config)
        outcome = train(
            run,
            toy or task(config),
            accelerator,
            report=report,
            should_stop=should_stop,
            tell=tell,
        )
    return run, outcome


def weights(run: Run) -> dict[str, Tensor]:
    """Everything in the newest checkpoint: raw and averaged weights, optimizer states."""
    newest = read(next(found(run.checkpoints)))
    tensors = {}
    for file in sorted(newest.folder.glob("*.safetensors")):
        for name, value in newest.tensors(file.stem).items():
            tensors[f"{file.stem}/{name}"] = value
    return tensors


def assert_same(one: Run, other: Run) -> None:
    """Bit-equal checkpoints."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 10
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
