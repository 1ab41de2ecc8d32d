"""The whole engine on a GPU that is not there: devices, waits, memory and every plan."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.denoising import samplers
from pipelines.engine import Engine
from pipelines.memory import model_numbers, planning
from pipelines.memory.planning import CONTEXT, GIB, DevicePlan, Machine, MemoryRequest
from pipelines.models.loaded import Loaded
from pipelines.picture_job import Picture
from pipelines.progress import Progress, Stage
from pipelines.request import complete
from tests import pretend_gpu
from tests.pretend_gpu import PretendedGpu

MACHINE = Machine(
    device="cuda",
    name="pretended",
    bf16=True,
    vram_total=8 * GIB,
    vram_free=8 * GIB,
    ram_total=32 * GIB,
    ram_free=32 * GIB,
)
# Copies between the devices that a step may make: the preview, noise from the processor's
# generator, and what diffusers' UniPC reads of its own schedule.
_MAY_WAIT = ("preview.py", "torch_utils.py", "scheduling_unipc_multistep.py")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    gc.collect()
    with pretend_gpu.pretend(monkeypatch) as found:
        yield found


class Steps:
    """Keeps what waited between the first step and the last."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu
        self.waits: list[str] = []

    def __call__(self, progress: Progress) -> None:
        if progress.stage is Stage.DENOISING:
            if progress.done:
                self.waits += self._gpu.waits
            self._gpu.waits.clear()


def paint(
    engine: Engine, catalog: Catalog, report: Any = lambda progress: None, **values: object
) -> list[Picture]:
    wanted = {"prompt": "a red apple", "model": "tiny", "steps": 3, "seed": 1, "size": "64x64"}
    request = complete({**wanted, **values}, catalog)
    return list(engine.generate(request, report, lambda: False))


class TestOneEngine:
    """Every sampler after the other, as in a studio: one engine for each model."""

    @pytest.fixture(scope="class", params=["tiny", "tiny-1024"])
    def sampling(
        self, request: pytest.FixtureRequest, catalog: Catalog, tmp_path_factory: Any
    ) -> Iterator[tuple[PretendedGpu, Engine, str]]:
        with pytest.MonkeyPatch.context() as patch, pretend_gpu.pretend(patch) as gpu:
            inputs = tmp_path_factory.mktemp("inputs")
            yield gpu, Engine(catalog, inputs=inputs, machine=MACHINE), request.param

    @pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
    def test_every_sampler_paints_and_none_waits(
        self, sampling: tuple[PretendedGpu, Engine, str], catalog: Catalog, sampler: str
    ) -> None:
        gpu, engine, model = sampling
        row = samplers.find(sampler)
        for guidance in (1.0, 4.0) if row.guided else (1.0,):
            steps = Steps(gpu)
            wanted = {"sampler": sampler, "model": model, "guidance": guidance}
            paint(engine, catalog, steps, **wanted, steps=row.steps if row.timesteps else 4)
            assert [line for line in steps.waits if not line.startswith(_MAY_WAIT)] == []


def test_a_wait_in_the_loop_is_seen(gpu: PretendedGpu) -> None:
    values = torch.ones(3, device="cuda")
    assert values.device.type == "cuda"
    gpu.waits.clear()
    assert float(values.sum()) == 3
    assert values.cpu().tolist() == [1, 1, 1]
    assert len(gpu.waits) == 2
    with pytest.raises(RuntimeError, match="two devices"):
        values + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        values.numpy()


def test_a_start_picture_comes_to_the_gpu(
    gpu: PretendedGpu, catalog: Catalog, tmp_path: Path
) -> None:
    Image.new("RGB", (90, 70), "red").save(tmp_path / "start.png")
    inputs = tmp_path / "inputs"
    name = pictures.keep(tmp_path / "start.png", inputs)
    engine = Engine(catalog, inputs=inputs, machine=MACHINE)
    assert paint(engine, catalog, init=name, strength=0.5, steps=4)


