"""Memory that runs out: the same job goes down the ladder, rung by rung, and says so."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.hardware import Forecasts
from pipelines import engine as engines
from pipelines.catalog import Catalog
from pipelines.denoising import latents
from pipelines.engine import Engine
from pipelines.errors import OutOfMemoryError
from pipelines.memory import forecast, model_numbers, planning
from pipelines.memory.available_memory import Supply
from pipelines.memory.planning import DevicePlan, Machine, MemoryRequest
from pipelines.models.loaded import Loaded
from pipelines.picture_record import Picture
from pipelines.progress import Progress
from pipelines.request import GenerationRequest, complete
from pipelines.text import text_loader

CPU = Machine(device="cpu", name="CPU", bf16=False)


def request(catalog: Catalog, **values: object) -> GenerationRequest:
    """Something that may be painted in every way."""
    wanted = {"prompt": "a red apple", "model": "tiny", "steps": 2, "seed": 4, "size": "256x192"}
    wanted["approximate"] = True
    return complete({**wanted, **values}, catalog)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles for pictures of 256 px."""
    monkeypatch.setattr(planning, "_TILES", (128, 64))


class Budget:
    """An allocator that refuses whatever a plan needs beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tried: list[DevicePlan] = []

    def decode(self, way: DevicePlan) -> None:
        self.tried.append(way)
        if way.peaks[2] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Budget]:
    def limited(limit: int) -> Budget:
        found = Budget(limit)
        before = Loaded.before_pixels

        def check(loaded: Loaded, way: DevicePlan) -> None:
            found.decode(way)
            before(loaded, way)

        monkeypatch.setattr(Loaded, "before_pixels", check)
        return found

    return limited


def paint(engine: Engine, wanted: GenerationRequest) -> tuple[list[Picture], list[str]]:
    told: list[str] = []

    def report(progress: Progress) -> None:
        if progress.note:
            told.append(progress.note)

    return list(engine.generate(wanted, report, lambda: False)), told


def no_weights(engine: Engine) -> bool:
    """Nothing was read but configurations."""
    loaded = engine._loaded
    return loaded is None or (loaded._transformer is loaded._vae and loaded.text._encoder is None)


def ladder(
    catalog: Catalog, wanted: GenerationRequest, stage: planning.PlanStage = "decoding"
) -> list[DevicePlan]:
    sizes = model_numbers.of(catalog.find(wanted.model))
    memory = MemoryRequest(width=wanted.width, height=wanted.height, approximate=wanted.approximate)
    way: DevicePlan | None = planning.plan(CPU, sizes, memory)
    found = []
    while way is not None:
        found.append(way)
        way = planning.cheaper(CPU, sizes, memory, way, stage)
    return found


def test_every_rung_is_tried_and_each_is_told(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    wanted = request(catalog)
    rungs = ladder(catalog, wanted)
    assert len(rungs) >= 4
    exact = [rung for rung in rungs if rung.is_exact]
    assert exact == rungs[: len(exact)]
    (free,), _ = paint(Engine(catalog, inputs=tmp_path, machine=CPU), wanted)
    assert free.notes == ()
    # Where memory suffices for the last exact rung, and only for the last one of all.
    for number in (len(exact) - 1, len(rungs) - 1):
        watched = budget(rungs[number].peaks[2])
        pictures, told = paint(Engine(catalog, inputs=tmp_path, machine=CPU), wanted)
        assert watched.tried == rungs[: number + 1]
        assert list(pictures[0].notes) == told
        assert len(told) == number
        assert all(len(note) > len("Memory ran out, so it was painted again: .") for note in told)
        if rungs[number].is_exact:
            assert pictures[0].image.tobytes() == free.image.tobytes()


def test_every_rung_of_the_text_encoder_is_tried(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to 4 bits, which are really computed; each by a T5 that is loaded anew."""
    wanted = request(catalog, model="nano", size="128x128")
    rungs = ladder(catalog, wanted, "text")
    assert [rung.text for rung in rungs][-2:] == ["int8", "nf4"]
    tried: list[DevicePlan] = []
    before = Loaded.before_text

    def check(loaded: Loaded, way: DevicePlan) -> None:
        tried.append(way)
        if way.peaks[0] > rungs[-1].peaks[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        before(loaded, way)

    monkeypatch.setattr(Loaded, "before_text", check)
    (picture,), told = paint(Engine(catalog, inputs=tmp_path, machine=CPU), wanted)
    assert tried == rungs
    assert len(told) == len(rungs) - 1
    assert "T5 in 4 bits" in picture.notes[-1]


def test_every_exact_rung_paints_the_same(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(catalog)
    exact = [rung for rung in ladder(catalog, wanted) if rung.is_exact]
    assert len(exact) >= 2
    seen = set()
    for rung in exact:
        monkeypatch.setattr(engines.planning, "plan", lambda *_, rung=rung: rung)
        (picture,), told = paint(Engine(catalog, inputs=tmp_path, machine=CPU), wanted)
        assert told == []
        seen.add(picture.image.tobytes())
    assert len(seen) == 1


def test_the_picture_is_never_changed_without_asking(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    allowed = ladder(catalog, request(catalog))
    exact = [rung for rung in allowed if rung.is_exact]
    assert ladder(catalog, request(catalog, approximate=False)) == exact
    rough = next(rung for rung in allowed if not rung.is_exact)
    watched = budget(rough.peaks[2])
    engine = Engine(catalog, inputs=tmp_path, machine=CPU)
    wanted = request(catalog, approximate=False)
    for _ in range(2):
        with pytest.raises(OutOfMemoryError, match="a little changed") as caught:
            paint(engine, wanted)
        assert "--approximate" in caught.value.way_out
    assert all(rung.is_exact for rung in watched.tried)
    assert len(paint(engine, request(catalog))[0]) == 1


def test_a_processor_is_not_filled_to_find_out(catalog: Catalog, tmp_path: Path) -> None:
    exact = [rung for rung in ladder(catalog, request(catalog)) if rung.is_exact]
    small = replace(CPU, ram_free=min(rung.peak for rung in exact) - 1)
    engine = Engine(catalog, inputs=tmp_path, machine=small)
    with pytest.raises(OutOfMemoryError, match="a little changed"):
        paint(engine, request(catalog, approximate=False))
    assert no_weights(engine)
    assert len(paint(engine, request(catalog))[0]) == 1


def test_a_processor_without_memory_is_a_sentence_with_numbers(
    catalog: Catalog, tmp_path: Path
) -> None:
    smallest = min(rung.peak for rung in ladder(catalog, request(catalog)))
    engine = Engine(catalog, inputs=tmp_path, machine=replace(CPU, ram_free=smallest // 4))
    for approximate in (False, True):
        with pytest.raises(OutOfMemoryError, match=r"needs [\d.]+ GB, [\d.]+ GB are free"):
            paint(engine, request(catalog, approximate=approximate))
    assert no_weights(engine)


def test_what_is_free_is_looked_at_before_every_picture(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a model is loaded, whose own memory counts as free."""
    engine = Engine(catalog, inputs=tmp_path)
    free = 10**12
    monkeypatch.setattr(
        "pipelines.memory.probe.machine", lambda: replace(CPU, ram_total=10**13, ram_free=free)
    )
    paint(engine, request(catalog))
    assert engine.machine.ram_free >= free
    free = 1000
    monkeypatch.setattr("pipelines.memory.ram.private", lambda: engine._supply._private)
    with pytest.raises(OutOfMemoryError, match="not enough memory"):
        paint(engine, request(catalog))


def test_a_known_prompt_needs_no_memory_for_the_text_encoder(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is most of what a large model needs on a processor."""
    way = planning.plan(
        CPU, model_numbers.of(catalog.find("tiny")), MemoryRequest(width=256, height=192)
    )
    large = replace(
        way,
        keeps_text=False,
        text_precision="bfloat16",
        text_ram=10**10,
        peaks=(10**10, 10**8, 10**8),
    )
    monkeypatch.setattr(engines.planning, "plan", lambda *_: large)
    cache = tmp_path / "cache"
    wanted = request(catalog, approximate=False)
    paint(Engine(catalog, inputs=tmp_path, cache=cache, machine=CPU), wanted)
    engine = Engine(catalog, inputs=tmp_path, cache=cache, machine=replace(CPU, ram_free=10**9))
    assert paint(engine, request(catalog, approximate=False, seed=5))[0]
    with pytest.raises(OutOfMemoryError):
        paint(engine, request(catalog, approximate=False, prompt="another one"))


def test_weights_that_stay_in_their_file_are_not_refused(catalog: Catalog) -> None:
    """A T5 in float32 on a processor that computes in float32: slow, and possible."""
    way = planning.plan(
        CPU, model_numbers.of(catalog.find("tiny")), MemoryRequest(width=64, height=64)
    )
    assert way.text_precision == "float32"
    assert text_loader.maps(catalog.find("tiny"), way)
    assert not text_loader.maps(catalog.find("tiny"), replace(way, text_precision="bfloat16"))
    assert not text_loader.maps(catalog.find("tiny"), replace(way, text="int8"))
    assert not text_loader.maps(catalog.find("tiny"), replace(way, device="cuda"))
    way = replace(way, keeps_text=False, text_ram=1000, peaks=(1500, 800, 900))
    small = replace(CPU, ram_free=1000)
    assert planning.is_short_of_main_memory(small, way)
    assert not planning.is_short_of_main_memory(small, way, maps_text=True)
    assert not planning.is_short_of_main_memory(small, way, reads_text=False)
    assert not planning.is_short_of_main_memory(replace(small, swap_free=500), way)
    assert planning.is_short_of_main_memory(replace(small, ram_free=899), way, maps_text=True)


def test_a_probed_machine_begins_where_memory_sufficed(
    catalog: Catalog,
    tmp_path: Path,
    budget: Callable[[int], Budget],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two rungs down: what is remembered is what was free, not what was left of it."""
    monkeypatch.setattr(
        "pipelines.memory.probe.machine", lambda: replace(CPU, ram_total=10**13, ram_free=10**12)
    )
    wanted = request(catalog)
    rungs = ladder(catalog, wanted)
    watched = budget(rungs[2].peaks[2])
    engine = Engine(catalog, inputs=tmp_path)
    assert len(paint(engine, wanted)[0][0].notes) == 2
    watched.tried.clear()
    for _ in range(2):
        assert paint(engine, wanted)[1] == []
    assert watched.tried == [rungs[2], rungs[2]]


def test_a_gpu_does_not_pay_for_main_memory_that_was_short() -> None:
    gpu = Machine(device="cuda", name="GPU", bf16=True, vram_free=8 * 2**30)
    supply = Supply(gpu)
    way = DevicePlan(device="cuda", precision="bfloat16", peaks=(1, 2, 3))
    supply.failed("a", way, "main memory")
    assert supply.of("a") == gpu
    supply.failed("a", way, "decoding")
    assert supply.of("a").vram_free == 2
    assert supply.of("another") == gpu


def test_a_gpu_that_ends_gives_way_to_the_processor(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = replace(CPU, device="cuda", name="GPU")
    found = [gpu, CPU]
    monkeypatch.setattr(
        "pipelines.memory.probe.machine", lambda: found.pop(0) if found[1:] else found[0]
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 10**15)
    freed: list[str] = []
    monkeypatch.setattr(engines, "free", lambda device: freed.append(device.type))
    engine = Engine(catalog, inputs=tmp_path)
    assert engine._supply.empty == 10**15
    (picture,), _ = paint(engine, request(catalog))
    assert engine.machine.device == "cpu"
    assert freed[0] == "cuda"
    assert engine._supply.empty < 10**15
    assert picture.peak < 10**12


def test_memory_that_came_back_is_used_again(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    wanted = request(catalog)
    rungs = ladder(catalog, wanted)
    engine = Engine(catalog, inputs=tmp_path, machine=replace(CPU, ram_free=10**12))
    watched = budget(rungs[1].peaks[2])
    assert len(paint(engine, wanted)[0][0].notes) == 1
    watched.limit = 10**15
    watched.tried.clear()
    paint(engine, wanted)
    engine._supply.machine = replace(engine.machine, ram_free=2 * 10**12)
    paint(engine, wanted)
    assert watched.tried == [rungs[1], rungs[0]]


def test_the_forecast_says_what_an_approximation_would_need(catalog: Catalog) -> None:
    model = catalog.find("tiny")
    sizes, memory = (
        model_numbers.of(model),
        MemoryRequest(width=256, height=192, approximate=False),
    )
    exact = [rung for rung in ladder(catalog, request(catalog)) if rung.is_exact]
    small = replace(CPU, ram_free=min(rung.peak for rung in exact) - 1)
    rough = forecast.approximation(small, sizes, memory)
    assert rough is not None
    told = Forecasts().of(small, model, memory)
    assert "it may run out of memory; approximately it fits: " + forecast.words(rough) in told
    assert forecast.approximation(CPU, sizes, memory) is None
    assert forecast.approximation(small, sizes, replace(memory, approximate=True)) is None
    assert "approximately" not in Forecasts().of(small, model, replace(memory, approximate=True))


def test_nothing_is_held_when_the_next_rung_begins(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    """What failed must be gone before the cheaper way is loaded, also after the last one."""
    engine = Engine(catalog, inputs=tmp_path, machine=CPU)
    held: list[weakref.ref[object]] = []
    before = engine.unload

    def unload() -> None:
        if engine._loaded is not None:
            held.append(weakref.ref(engine._loaded))
        before()
        assert [ref() for ref in held] == [None] * len(held)

    engine.unload = unload  # type: ignore[method-assign]
    engine.load("tiny", lambda progress: None)
    held.clear()
    budget(0)
    with pytest.raises(OutOfMemoryError):
        paint(engine, request(catalog))
    assert len(held) >= 4


def test_the_next_job_begins_where_memory_sufficed(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    wanted = request(catalog)
    rungs = ladder(catalog, wanted)
    watched = budget(rungs[1].peaks[2])
    engine = Engine(catalog, inputs=tmp_path, machine=CPU)
    assert len(paint(engine, wanted)[0][0].notes) == 1
    watched.tried.clear()
    for _ in range(2):
        pictures, told = paint(engine, wanted)
        assert (len(pictures), told) == (1, [])
    assert len(watched.tried) == 2


def test_below_the_last_rung_is_a_sentence_and_the_next_job_works(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    engine = Engine(catalog, inputs=tmp_path, machine=CPU)
    watched = budget(0)
    with pytest.raises(OutOfMemoryError, match="not enough memory"):
        paint(engine, request(catalog))
    assert len(watched.tried) == len(ladder(catalog, request(catalog)))
    watched.limit = 10**15
    assert len(paint(engine, request(catalog))[0]) == 1


def test_the_pictures_before_are_kept_and_the_rest_go_on(
    catalog: Catalog, tmp_path: Path, budget: Callable[[int], Budget]
) -> None:
    wanted = request(catalog, count=3)
    engine = Engine(catalog, inputs=tmp_path, machine=CPU)
    expected, _ = paint(engine, wanted)
    watched = budget(10**15)
    made = []
    for picture in engine.generate(wanted, lambda progress: None, lambda: False):
        made.append(picture)
        watched.limit = ladder(catalog, wanted)[1].peaks[2]
    assert [len(picture.notes) for picture in made] == [0, 1, 1]
    for mine, theirs in zip(made, expected, strict=True):
        assert mine.image.tobytes() == theirs.image.tobytes()


def test_tiles_are_the_picture_but_for_their_seams(catalog: Catalog, engine: Engine) -> None:
    vae = engine.load("nano", lambda progress: None).vae
    start = torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = latents.decode(vae, start)
        tiled = latents.decode(vae, start, tile=128)
        again = latents.decode(vae, start)
    assert tiled.shape == whole.shape
    assert torch.equal(whole, again)
    difference = (tiled - whole).abs().mean()
    assert 0 < difference < 0.5 * whole.std()


@pytest.mark.parametrize("text", ["streamed", "cpu", "int8", "nf4"])
def test_every_way_to_run_the_text_encoder_paints(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Any
) -> None:
    """On a processor; what is quantised is kept and found again, what is exact changes nothing."""
    plan = planning.plan

    def chosen(machine: Machine, sizes: planning.Numbers, memory: MemoryRequest) -> DevicePlan:
        # The reference is T5 in bf16, as these ways compute.
        return replace(
            plan(machine, sizes, memory),
            text=text,
            text_precision="bfloat16",
            keeps_text=False,
        )

    wanted = request(catalog, model="nano")
    monkeypatch.setattr(engines.planning, "plan", chosen)
    first = Engine(catalog, inputs=tmp_path, cache=tmp_path / "cache", machine=CPU)
    (picture,), _ = paint(first, wanted)
    if text in ("int8", "nf4"):
        (kept,) = (tmp_path / "cache" / "encoders").iterdir()
        assert kept.name.startswith(text)
        for file in (tmp_path / "cache" / "prompts").iterdir():
            file.unlink()
        (again,), _ = paint(
            Engine(catalog, inputs=tmp_path, cache=tmp_path / "cache", machine=CPU), wanted
        )
        assert again.image.tobytes() == picture.image.tobytes()
        return
    monkeypatch.setattr(
        engines.planning,
        "plan",
        lambda machine, sizes, memory: replace(
            plan(machine, sizes, memory), text="resident", text_precision="bfloat16"
        ),
    )
    (resident,), _ = paint(Engine(catalog, inputs=tmp_path, machine=CPU), wanted)
    assert np.array_equal(np.asarray(resident.image), np.asarray(picture.image))
