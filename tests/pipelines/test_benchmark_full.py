"""The full suite walks the whole way; here with nets that a processor paints with in no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import benchmark_full, loader
from pipelines.benchmark import Clock
from pipelines.benchmark_full import Shapes
from pipelines.errors import RequestError
from pipelines.memory import Machine

CPU = Machine(device="cpu", name="CPU", bf16=False)
SMALL = Shapes(
    side=64,
    layers=1,
    heads=2,
    each=24,
    text_width=64,
    text_inner=64,
    text_layers=1,
    text_heads=2,
    vocabulary=2048,
    vae_channels=(8, 8, 8, 8),
    vae_groups=4,
)


def test_speeds_and_peaks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "probe", lambda: CPU)
    results = list(benchmark_full.run(CPU, Clock(rounds=3), lambda: False, tmp_path, SMALL))
    speeds = [result for result in results if result.seconds]
    assert [result.name.split(", ")[2] for result in speeds] == ["lcm", "dpm-solver++"]
    for result in speeds:
        assert all(seconds > 0 for seconds in result.seconds.values())
        assert result.facts["seconds, known prompt"] > 0
    peaks = [result for result in results if not result.seconds]
    assert len(peaks) == len(benchmark_full._CARDS)
    for result in peaks:
        assert result.facts["forecast, GiB"] > 0
        assert result.facts["how"]


def test_a_stop_ends_it_between_two_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "probe", lambda: CPU)
    results = list(benchmark_full.run(CPU, Clock(rounds=3), lambda: True, tmp_path, SMALL))
    assert len(results) == 2


def test_the_real_size_needs_a_card(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="NVIDIA card"):
        list(benchmark_full.run(CPU, Clock(), lambda: False, tmp_path))
    assert list(tmp_path.iterdir()) == []
