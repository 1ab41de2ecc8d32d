"""What is found of a GPU: nothing but what can really paint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.memory import probe
from pipelines.memory.planning import CONTEXT, GIB, Machine


def probed(monkeypatch: pytest.MonkeyPatch, **told: Any) -> Machine:
    """What is found where torch tells of a GPU with 8 GiB, half of it free."""
    answers = {
        "is_available": True,
        "mem_get_info": (4 * GIB, 8 * GIB),
        "memory_reserved": GIB,
        "get_device_name": "GTX",
        "is_bf16_supported": False,
        "get_device_capability": (7, 5),
        "get_arch_list": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120"],
    }
    for name, answer in (answers | told).items():

        def give(*_: Any, answer: Any = answer, **__: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(torch.cuda, name, give)
    return probe.machine()


def test_what_is_free_counts_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan counts all that CUDA takes, of which a part is taken already."""
    found = probed(monkeypatch)
    assert (found.device, found.vram_total) == ("cuda", 8 * GIB)
    assert found.vram_free == 5 * GIB + CONTEXT // 2
    assert probed(monkeypatch, mem_get_info=(8 * GIB, 8 * GIB)).vram_free == 8 * GIB


@pytest.mark.parametrize(
    ("capability", "built", "usable"),
    [
        ((6, 1), ["sm_75", "sm_80"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_80"], True),
        ((10, 3), ["sm_90", "sm_100a"], True),
        ((13, 0), ["sm_90", "sm_120"], False),
        ((13, 0), ["sm_90", "compute_120"], True),
        ((9, 4), ["gfx942", "gfx1100"], True),
        ((8, 0), [], True),
    ],
)
def test_a_gpu_without_kernels_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], usable: bool
) -> None:
    found = probed(monkeypatch, get_device_capability=capability, get_arch_list=built)
    assert found.device == ("cuda" if usable else "cpu")
    if not usable:
        assert found.name == "CPU (this build of torch has no kernels for the GTX)"


def test_a_gpu_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probed(monkeypatch, mem_get_info=RuntimeError("CUDA error: out of memory"))
    assert (found.device, found.name) == ("cpu", "CPU (CUDA error: out of memory)")
