"""Joined kernels: the numbers of the separate ones, and one graph for every size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pipelines.catalog import Catalog
from pipelines.denoising.residual import EPS, Apart, Joined
from pipelines.denoising.transformer import Transformer
from pipelines.memory import model_numbers, planning, probe
from pipelines.memory.planning import Machine, MemoryRequest
from pipelines.models import loaded
from tests.pipelines.denoising.test_transformer import latents, make, stock, texts
from tests.pipelines.memory.test_planning import REAL

SIZES = [
    (16, 16),
    (12, 20),
    (20, 12),
    (8, 24),
    (24, 8),
    (16, 20),
    (32, 32),
    (10, 16),
    (2, 4),
    (6, 4),
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


def counting(backend: str = "aot_eager") -> Any:
    """A back end that counts its graphs."""
    return CompileCounterWithBackend(backend)


def test_ten_sizes_and_any_texts_share_at_most_two_graphs() -> None:
    """The empty negative, short and long texts, with guidance and without."""
    counter, net = counting(), make(3)
    fast = Transformer(net, compiler=counter)
    for size in SIZES:
        for lengths in ((1, 6), (6,), (20,), (1,), (5, 20)):
            given, x = texts(*lengths), latents(*size)
            predict = fast.predictor(given, size, variance=True)
            for timestep in (900.0, 100.0):
                torch.testing.assert_close(
                    predict(x, timestep), stock(net, given, x, timestep), rtol=0, atol=1e-5
                )
    assert 1 <= counter.frame_count <= 2


def test_nets_of_other_widths_keep_their_own_numbers() -> None:
    given, x, counter = texts(6), latents(), counting()
    for heads in (4, 2, 4):
        net = make(heads=heads)
        predict = Transformer(net, compiler=counter).predictor(given, (16, 16), variance=True)
        torch.testing.assert_close(
            predict(x, 400.0), stock(net, given, x, 400.0), rtol=0, atol=1e-5
        )
    assert counter.frame_count == 2


def test_another_epsilon_is_not_given_to_a_graph_that_holds_ours() -> None:
    net = make()
    net.register_to_config(norm_eps=0.5)
    for block in net.transformer_blocks:
        block.norm1.eps = block.norm2.eps = 0.5
    net.norm_out.eps = 0.5
    counter, given, x = counting(), texts(6), latents()
    predict = Transformer(net, compiler=counter).predictor(given, (16, 16), variance=True)
    torch.testing.assert_close(predict(x, 400.0), stock(net, given, x, 400.0), rtol=0, atol=1e-5)
    assert counter.frame_count == 0


def test_a_compiler_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def broken(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        raise RuntimeError("no Triton for this GPU")

    net, given, x = make(), texts(1, 6), latents()
    fast = Transformer(net, compiler=broken)
    # Two pictures: it is not tried again for the second.
    for timestep in (400.0, 300.0):
        predict = fast.predictor(given, (16, 16), variance=True)
        torch.testing.assert_close(
            predict(x, timestep), stock(net, given, x, timestep), rtol=0, atol=1e-5
        )
    assert len(calls) == 1
    assert "no Triton for this GPU" in caplog.text


def test_a_kernel_that_fails_when_it_runs_is_left_out() -> None:
    def late(graph: Any, inputs: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no kernel image is available for execution on the device")

        return run

    net, given, x = make(), texts(6), latents()
    predict = Transformer(net, compiler=late).predictor(given, (16, 16), variance=True)
    torch.testing.assert_close(predict(x, 400.0), stock(net, given, x, 400.0), rtol=0, atol=1e-5)


def test_a_process_with_more_nets_than_graphs_paints_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    given, x = texts(6), latents()
    for heads in (2, 4, 6):
        net = make(heads=heads)
        predict = Transformer(net, compiler="aot_eager").predictor(given, (16, 16), variance=True)
        torch.testing.assert_close(
            predict(x, 400.0), stock(net, given, x, 400.0), rtol=0, atol=1e-5
        )


def test_too_little_memory_is_no_failure_of_the_compiler() -> None:
    def full(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("CUDA out of memory.")

    predict = Transformer(make(), compiler=full).predictor(texts(6), (16, 16))
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        predict(latents(), 400.0)
    assert planning.is_out_of_memory(caught.value)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_inductor_makes_is_no_further_from_the_truth(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(4)
    x, y = (torch.randn(2, 50, 96).to(dtype) for _ in range(2))
    gate, shift, scale = (torch.randn(4, 96)[1:]).to(dtype)
    joined = Joined(96, x, "inductor")
    total = x.double() + gate.double() * y.double()
    normed = torch.nn.functional.layer_norm(total, (96,), scale.double(), shift.double(), EPS)

    def errors(found: tuple[Tensor, Tensor]) -> list[float]:
        return [(a - b).abs().mean().item() for a, b in zip(found, (total, normed), strict=True)]

    ours = errors(joined.gated(x, y, gate, shift, scale))
    apart = errors(Apart(EPS).gated(x.clone(), y, gate, shift, scale))
    assert any(tmp_path.rglob("*.so")), "nothing was compiled"
    # In float32 both are at the last bit.
    assert all(a <= max(1.05 * b, 1e-6) for a, b in zip(ours, apart, strict=True))


def test_only_who_asks_and_can_gets_joined_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Machine(device="cuda", name="GPU", bf16=True)
    memory_request = MemoryRequest(width=512, height=512)
    assert not planning.plan(gpu, REAL, memory_request).compiled
    able = Machine(device="cuda", name="GPU", bf16=True, compiles=True)
    assert planning.plan(able, REAL, memory_request).compiled
    for value, asked in (("1", True), ("0", False), ("", False), ("true", True)):
        monkeypatch.setenv(planning.COMPILE_VARIABLE, value)
        assert planning.wants_compiling() is asked
    for wanted, triton, capability in (
        ("1", True, (7, 0)),
        ("0", True, (8, 0)),
        ("1", False, (8, 0)),
        ("1", True, (6, 1)),
        ("1", True, (8, 6)),
    ):
        monkeypatch.setenv(planning.COMPILE_VARIABLE, wanted)
        found = probed(monkeypatch, triton, capability)
        assert found.compiles is (wanted == "1" and triton and capability >= (7, 0))


def probed(monkeypatch: pytest.MonkeyPatch, triton: bool, capability: tuple[int, int]) -> Machine:
    """What is found where there is such a GPU."""
    for name, told in {
        "is_available": True,
        "mem_get_info": (8 * 2**30, 8 * 2**30),
        "memory_reserved": 0,
        "get_device_name": "GPU",
        "is_bf16_supported": True,
        "get_device_capability": capability,
        "get_arch_list": ["sm_61", "sm_70", "sm_80"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, told=told, **__: told)
    monkeypatch.setattr(probe, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr("shutil.which", lambda name: name)
    return probe.machine()


def test_the_plan_decides_how_the_transformer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(loaded, "Transformer", lambda net, **how: made.append(how["compiler"]))
    model = Catalog().find("nano")
    for compiles in (True, False):
        machine = Machine(device="cpu", name="CPU", bf16=False, compiles=compiles)
        plan = planning.plan(machine, model_numbers.of(model), MemoryRequest(width=128, height=128))
        assert loaded.Loaded(model, plan, None).transformer is None
    assert made == ["inductor", None]
