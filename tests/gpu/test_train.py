"""The trainer on a GPU: precisions, the scaler, the forecast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training import small
from tests.training.loop import toy
from training import stages
from training.recipes import resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


def skip_without(precision: str) -> None:
    """GPUs before Ampere do not compute in bf16, and a training there says so."""
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_and_goes_on(tmp_path: Path, precision: str) -> None:
    skip_without(precision)
    config = toy.config(steps=60, precision=precision, optimizer={"lr": 0.03})
    left = iter(range(10**6))
    _, outcome = toy.go(tmp_path / "run", config, should_stop=lambda: next(left) >= 30)
    assert outcome.reason == "stopped"
    run, outcome = toy.go(tmp_path / "run", config)
    assert outcome.reason == "finished"
    losses = [event["loss"] for event in run.events("validation")]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_whole_walk(tmp_path: Path, precision: str) -> None:
    skip_without(precision)
    small.pictures(tmp_path / "data" / "pictures")
    values = small.recipe()
    for stage in values["stage"]:
        stage["precision"] = precision
    outcome = stages.walk(
        resolve(values, name="small"),
        root=tmp_path / "run",
        data=tmp_path / "data",
        report=lambda _: lambda _: None,
        should_stop=lambda: False,
    )
    assert outcome.reason == "finished"


def test_eight_bit_states_go_on(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = toy.config(steps=10, optimizer={"name": "adamw8bit"})
    left = iter(range(10**6))
    task = toy.task(config, hidden=4096)
    toy.go(tmp_path / "run", config, toy=task, should_stop=lambda: next(left) >= 6)
    run, outcome = toy.go(tmp_path / "run", config, toy=toy.task(config, hidden=4096))
    assert outcome.reason == "finished"
    assert toy.weights(run)[toy.EIGHT_BIT].dtype == torch.uint8


def test_the_forecast_is_near_the_peak(tmp_path: Path) -> None:
    config = toy.config(steps=3)
    before = torch.cuda.memory_allocated()
    # Large enough that the blocks of the allocator do not decide.
    run, _ = toy.go(tmp_path / "run", config, toy=toy.task(config, hidden=4096))
    # Counted from the measured step on; the updates behind it need more.
    needed = torch.cuda.max_memory_allocated() - before
    (memory,) = run.events("memory")
    assert 0.6 < memory["peak"] / needed < 1.6
    assert memory["available"] > memory["peak"]
