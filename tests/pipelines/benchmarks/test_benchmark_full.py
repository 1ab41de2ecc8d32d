"""The full suite walks the whole way; here with nets that a processor paints with in no time."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipelines.benchmarks import benchmark_full
from pipelines.benchmarks.benchmark import Timing
from pipelines.benchmarks.benchmark_full import Shapes
from pipelines.errors import RequestError
from pipelines.memory.planning import Machine

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
    monkeypatch.setattr("pipelines.memory.probe.machine", lambda: CPU)
    results = list(benchmark_full.run(CPU, Timing(rounds=3), tmp_path, SMALL))
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


def test_the_real_size_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="NVIDIA GPU"):
        list(benchmark_full.run(CPU, Timing(), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    gpu = Machine(device="cuda", name="Small", bf16=True, vram_total=24 * 10**9, vram_free=10**10)
    with pytest.raises(RequestError, match=r"30 GB of a GPU, and 10\.0 GB are free"):
        list(benchmark_full.run(gpu, Timing(), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_too_full_a_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Machine(device="cuda", name="A", bf16=True, vram_total=8 * 10**10, vram_free=8 * 10**10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**9))
    with pytest.raises(RequestError, match=r"12 GB .*5\.0 GB are free"):
        list(benchmark_full.run(gpu, Timing(), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_text_encoder_is_made_in_the_precision_that_it_is_kept_in(tmp_path: Path) -> None:
    folder = benchmark_full.build(tmp_path, SMALL, torch.device("cpu"))
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
