"""The gradient scaler of fp16, which torch has on processors, too: there it is tried without a
GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from pipelines.errors import TrainingError
from tests.training.loop import toy
from training.config import RunConfig
from training.loop.devices import make_accelerator
from training.loop.task import Batch


class Steep(toy.ToyNet):
    """Its loss is finite, its gradient is not, at any scale."""

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        loss = super().forward(batch, seed, timestep)["loss"]
        return {"loss": loss + (loss * 0).sqrt()}


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(config: RunConfig) -> Accelerator:
        accelerator = make_accelerator(config.model_copy(update={"precision": "fp32"}))
        # As accelerate sets itself up where it finds a GPU.
        AcceleratorState._shared_state["_mixed_precision"] = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(toy, "make_accelerator", make)


def test_it_learns_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = toy.config(steps=40, precision="fp16", optimizer={"lr": 0.03})
    straight, _ = toy.go(tmp_path / "straight", config)
    losses = [event["loss"] for event in straight.events("validation")]
    assert losses[-1] < 0.6 * losses[0]
    # The first scale is too large; that is no fault of a sample.
    assert straight.events("step")[0]["norm"] is None
    assert straight.events("skipped") == []
    left = iter(range(10**6))
    toy.go(tmp_path / "cut", config, should_stop=lambda: next(left) >= 13)
    again, _ = toy.go(tmp_path / "cut", config)
    toy.assert_same(straight, again)


def test_a_gradient_that_no_scale_mends_is_not_hidden(tmp_path: Path) -> None:
    config = toy.config(steps=60, precision="fp16")
    task = toy.task(config)
    task.net.__class__ = Steep
    with pytest.raises(TrainingError, match="not finite 3 times in a row"):
        toy.go(tmp_path / "run", config, toy=task)
