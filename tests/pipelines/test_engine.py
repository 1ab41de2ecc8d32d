"""Painting for real, on the model that ships."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import engine as engine_module
from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.denoising import preview, samplers, sampling
from pipelines.engine import Engine
from pipelines.errors import ModelError, OutOfMemoryError, RequestError
from pipelines.memory import planning
from pipelines.memory.measured import Peak
from pipelines.picture_record import Picture
from pipelines.progress import Progress, Stage
from pipelines.request import complete

LIGHT_BLUE = np.array([130, 195, 240])


def paint(engine: Engine, catalog: Catalog, **values: object) -> list[Picture]:
    request = complete({"prompt": "a red apple on a blue background", "seed": 1, **values}, catalog)
    return list(engine.generate(request, lambda progress: None, lambda: False))


def border(image: Image.Image) -> np.ndarray:
    """The mean colour of the outermost 8 pixels."""
    values = np.asarray(image, dtype=float)
    frame = np.ones(values.shape[:2], dtype=bool)
    frame[8:-8, 8:-8] = False
    return values[frame].mean(axis=0)


def roughness(image: Image.Image) -> float:
    """Mean difference of neighbours: about 85 for noise, below 15 for a picture."""
    values = np.asarray(image, dtype=float)
    return float(np.abs(np.diff(values, axis=1)).mean())


@pytest.mark.parametrize(("colour", "channel"), [("blue", 2), ("red", 0), ("green", 1)])
def test_the_background_has_the_colour_that_was_asked_for(
    engine: Engine, catalog: Catalog, colour: str, channel: int
) -> None:
    for picture in paint(
        engine, catalog, prompt=f"a castle on a {colour} background", count=2, model="nano"
    ):
        mean = border(picture.image)
        others = np.delete(mean, channel)
        assert mean[channel] > others.max() + 30, mean
        assert roughness(picture.image) < 15


def test_a_picture_says_what_it_took_and_what_had_been_forecast(
    engine: Engine, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int | None] = []

    @contextmanager
    def measured(device: torch.device, *, before: int | None, every: float) -> Iterator[Peak]:
        begun.append(before)
        yield Peak(bytes=123_456)

    monkeypatch.setattr(engine_module, "measured", measured)
    (picture,) = paint(engine, catalog, model="nano")
    memory_request = planning.MemoryRequest(width=128, height=128)
    assert picture.forecast == engine.plan("nano", memory_request).peak
    assert picture.peak == 123_456
    # Counted from what the process held before its first model, and not from this picture on.
    assert begun == [engine._supply.empty]


def test_an_original_size_is_told_to_nets_that_know_it(engine: Engine, catalog: Catalog) -> None:
    told = [
        paint(engine, catalog, model="tiny-1024", size="64x64", **more)[0].image.tobytes()
        for more in ({}, {"original_size": "64x64"}, {"original_size": "2048x1024"})
    ]
    assert told[0] == told[1] != told[2]
    with pytest.raises(RequestError, match="size conditions"):
        paint(engine, catalog, model="tiny", original_size="64x64")


@pytest.mark.parametrize(
    "sampler", [row.id for row in samplers.SAMPLERS.values() if row.distilled != "dmd"]
)
def test_every_sampler_paints_a_picture(engine: Engine, catalog: Catalog, sampler: str) -> None:
    row = samplers.find(sampler)
    steps = min(row.steps, 50)
    (picture,) = paint(engine, catalog, model="nano", sampler=sampler, steps=steps)
    mean = border(picture.image)
    assert mean[2] > mean[0] + 20, mean
    assert roughness(picture.image) < 20


def test_one_step_samplers_finish(engine: Engine, catalog: Catalog) -> None:
    for sampler in ("dmd", "lcm"):
        (picture,) = paint(engine, catalog, model="nano", sampler=sampler, steps=1)
        assert picture.image.size == (128, 128)


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_the_fewest_steps_of_each_sampler_work(
    engine: Engine, catalog: Catalog, sampler: str
) -> None:
    steps = samplers.find(sampler).min_steps
    assert paint(engine, catalog, model="tiny", sampler=sampler, steps=steps)


def test_sa_solver_options_reach_the_solver(engine: Engine, catalog: Catalog) -> None:
    def pixels(**options: object) -> np.ndarray:
        (picture,) = paint(engine, catalog, model="nano", sampler="sa-solver", steps=10, **options)
        return np.asarray(picture.image)

    standard = pixels()
    assert np.array_equal(standard, pixels())
    for options in ({"eta": 0.0}, {"predictor_order": 3}, {"corrector_order": 1}):
        assert not np.array_equal(standard, pixels(**options))


def test_seeds_and_settings_change_the_picture_and_repeating_does_not(
    engine: Engine, catalog: Catalog
) -> None:
    def pixels(**values: object) -> bytes:
        (picture,) = paint(engine, catalog, **{"model": "nano", "steps": 6, **values})
        return picture.image.tobytes()

    first = pixels()
    assert pixels() == first
    others = [
        pixels(seed=2),
        pixels(steps=7),
        pixels(guidance=0),
        pixels(prompt="a dog face on a blue background"),
        pixels(negative="blue"),
        pixels(size="160x96"),
        pixels(style="Pixel Art"),
    ]
    assert len({first, *others}) == len(others) + 1


def test_sizes_are_painted_as_asked(engine: Engine, catalog: Catalog) -> None:
    (picture,) = paint(engine, catalog, model="tiny", size="96x64", steps=2)
    assert picture.image.size == (96, 64)


def test_progress_names_every_stage_and_shows_a_preview_each_step(
    engine: Engine, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each, where they cost nothing.
    monkeypatch.setattr(preview, "_SHARE", float("inf"))
    engine.unload()
    request = complete({"prompt": "a castle", "steps": 5, "count": 2, "model": "nano"}, catalog)
    seen: list[Progress] = []
    pictures_done = list(engine.generate(request, seen.append, lambda: False))
    assert len(pictures_done) == 2
    stages = [progress.stage for progress in seen]
    assert stages[:2] == [Stage.LOADING, Stage.ENCODING]
    for number in (1, 2):
        mine = [p for p in seen if p.picture == number and p.stage is Stage.DENOISING]
        assert [p.done for p in mine] == [0, 1, 2, 3, 4, 5]
        for progress in mine[1:]:
            assert progress.preview is not None
            assert Image.open(io.BytesIO(progress.preview)).format == "JPEG"
            assert progress.seconds_left is not None
    assert stages.count(Stage.DECODING) == 2
    second = next(progress for progress in seen if progress.done == 2)
    assert second.sentence().startswith("Picture 1 of 2: step 2 of 5")


def test_the_preview_looks_like_the_picture(engine: Engine, catalog: Catalog) -> None:
    request = complete(
        {"prompt": "a red apple on a yellow background", "seed": 3, "model": "nano"}, catalog
    )
    previews: list[bytes] = []

    def report(progress: Progress) -> None:
        if progress.preview:
            previews.append(progress.preview)

    (picture,) = engine.generate(request, report, lambda: False)
    last = np.asarray(Image.open(io.BytesIO(previews[-1])).convert("RGB"), dtype=float)
    painted = np.asarray(picture.image, dtype=float)
    assert last.shape == painted.shape
    correlation = np.corrcoef(last.ravel(), painted.ravel())[0, 1]
    assert correlation > 0.8


def test_stopping_takes_effect_at_the_next_step_and_keeps_finished_pictures(
    engine: Engine, catalog: Catalog
) -> None:
    request = complete({"prompt": "a castle", "steps": 8, "count": 4, "model": "nano"}, catalog)
    seen: list[Progress] = []
    done = list(
        engine.generate(
            request, seen.append, lambda: bool(seen) and (seen[-1].picture, seen[-1].done) >= (2, 3)
        )
    )
    assert [picture.request.seed for picture in done] == [request.seed]
    assert (seen[-1].picture, seen[-1].done) == (2, 3)


def test_a_start_picture_guides_colour_and_layout(
    engine: Engine, catalog: Catalog, inputs: Path, tmp_path: Path
) -> None:
    ground = Image.new("RGB", (200, 150), (250, 220, 40))
    ground.paste((200, 30, 40), (60, 40, 140, 110))
    ground.save(tmp_path / "start.png")
    init = pictures.keep(tmp_path / "start.png", inputs)
    for row in samplers.SAMPLERS.values():
        if not row.from_picture or row.distilled:
            continue
        steps = min(row.steps, 20)
        (near,) = paint(
            engine,
            catalog,
            model="nano",
            prompt="a red apple on a yellow background",
            sampler=row.id,
            steps=steps,
            init=init,
            strength=0.3,
        )
        mean = border(near.image)
        assert mean[0] > 150, row.id
        assert mean[1] > 120, row.id
        assert mean[2] < 130, row.id
        (one,) = paint(
            engine, catalog, model="nano", sampler=row.id, steps=10, init=init, strength=0.01
        )
        assert roughness(one.image) < 20, row.id


def test_a_start_picture_that_is_gone_is_a_sentence(engine: Engine, catalog: Catalog) -> None:
    with pytest.raises(RequestError, match="not there any more"):
        paint(engine, catalog, model="nano", init="0123456789abcdef.png")


def test_numbers_that_are_no_picture_are_said(engine: Engine, catalog: Catalog) -> None:
    parts = engine.load("tiny", lambda progress: None)
    bias = parts.transformer.net.proj_out.bias
    kept = bias.clone()
    try:
        with torch.no_grad():
            bias.fill_(float("nan"))
        with pytest.raises(ModelError, match="no picture"):
            paint(engine, catalog, model="tiny", steps=2)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert paint(engine, catalog, model="tiny", steps=2)


def test_lack_of_memory_is_a_sentence_and_the_next_job_works(
    engine: Engine, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    )
    for error in errors:

        def full(*args: object, error: Exception = error, **kwargs: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(sampling, "denoise", full)
            with pytest.raises(OutOfMemoryError, match="not enough memory"):
                paint(engine, catalog, model="nano", steps=2)
    assert paint(engine, catalog, model="nano", steps=2)


def test_the_preview_of_an_overshooting_prediction_is_not_saturated(engine: Engine) -> None:
    """Guidance makes the first predictions several times too wide."""
    preview = engine.load("nano", lambda progress: None).preview
    wide = 8 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    values = np.asarray(Image.open(io.BytesIO(preview.jpeg(wide))).convert("RGB"))
    assert ((values < 3) | (values > 252)).mean() < 0.4


def test_loaded_weights_are_no_inference_tensors(engine: Engine) -> None:
    """Loading happens under inference mode; changes in place must still be counted."""
    engine.unload()
    with torch.inference_mode():
        loaded = engine.load("tiny", lambda progress: None)
        weights = [*loaded.transformer.net.parameters(), *loaded.vae.parameters()]
    assert not any(weight.is_inference() for weight in weights)
