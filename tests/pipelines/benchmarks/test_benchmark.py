"""The benchmark compares what it says, and keeps silent where it cannot know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.benchmark import Case, Timing

SMALL = {"side": 64, "layers": 1, "heads": 2, "each": 12, "caption": 16, "steps": 2}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_transformer_is_measured_and_checked(precision: str) -> None:
    case = Case(name="small", precision=precision, **SMALL)
    result = benchmark.transformer(case, torch.device("cpu"), Timing(rounds=3))
    assert result.name == "transformer, small"
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.facts["second run equals first"] is True
    if precision == "float32":
        assert result.facts["mean difference"] < 1e-5
    else:
        ours, stock = (result.facts[f"mean error, {who}"] for who in ("ours", "stock"))
        assert 0 < ours < 0.1
        assert 0 < stock < 0.1


def test_joined_kernels_are_measured_by_their_name() -> None:
    case = Case(name="small", precision="float32", **SMALL)
    clock = Timing(rounds=3)
    result = benchmark.transformer(case, torch.device("cpu"), clock, compiler="aot_eager")
    assert result.name == "transformer, small, kernels joined"
    assert result.facts["mean difference"] < 1e-5
    assert result.facts["second run equals first"] is True


def test_both_paint_the_same_latents() -> None:
    """A ratio means nothing where one of the two does something else."""
    made: dict[str, Any] = {}

    class Keeping(Timing):
        def seconds(self, work: Callable[[], object]) -> float:
            made[work.__name__] = work()
            return 1.0

    case = Case(name="small", precision="float32", **SMALL)
    result = benchmark.transformer(case, torch.device("cpu"), Keeping(rounds=3))
    scale = made["stock"].abs().max()
    assert scale > 1
    assert (made["ours"] - made["stock"]).abs().max() <= 1e-5 * scale
    assert result.ratio == 1.0


def test_a_noisy_measurement_gives_no_ratio() -> None:
    times = iter([1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 0.5, 1.0, 2.5, 1.0, 4.0, 1.0, 1.0])

    class Shaky(Timing):
        def seconds(self, work: Callable[[], object]) -> float:
            return next(times)

    case = Case(name="small", precision="float32", **SMALL)
    result = benchmark.transformer(case, torch.device("cpu"), Shaky(rounds=7))
    assert result.ratio is None
    assert result.spread > benchmark.MAX_SPREAD


def test_the_embedded_model_is_measured_whole() -> None:
    result = benchmark.embedded(Timing(rounds=3))
    assert result.seconds["ours"] > 0
    assert result.facts["text encoder runs for a known prompt"] == 0


def test_gpus_are_measured_at_full_depth() -> None:
    assert {case.layers for case in benchmark.cases("cuda", bf16=False)} == {28}
    assert benchmark.cases("cuda", bf16=False)[0].precision == "float16"
    assert benchmark.cases("cuda", bf16=True)[0].precision == "bfloat16"
    assert [case.precision for case in benchmark.cases("cpu", bf16=False)] == ["float32"]


def test_turns_change_their_order() -> None:
    """Whoever comes second could profit from what the first one has warmed up."""
    order: list[str] = []
    benchmark.compare(
        "turns", lambda: order.append("ours"), lambda: order.append("stock"), Timing(rounds=6)
    )
    # Behind the warming up, which is by turns, too.
    measured = order[-12:]
    rounds = [tuple(measured[i : i + 2]) for i in range(0, 12, 2)]
    assert rounds.count(("ours", "stock")) == rounds.count(("stock", "ours")) == 3


def test_what_is_the_same_to_the_bit_is_told() -> None:
    result = benchmark.transformer(
        Case(name="small", precision="float32", **SMALL), torch.device("cpu"), Timing(rounds=3)
    )
    for name in ("joined products equal single ones", "guided row equals unguided"):
        assert isinstance(result.facts[name], bool)
