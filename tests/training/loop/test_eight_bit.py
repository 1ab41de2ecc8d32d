"""bitsandbytes keeps its states in a table of their own; a checkpoint holds and restores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import TrainingError
from tests.training.loop import toy
from training.config import RunConfig
from training.loop.run_state import RunEnd
from training.loop.tensors import pack_states, unpack_states
from training.run import Run

# Tensors of fewer numbers keep states of 32 bits; those of this net share tables of steps.
HIDDEN = 4096


def eight_bit(**more: Any) -> RunConfig:
    return toy.config(steps=12, optimizer={"name": "adamw8bit", "lr": 1e-2}, **more)


def go(folder: Path, config: RunConfig, *, looks: int = 10**6, **task: Any) -> tuple[Run, RunEnd]:
    pytest.importorskip("bitsandbytes")
    left = iter(range(10**6))
    made = toy.task(config, hidden=HIDDEN, **task)
    return toy.go(folder, config, toy=made, should_stop=lambda: next(left) >= looks)


@pytest.mark.parametrize("stop_at", [1, 7, 10])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, stop_at: int) -> None:
    config = eight_bit()
    straight, _ = go(tmp_path / "straight", config)
    _, outcome = go(tmp_path / "cut", config, looks=stop_at)
    assert (outcome.reason, outcome.step) == ("stopped", stop_at)
    again, outcome = go(tmp_path / "cut", config)
    assert (outcome.reason, outcome.step) == ("finished", 12)
    toy.assert_same(straight, again)
    states = toy.weights(again)
    assert states[toy.EIGHT_BIT].dtype == torch.uint8
    assert states[toy.EIGHT_BIT].unique().numel() > 1


def test_a_rollback_restores_the_states(tmp_path: Path) -> None:
    config = eight_bit()
    go(tmp_path / "run", config, looks=6)
    with pytest.raises(TrainingError, match="again after going back"):
        go(tmp_path / "run", config, poison=tuple(range(17)))
    run, outcome = go(tmp_path / "run", config)
    assert outcome.reason == "finished"
    assert [event["step"] for event in run.events("rollback")] == [6]


def test_a_table_within_a_state_comes_back() -> None:
    """The form that bitsandbytes gives on a GPU, too."""
    inner = {"state1": torch.arange(4, dtype=torch.uint8), "absmax1": torch.rand(2)}
    before = {"state": {0: {"step": 3, "quant": inner}}, "param_groups": [{"betas": (0.9, 0.99)}]}
    tensors, numbers = pack_states(before)
    assert numbers["numbers"] == {"0": {"step": 3}}
    after = unpack_states(tensors, numbers, [torch.zeros(4)])
    assert after["param_groups"] == before["param_groups"]
    assert after["state"][0]["step"] == 3
    assert after["state"][0]["quant"].keys() == inner.keys()
    for name, value in inner.items():
        assert torch.equal(after["state"][0]["quant"][name], value)
