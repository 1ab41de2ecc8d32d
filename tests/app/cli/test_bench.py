"""`bench` says what was measured, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.cli import main
from pipelines.benchmarks import benchmark
from pipelines.benchmarks.benchmark import Result, Timing


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(machine: object, clock: Timing) -> Iterator[Result]:
        common: dict[str, Any] = {"compared": "stock", "seconds": {"ours": 1.0, "stock": 2.0}}
        yield Result(name="one", ratio=2.0, facts={"rounds": clock.rounds}, **common)
        yield Result(name="two", ratio=None, spread=0.4, **common)

    monkeypatch.setattr(benchmark, "run", run)


def test_one_object_per_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "--rounds", "4", "--json"]) == 0
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["name"] == "one"
    assert one["ratio"] == 2.0
    assert one["facts"] == {"rounds": 4}
    assert two["ratio"] is None


def test_a_sentence_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench"]) == 0
    told = capsys.readouterr().out
    assert "one: 2.00 x (1 s against 2 s" in told
    assert "two: too noisy" in told


def test_an_unknown_suite_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "--suite", "ful"]) == 2
    assert "full" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "2", "1001", "many"])
def test_impossible_rounds_are_refused(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "--rounds", rounds]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
