"""Where, in which precision and in which order a model runs: `plan`, a pure function of numbers.

The same plan is read by the loader, shown before a run, and made cheaper rung by rung when the
memory runs out after all. Exact ways come before those that change the picture (a quantised
T5, tiles). Sizes: docs/memory.md, from counted parameters and measured activations.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["float32", "bfloat16", "float16"]
TextMode = Literal["resident", "streamed", "cpu", "int8", "nf4"]
PlanStage = Literal["text", "denoising", "decoding", "main memory"]

STAGES = ("text", "denoising", "decoding")

GIB = 2**30
# What CUDA itself takes for a process.
CONTEXT = GIB // 2
# Small models gain nothing from bf16 on a processor.
_LARGE = 100_000_000
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Tensors of the transformer's width that live at once, per token and row.
_LIVE = 10
# Tensors of the VAE's second width at full size that live at once.
_LIVE_DECODER = 3
# 4-bit weights with their scales, per parameter (64 share one float32).
_NF4 = 0.5625
_TILES = (512, 256)
# How torch, CUDA, cuBLAS and Metal word running out of memory, in lower case; last, cuDNN, where
# no way to convolve fits into it.
_OUT_OF_MEMORY = (
    "defaultcpuallocator",
    "allocate memory",
    "out of memory",
    "alloc_failed",
    "unable to find an engine to execute",
)
# What the rest of the process needs of the main memory.
_RAM_SPARE = 2 * GIB

COMPILE_VARIABLE = "PIXART_STUDIO_COMPILE"
"""Set to 1, it has torch.compile join small kernels on NVIDIA GPUs."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found on this machine. `name` is the GPU's or processor's name for people.

    `compiles`: torch.compile may join small kernels (`COMPILE_VARIABLE`). Memory in bytes; 0 where
    it is not known, which counts as enough. `swap_free` is disk that stands in for main memory.
    """

    device: Device
    name: str
    bf16: bool
    compiles: bool = False
    vram_total: int = 0
    vram_free: int = 0
    ram_total: int = 0
    ram_free: int = 0
    swap_free: int = 0


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What decides a model's sizes: parameters of its parts, and two widths.

    `text_kept` are the parameters that quantisation leaves alone, `text_block` those of one block,
    `text_rest` those that belong to none; `vae_width` is the number of channels at full size while
    a picture is decoded.
    """

    transformer: int
    text: int
    text_kept: int
    text_block: int
    text_rest: int
    vae: int
    width: int
    vae_width: int


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What is to be painted: pixels, rows of a step (2 with guidance), and a chosen text mode.

    `approximate` allows ways that change the picture, where nothing exact fits.
    """

    width: int
    height: int
    rows: int = 2
    text: TextMode | None = None
    approximate: bool = False


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """How a model runs. `peaks` are the predicted bytes on the device in each stage.

    `keeps_text`: T5 stays loaded. `one_by_one`: the transformer waits outside while T5 works.
    `decodes_alone`: it leaves before the picture is decoded. `tile`: side of the pieces that are
    decoded one after another, None for the whole picture. `compiled`: small kernels are joined.
    `text_ram` are the bytes of main memory that T5 takes.
    """

    device: Device
    precision: Precision
    text: TextMode = "resident"
    text_precision: Precision = "float32"
    keeps_text: bool = True
    one_by_one: bool = False
    decodes_alone: bool = False
    tile: int | None = None
    compiled: bool = False
    peaks: tuple[int, int, int] = (0, 0, 0)
    text_ram: int = 0

    @property
    def peak(self) -> int:
        """The largest of the peaks."""
        return max(self.peaks)

    @property
    def is_exact(self) -> bool:
        """True where the picture is that of the plan with the most memory."""
        return self.text not in ("int8", "nf4") and self.tile is None


def wants_compiling() -> bool:
    """True where the user asks for joined kernels."""
    return os.environ.get(COMPILE_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def is_out_of_memory(error: BaseException) -> bool:
    """True where the memory of the GPU or of the machine ran out, however torch words it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in words for sign in _OUT_OF_MEMORY)


