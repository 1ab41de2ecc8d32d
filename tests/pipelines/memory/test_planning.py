"""The plan: a table of GPUs, what fits, and every rung below."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog import ROOT
from pipelines.memory import forecast, planning
from pipelines.memory.planning import GIB, Device, DevicePlan, Machine, MemoryRequest, Numbers

# research: 611 M transformer, T5-XXL of 24 blocks, the VAE of Stable Diffusion.
REAL = Numbers(
    transformer=611_349_152,
    text=4_762_310_656,
    text_kept=1_006_632_960 + 131_600_000,
    text_block=192_900_000,
    text_rest=131_600_000,
    vae=83_653_863,
    width=1152,
    vae_width=256,
)
NANO = Numbers(
    transformer=14_000_000,
    text=2_000_000,
    text_kept=400_000,
    text_block=500_000,
    text_rest=400_000,
    vae=3_750_000,
    width=384,
    vae_width=64,
)
LARGE = MemoryRequest(width=1024, height=1024, approximate=True)


def gpu(gib: float, ram: float = 32) -> Machine:
    """A GPU that is free but for what a desktop takes."""
    free = int(gib * GIB * 0.95)
    return Machine(
        device="cuda",
        name="GPU",
        bf16=True,
        vram_total=int(gib * GIB),
        vram_free=free,
        ram_total=int(ram * GIB),
        ram_free=int(ram * GIB * 0.8),
    )


def processor(ram: float, *, bf16: bool = True) -> Machine:
    return Machine(
        device="cpu", name="CPU", bf16=bf16, ram_total=int(ram * GIB), ram_free=int(ram * GIB)
    )


@pytest.mark.parametrize(
    ("gib", "text", "peak", "alone", "tile"),
    [
        (80, "resident", 12.6, False, None),
        (16, "resident", 12.6, False, None),
        (12, "streamed", 3.35, False, None),
        (8, "streamed", 3.35, False, None),
        (6, "streamed", 3.35, False, None),
        (4, "streamed", 3.35, False, None),
        (3, "streamed", 2.75, True, None),
        (2, "streamed", 1.8, True, 512),
    ],
)
def test_the_table_of_gpus(
    gib: float, text: str, peak: float, alone: bool, tile: int | None
) -> None:
    found = planning.plan(gpu(gib), REAL, LARGE)
    assert found.text == text
    assert found.decodes_alone == alone
    assert found.tile in (tile, None)
    assert found.peak / GIB == pytest.approx(peak, rel=0.05)
    assert planning.fits(gpu(gib), found)
    assert found.precision == "bfloat16"


def test_the_documented_table_is_what_is_planned() -> None:
    text = (ROOT / "docs" / "memory.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) GB \| ([^|]+) \| ([\d.]+) \| (exact)?", text, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [24, 16, 12, 8, 6, 4, 3, 2]
    for gib, words, peak, exact in rows:
        found = planning.plan(gpu(float(gib)), REAL, LARGE)
        assert (forecast.words(found) or "everything resident") == words
        assert f"{found.peak / GIB:.1f}" == peak
        assert found.is_exact == bool(exact)


def test_little_main_memory_means_a_quantised_text_encoder() -> None:
    found = planning.plan(gpu(8, ram=10), REAL, LARGE)
    assert found.text == "int8"
    assert found.text_precision == "bfloat16"
    assert not found.is_exact
    # 8 bits with the matrices that stay in bf16: 5.9 GB in research, 4.1 GB in 4 bits.
    assert found.peaks[0] < 8 * GIB * 0.95
    assert planning.plan(gpu(6, ram=10), REAL, LARGE).text == "nf4"


def test_processors() -> None:
    found = planning.plan(processor(32), REAL, LARGE)
    assert (found.device, found.precision, found.text) == ("cpu", "bfloat16", "resident")
    assert planning.plan(processor(32, bf16=False), NANO, LARGE).precision == "float32"
    assert planning.plan(processor(32), NANO, LARGE).precision == "float32"
    assert planning.plan(processor(8), REAL, LARGE).text in ("int8", "nf4")
    small = planning.plan(processor(2), NANO, MemoryRequest(width=128, height=128))
    assert small.keeps_text
    assert planning.fits(processor(2), small)


def test_unknown_memory_counts_as_enough() -> None:
    unknown = Machine(device="cuda", name="GPU", bf16=True)
    assert planning.plan(unknown, REAL, LARGE).keeps_text
    assert "free" not in forecast.sentence(unknown, planning.plan(unknown, REAL, LARGE))


def test_gpus_without_bf16_never_run_the_text_encoder_in_fp16() -> None:
    old = replace(gpu(16), bf16=False)
    assert planning.plan(old, REAL, LARGE).precision == "float16"
    for text in ("resident", "streamed", "cpu", "int8", "nf4"):
        assert planning.plan(old, REAL, replace(LARGE, text=text)).text_precision == "bfloat16"


def test_a_chosen_text_mode_is_kept() -> None:
    for text in ("resident", "streamed", "cpu", "int8", "nf4"):
        memory = replace(LARGE, text=text)
        assert planning.plan(gpu(80), REAL, memory).text == text
        assert planning.plan(gpu(4), REAL, memory).text == text


def rungs(machine: Machine, memory: MemoryRequest) -> list[DevicePlan]:
    found: list[DevicePlan] = []
    way: DevicePlan | None = planning.plan(machine, REAL, memory)
    while way is not None:
        found.append(way)
        way = planning.cheaper(machine, REAL, memory, way)
    return found


def test_the_ladder_goes_down_to_the_last_rung() -> None:
    found = rungs(gpu(80), LARGE)
    peaks = [way.peak for way in found]
    assert peaks == sorted(set(peaks), reverse=True)
    exact = [way.is_exact for way in found]
    # What changes the picture comes only after all that does not.
    assert exact == sorted(exact, reverse=True)
    assert found[0].keeps_text
    assert found[-1].tile is not None
    assert len(found) >= 4


def test_what_failed_while_decoding_gets_another_decoding() -> None:
    """T5 is the largest on a processor, yet changing it would not help."""
    apple = Machine(device="mps", name="Apple GPU", bf16=False, ram_free=16 * GIB)
    for machine in (apple, processor(16), gpu(8)):
        way: DevicePlan | None = planning.plan(machine, REAL, LARGE)
        seen: list[DevicePlan] = []
        while way is not None:
            seen.append(way)
            way = planning.cheaper(machine, REAL, LARGE, way, "decoding")
        assert [w.tile for w in seen][-2:] == [512, 256]
        needs = [w.peaks[2] for w in seen]
        assert needs == sorted(set(needs), reverse=True)
        assert all(w.peak <= seen[0].peak for w in seen)


def test_a_lack_of_main_memory_leads_to_a_quantised_encoder() -> None:
    failed = planning.plan(gpu(8), REAL, LARGE)
    assert failed.text == "streamed"
    lower = planning.cheaper(gpu(8), REAL, LARGE, failed, "main memory")
    assert lower is not None
    assert lower.text_ram < failed.text_ram


def test_a_plan_that_failed_is_not_made_again() -> None:
    for machine in (gpu(24), processor(32), Machine(device="cuda", name="GPU", bf16=True)):
        failed = planning.plan(machine, REAL, LARGE)
        after = planning.plan(planning.limited(machine, failed), REAL, LARGE)
        assert after.peak < failed.peak


def test_where_nothing_fits_the_least_is_missing() -> None:
    poor = gpu(4, ram=6)
    found = planning.plan(poor, REAL, LARGE)
    assert not planning.fits(poor, found)
    assert found.text_ram <= poor.ram_free


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "MPS backend out of memory (MPS allocated: 9.00 GB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_a_lack_of_memory_is_recognised_however_it_is_worded(words: str) -> None:
    assert planning.is_out_of_memory(RuntimeError(words))
    assert not planning.is_out_of_memory(ValueError(words))
    assert not planning.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_forecast_is_a_sentence() -> None:
    told = forecast.sentence(gpu(8), planning.plan(gpu(8), REAL, LARGE))
    assert told == ("needs 3.5 GB, 8.2 GB are free; T5 streamed, about 1.6 s more for a new prompt")
    short = planning.plan(gpu(1), REAL, LARGE)
    assert forecast.sentence(gpu(1), short).endswith("it may run out of memory")


@given(
    vram=st.floats(0.5, 100),
    ram=st.floats(1, 256),
    side=st.integers(4, 128).map(lambda n: 16 * n),
    rows=st.integers(1, 8),
    device=st.sampled_from(["cuda", "cpu", "mps"]),
)
def test_every_machine_gets_a_plan(
    vram: float, ram: float, side: int, rows: int, device: Device
) -> None:
    machine = replace(gpu(vram, ram), device=device)
    memory = MemoryRequest(width=side, height=side, rows=rows, approximate=True)
    found = planning.plan(machine, REAL, memory)
    assert all(peak > 0 for peak in found.peaks)
    assert forecast.sentence(machine, found)
    more = replace(machine, vram_free=machine.vram_free * 2, ram_free=machine.ram_free * 2)
    richer = planning.plan(more, REAL, memory)
    # More memory never makes the picture worse.
    assert richer.is_exact or not found.is_exact or not planning.fits(machine, found)


def test_what_a_gpu_lacks_weighs_more_than_main_memory() -> None:
    """Nothing exact fits: T5 is streamed, which may do, and is not put on a GPU without room."""
    scarce = replace(gpu(8), ram_total=16 * 10**9, ram_free=8 * 10**9)
    way = planning.plan(scarce, REAL, replace(LARGE, approximate=False))
    assert (way.text, way.is_exact) == ("streamed", True)
    assert not planning.fits(scarce, way)
    assert "approximately it fits: T5 in 8 bits" in forecast.told(
        scarce, REAL, replace(LARGE, approximate=False)
    )


@pytest.mark.parametrize(
    ("machine", "free", "lacks"),
    [
        (gpu(8, ram=16), 6, True),
        (gpu(8, ram=16), 12, False),
        (processor(16), 3, True),
        (processor(16), 15, False),
    ],
)
def test_main_memory_that_others_use_is_seen(machine: Machine, free: int, lacks: bool) -> None:
    scarce = replace(machine, ram_free=free * GIB)
    memory = replace(LARGE, approximate=False)
    way = planning.plan(scarce, REAL, memory)
    assert planning.is_short_of_main_memory(scarce, way) is lacks
    told = forecast.sentence(scarce, way)
    assert ("of main memory 9.5 GB" in told) is (lacks and machine.device == "cuda")
    assert told.endswith("it may run out of memory") is lacks


@pytest.mark.parametrize("machine", [gpu(2), gpu(8), gpu(80), processor(4), processor(32)])
def test_every_rung_but_the_first_has_words(machine: Machine) -> None:
    first, *others = planning._plans(machine, REAL, LARGE)
    assert forecast.words(first) == ""
    assert all(forecast.words(way) for way in others)


def test_apple_computers_have_one_memory() -> None:
    def mac(ram: int) -> Machine:
        free = int(0.7 * ram * GIB)
        return Machine(
            device="mps", name="Apple GPU", bf16=False, ram_total=ram * GIB, ram_free=free
        )

    way = planning.plan(mac(16), REAL, replace(LARGE, approximate=False))
    assert (way.text, way.text_precision, way.is_exact) == ("cpu", "bfloat16", True)
    assert way.peaks[0] >= 2 * REAL.text
    assert planning.fits(mac(16), way)
    assert planning.plan(mac(64), REAL, LARGE).text == "resident"


def test_little_main_memory_does_not_slow_down_what_the_gpu_can_hold() -> None:
    """T5 fits into 10 of 16 GB, though without room to spare: the GPU keeps its parts."""
    machine = replace(gpu(8, ram=16), ram_free=10 * GIB)
    way = planning.plan(machine, REAL, replace(LARGE, approximate=False))
    assert forecast.words(way) == "T5 streamed"
    assert not planning.is_short_of_main_memory(machine, way)
    assert "of main memory 9.5 GB, 10.7 GB are free" in forecast.sentence(machine, way)
