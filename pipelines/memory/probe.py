"""What this machine has to paint with, as torch tells: nothing but what really paints."""

from __future__ import annotations

import os
import re
import shutil
from importlib.util import find_spec
from typing import Any

import torch

from pipelines.errors import printable
from pipelines.memory import ram
from pipelines.memory.planning import CONTEXT, Machine, wants_compiling


def machine() -> Machine:
    """The best device of this machine, and how much memory is free now."""
    main = ram.look()
    memory: dict[str, Any] = {
        "ram_total": main.total,
        "ram_free": main.free,
        "swap_free": main.swap,
    }
    unused = ""
    if torch.cuda.is_available():
        try:
            return _gpu(memory)
        # Too old, full, or taken by somebody else alone: without it everything still works.
        except RuntimeError as error:
            unused = f" ({printable(error, 120)})"
    if torch.backends.mps.is_available():
        return Machine(device="mps", name="Apple GPU", bf16=False, **memory)
    return Machine(device="cpu", name=f"CPU{unused}", bf16=has_bf16("cpu"), **memory)


def has_bf16(device: str) -> bool:
    """True where a "cpu" or "cuda" multiplies bfloat16 itself, instead of widening it first."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _gpu(memory: dict[str, Any]) -> Machine:
    """The GPU that torch takes. Raises RuntimeError where it cannot be used."""
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    # Of others torch itself only warns.
    if not _has_kernels(10 * major + minor, torch.cuda.get_arch_list()):
        raise RuntimeError(f"this build of torch has no kernels for the {name}")
    free, total = torch.cuda.mem_get_info()
    # What this process holds only for later is free for a plan; and a part of CUDA's own is there
    # already, where a plan counts all of it.
    own = torch.cuda.memory_reserved() + CONTEXT // 2
    return Machine(
        device="cuda",
        name=name,
        bf16=has_bf16("cuda"),
        compiles=wants_compiling() and _has_triton(),
        vram_total=total,
        vram_free=min(total, free + own),
        **memory,
    )


def _has_kernels(capability: int, built: list[str]) -> bool:
    """Kernels (sm_86) run on later GPUs of their generation, and what is compiled when it is
    needed (compute_90) on all later ones. AMD's have other names and are not judged."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)[af]?", arch) for arch in built]
    if not all(found) or not found:
        return True
    pairs = [(one[1], int(one[2])) for one in found if one]
    return any(
        each <= capability and (kind == "compute" or each // 10 == capability // 10)
        for kind, each in pairs
    )


def _has_triton() -> bool:
    """True where torch.compile has what it needs for the GPU: Triton, from Volta on, and a
    compiler that Triton builds its launchers with."""
    compilers = (os.environ.get("CC", ""), "gcc", "clang", "cc")
    return (
        find_spec("triton") is not None
        and torch.cuda.get_device_capability() >= (7, 0)
        and any(name and shutil.which(name) for name in compilers)
    )
