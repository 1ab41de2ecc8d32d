"""The trainer on a card: precisions, the scaler, the forecast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training import small, toy
from training import stages
from training.recipes import resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card on this machine"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_and_goes_on(tmp_path: Path, precision: str) -> None:
    config = toy.config(steps=60, precision=precision, optimizer={"lr": 0.03})
    left = iter(range(10**6))
    _, outcome = toy.go(tmp_path / "run", config, should_stop=lambda: next(left) >= 30)
    assert outcome.reason == "stopped"
    run, outcome = toy.go(tmp_path / "run", config)
    assert outcome.reason == "finished"
    losses = [event["loss"] for event in run.events("validation")]
    assert losses[-1] < 0.6 * losses[0]


def test_the_whole_walk(tmp_path: Path) -> None:
    small.pictures(tmp_path / "data" / "pictures")
    values = small.recipe()
    for stage in values["stage"]:
        stage["precision"] = "bf16"
    outcome = stages.walk(
        resolve(values, name="small"),
        root=tmp_path / "run",
        data=tmp_path / "data",
        report=lambda _: lambda _: None,
        should_stop=lambda: False,
    )
    assert outcome.reason == "finished"


def test_the_forecast_is_near_the_peak(tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    run, _ = toy.go(tmp_path / "run", toy.config(steps=3))
    (memory,) = run.events("memory")
    assert memory["peak"] > 0
    assert memory["available"] > memory["peak"]