def planned(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Every plan gets `changes`."""
    plan = planning.plan
    monkeypatch.setattr(planning, "plan", lambda *given: replace(plan(*given), **changes))


ALONE = {"keeps_text": False, "decodes_alone": True}
EXACT: dict[str, dict[str, Any]] = {
    "freed": {"keeps_text": False},
    "streamed": {"keeps_text": False, "text": "streamed"},
    "processor": {"keeps_text": False, "text": "cpu"},
    "alone": ALONE,
    "one by one": {**ALONE, "one_by_one": True},
    "streamed, one by one": {**ALONE, "one_by_one": True, "text": "streamed"},
}


@pytest.fixture(scope="module")
def expected(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Two pictures of a GPU that has room for everything."""
    engine = Engine(catalog, inputs=tmp_path_factory.mktemp("expected"), machine=MACHINE)
    with pytest.MonkeyPatch.context() as patch, pretend_gpu.pretend(patch):
        return paint(engine, catalog, count=2)


@pytest.mark.parametrize("way", list(EXACT))
def test_every_exact_way_paints_the_same(
    expected: list[Picture],
    gpu: PretendedGpu,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    way: str,
) -> None:
    planned(monkeypatch, **EXACT[way])
    found = paint(Engine(catalog, inputs=tmp_path, machine=MACHINE), catalog, count=2)
    assert [one.image.tobytes() for one in found] == [one.image.tobytes() for one in expected]


def test_gpus_without_bf16_paint_in_fp16(
    gpu: PretendedGpu, catalog: Catalog, tmp_path: Path
) -> None:
    engine = Engine(catalog, inputs=tmp_path, machine=replace(MACHINE, bf16=False))
    assert paint(engine, catalog, size="128x64")
    assert engine._loaded is not None
    assert engine._loaded.transformer.net.dtype == torch.float16


@pytest.mark.parametrize("way", ["", *EXACT])
def test_the_peak_is_what_was_forecast(
    gpu: PretendedGpu, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """On the small model, of which the activations are a third at 256 px."""
    about = model_numbers.of(catalog.find("nano"))
    memory = MemoryRequest(width=256, height=256)
    # The numbers of a plan in which this way was chosen.
    chosen = EXACT.get(way, {"keeps_text": True})
    plans = (planning._plan(MACHINE, about, memory, **{"text": "resident", **chosen}),)
    monkeypatch.setattr(planning, "plan", lambda *_: plans[0])
    engine = Engine(catalog, inputs=tmp_path, machine=MACHINE)
    (picture,) = paint(engine, catalog, model="nano", size="256x256", guidance=4, steps=2)
    assert picture.forecast == plans[0].peak
    measured = picture.peak - CONTEXT
    assert measured == pytest.approx(plans[0].peak - CONTEXT, rel=0.15)


def test_a_full_gpu_goes_down_the_ladder(
    gpu: PretendedGpu, catalog: Catalog, tmp_path: Path
) -> None:
    """The GPU said that it had more than it has."""
    wanted = {"model": "nano", "size": "256x256", "guidance": 4, "steps": 2}
    (expected,) = paint(Engine(catalog, inputs=tmp_path, machine=MACHINE), catalog, **wanted)
    gc.collect()
    about = model_numbers.of(catalog.find("nano"))
    ways: list[DevicePlan] = list(
        planning._plans(MACHINE, about, MemoryRequest(width=256, height=256))
    )
    alone = next(way for way in ways if way.decodes_alone)
    assert alone.peak < ways[0].peak
    gpu.memory = 1.15 * (alone.peak - CONTEXT)
    (picture,) = paint(Engine(catalog, inputs=tmp_path, machine=MACHINE), catalog, **wanted)
    assert picture.image.tobytes() == expected.image.tobytes()
    assert picture.notes
    assert "transformer set aside" in picture.notes[-1]


def test_every_exact_rung_of_the_text_encoder_is_tried_on_a_gpu(
    expected: list[Picture],
    gpu: PretendedGpu,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    about, memory = model_numbers.of(catalog.find("tiny")), MemoryRequest(width=64, height=64)
    way: DevicePlan | None = planning.plan(MACHINE, about, memory)
    rungs: list[DevicePlan] = []
    while way is not None:
        rungs.append(way)
        way = planning.cheaper(MACHINE, about, memory, way, "text")
    assert [rung.text for rung in rungs][:3] == ["resident", "streamed", "cpu"]
    before, tried = Loaded.before_text, []

    def check(loaded: Loaded, plan: DevicePlan) -> None:
        tried.append(plan)
        if plan.peaks[0] > rungs[-1].peaks[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        before(loaded, plan)

    monkeypatch.setattr(Loaded, "before_text", check)
    (picture,) = paint(Engine(catalog, inputs=tmp_path, machine=MACHINE), catalog)
    assert tried == rungs
    assert picture.image.tobytes() == expected[0].image.tobytes()