def precision(machine: Machine, numbers: Numbers) -> Precision:
    """bf16 where the device multiplies it itself and there is something to gain.

    GPUs without it get fp16; processors and Apple's GPUs fp32.
    """
    if machine.device == "cpu":
        return "bfloat16" if machine.bf16 and numbers.transformer >= _LARGE else "float32"
    if machine.bf16:
        return "bfloat16"
    return "float16" if machine.device == "cuda" else "float32"


def plan(machine: Machine, numbers: Numbers, request: MemoryRequest) -> DevicePlan:
    """The first way that fits into what is free, else the one that needs least."""
    plans = list(_plans(machine, numbers, request))
    for plan in plans:
        if _fits(machine, plan):
            return plan
    return min(plans, key=lambda plan: _shortfall(machine, plan))


def fits(machine: Machine, plan: DevicePlan) -> bool:
    """False where the forecast says that the memory will run out."""
    return _fits(machine, plan)


def cheaper(
    machine: Machine,
    numbers: Numbers,
    request: MemoryRequest,
    failed: DevicePlan,
    stage: PlanStage | None = None,
) -> DevicePlan | None:
    """The next rung after a plan that ran out of memory, or None at the end.

    It needs less in the `stage` that failed (None: where the plan needed most) and nowhere more
    than the failed plan at its peak.
    """
    plans = list(_plans(machine, numbers, request))
    behind = plans[plans.index(failed) + 1 :] if failed in plans else plans
    if stage == "main memory":
        return next((plan for plan in behind if plan.text_ram < failed.text_ram), None)
    place = None if stage is None else STAGES.index(stage)

    def needs_less(plan: DevicePlan) -> bool:
        if place is None:
            return plan.peak < failed.peak
        return plan.peaks[place] < failed.peaks[place] and plan.peak <= failed.peak

    return next(filter(needs_less, behind), None)


def limited(machine: Machine, failed: DevicePlan) -> Machine:
    """`machine` as a failed plan showed it: with less memory than that plan needed."""
    if machine.device == "cuda":
        free = machine.vram_free or failed.peak
        return replace(machine, vram_free=max(1, min(free, failed.peak - 1)))
    free = machine.ram_free or failed.peak
    return replace(machine, ram_free=max(1, min(free, failed.peak - 1)))


def is_short_of_main_memory(
    machine: Machine, plan: DevicePlan, *, reads_text: bool = True, maps_text: bool = False
) -> bool:
    """True where the system would end the process, without a word, while it paints.

    `reads_text`: T5 has to be read. `maps_text`: its numbers stay in their file, and come from
    there whenever they are needed: slow where memory is short, but possible.
    """
    if not machine.ram_free:
        return False
    gone = 0 if reads_text and not maps_text else plan.text_ram
    if machine.device == "cuda":
        needed = plan.text_ram - gone
    else:
        kept = gone if plan.keeps_text else 0
        text = plan.peaks[0] - gone if reads_text else 0
        needed = max(text, plan.peaks[1] - kept, plan.peaks[2] - kept)
    return needed > machine.ram_free + machine.swap_free


def is_short_of_ram(machine: Machine, plan: DevicePlan) -> bool:
    """True where a plan for a GPU needs more main memory than is free."""
    return machine.device == "cuda" and 0 < machine.ram_free < plan.text_ram + _RAM_SPARE


def _shortfall(machine: Machine, plan: DevicePlan) -> tuple[int, int]:
    """By how much a plan passes what can be had, and what is free in main memory.

    What a GPU lacks cannot be had, nor more main memory than there is; what others use of the main
    memory can often be freed.
    """
    free = machine.vram_free if machine.device == "cuda" else machine.ram_free
    over = max(0, plan.peak - free) if free else 0
    ram = plan.text_ram + _RAM_SPARE if machine.device == "cuda" else 0
    over += max(0, ram - machine.ram_total) if machine.ram_total else 0
    short = max(0, ram - machine.ram_free) if machine.ram_free else 0
    return over, short


def _fits(machine: Machine, plan: DevicePlan) -> bool:
    free = machine.ram_free if machine.device != "cuda" else machine.vram_free
    enough = not free or plan.peak <= free
    return enough and not is_short_of_ram(machine, plan)


