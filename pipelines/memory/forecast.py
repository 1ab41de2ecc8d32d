"""Plans in words: what a picture needs, what is free, and how it is made to fit."""

from __future__ import annotations

from dataclasses import replace

from pipelines.memory import planning
from pipelines.memory.planning import DevicePlan, Machine, MemoryRequest, Numbers, TextMode

# Bytes a second from main memory to a GPU, through pages that are pinned for each block: an
# estimate until one was measured (docs/gpu-wanted.md).
_UPLOAD = 6e9
_TEXT_WORDS: dict[TextMode, str] = {
    "resident": "",
    "streamed": "T5 streamed",
    "cpu": "T5 on the processor",
    "int8": "T5 in 8 bits",
    "nf4": "T5 in 4 bits",
}


def words(plan: DevicePlan) -> str:
    """What is special about a plan, in a few words; "" where nothing is."""
    text = _TEXT_WORDS[plan.text]
    if not text and not plan.keeps_text and not plan.one_by_one:
        text = "T5 freed after encoding"
    found = [
        text,
        "one part at a time" if plan.one_by_one else "",
        "transformer set aside for decoding" if plan.decodes_alone and not plan.one_by_one else "",
        f"decoded in tiles of {plan.tile} px" if plan.tile else "",
    ]
    return ", ".join(filter(None, found))


def approximation(machine: Machine, numbers: Numbers, request: MemoryRequest) -> DevicePlan | None:
    """The plan that fits only if the picture may change; None where there is none or no need."""
    if request.approximate or planning.fits(machine, planning.plan(machine, numbers, request)):
        return None
    plan = planning.plan(machine, numbers, replace(request, approximate=True))
    return plan if planning.fits(machine, plan) and not plan.is_exact else None


def sentence(machine: Machine, plan: DevicePlan) -> str:
    """What a run needs, what is free, and how it is made to fit."""
    free = machine.vram_free if machine.device == "cuda" else machine.ram_free
    told = f"needs {_amount(plan.peak, free)}"
    if planning.is_short_of_ram(machine, plan):
        told += f"; of main memory {_amount(plan.text_ram, machine.ram_free)}"
    if special := words(plan):
        told += f"; {special}"
    seconds = plan.text_ram / _UPLOAD if plan.text == "streamed" else 0
    if seconds >= 0.1:
        told += f", about {seconds:.1f} s more for a new prompt"
    if not planning.fits(machine, plan):
        told += "; it may run out of memory"
    return told


def told(machine: Machine, numbers: Numbers, request: MemoryRequest) -> str:
    """The forecast of a request, with what would fit if the picture may change."""
    said = sentence(machine, planning.plan(machine, numbers, request))
    rough = approximation(machine, numbers, request)
    if rough is None:
        return said
    return f"{said}; approximately it fits: {words(rough)}, {rough.peak / 1e9:.1f} GB"


def _amount(size: int, free: int) -> str:
    return f"{size / 1e9:.1f} GB" + (f", {free / 1e9:.1f} GB are free" if free else "")