def _plans(machine: Machine, numbers: Numbers, request: MemoryRequest) -> Iterator[DevicePlan]:
    """Every way to run that the request allows, the best first: first all that are exact."""
    for plan in _all_plans(machine, numbers, request):
        if plan.is_exact or request.approximate or request.text is not None:
            yield plan


def _all_plans(machine: Machine, numbers: Numbers, request: MemoryRequest) -> Iterator[DevicePlan]:
    texts = [request.text] if request.text else list(_text_modes(machine))
    exact = [text for text in texts if text not in ("int8", "nf4")]
    rough = [text for text in texts if text in ("int8", "nf4")]
    if "resident" in texts:
        yield _plan(machine, numbers, request, text="resident", keeps_text=True)
    for group, tiles in ((exact, (None,)), (rough, (None,)), (exact, _TILES), (rough, _TILES)):
        for tile, text in product(tiles, group):
            for alone, one_by_one in ((False, False), (True, False), (True, True)):
                yield _plan(
                    machine,
                    numbers,
                    request,
                    text=text,
                    decodes_alone=alone,
                    one_by_one=one_by_one,
                    tile=tile,
                )


def _text_modes(machine: Machine) -> tuple[TextMode, ...]:
    if machine.device == "cuda":
        return ("streamed", "cpu", "resident", "int8", "nf4")
    if machine.device == "mps":
        # One memory for both: on the processor T5 takes half, in bf16.
        return ("resident", "cpu", "int8", "nf4")
    return ("resident", "int8", "nf4")


def _plan(
    machine: Machine,
    numbers: Numbers,
    request: MemoryRequest,
    *,
    text: TextMode,
    keeps_text: bool = False,
    one_by_one: bool = False,
    decodes_alone: bool = False,
    tile: int | None = None,
) -> DevicePlan:
    own = precision(machine, numbers)
    text_precision: Precision = own
    if text in ("int8", "nf4", "cpu") or own == "float16":
        # T5 leaves the range of fp16; bf16 is right everywhere, only slow on old GPUs.
        text_precision = "bfloat16"
    size = _BYTES[own]
    # On processors a second copy of the weights lies in the order that oneDNN likes.
    copies = 2 if machine.device == "cpu" else 1
    transformer, vae = copies * numbers.transformer * size, numbers.vae * size
    context = CONTEXT if machine.device == "cuda" else 0
    t5 = text_bytes(numbers, text, _BYTES[text_precision])
    on_device = 0 if text == "cpu" and machine.device == "cuda" else t5
    # In main memory, where it does not go to the GPU piece by piece.
    waiting = numbers.text * _BYTES[text_precision] if text in ("streamed", "cpu") else 0
    kept = on_device if keeps_text else 0
    tokens = request.width * request.height // 256
    step = _LIVE * request.rows * tokens * numbers.width * size
    decoded = (
        min(request.width * request.height, tile * tile) if tile else request.width * request.height
    )
    picture = _LIVE_DECODER * numbers.vae_width * decoded * size
    peaks = (
        context + on_device + (0 if one_by_one else transformer + vae),
        context + kept + transformer + step + (0 if one_by_one else vae),
        context + kept + vae + picture + (0 if decodes_alone else transformer),
    )
    return DevicePlan(
        device=machine.device,
        precision=own,
        text=text,
        text_precision=text_precision,
        keeps_text=keeps_text,
        one_by_one=one_by_one,
        decodes_alone=decodes_alone,
        tile=tile,
        compiled=machine.compiles,
        peaks=peaks,
        text_ram=waiting if machine.device == "cuda" else t5,
    )


def text_bytes(numbers: Numbers, text: TextMode, size: int) -> int:
    """What T5 takes where it works; `size` are the bytes of a number that is not quantised."""
    if text == "streamed":
        # One block works while the next one arrives.
        return (2 * numbers.text_block + numbers.text_rest) * size
    if text in ("int8", "nf4"):
        small = (numbers.text - numbers.text_kept) * (1.0 if text == "int8" else _NF4)
        return int(small) + numbers.text_kept * size
    return numbers.text * size
