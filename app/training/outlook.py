"""What a training will need of this computer, in words, before it is begun."""

from __future__ import annotations

from collections.abc import Iterable

from app.hardware import Hardware
from app.training import orders
from app.training.preparation import Preparation
from app.training.training_jobs import TrainingRun
from pipelines import sizes
from pipelines.catalog import Catalog
from pipelines.errors import StudioError
from pipelines.memory.planning import CONTEXT
from pipelines.progress import duration, plain_size
from pipelines.sizes import Size
from training import predictions
from training.config import RunConfig


def sentence(
    made: Preparation, catalog: Catalog, hardware: Hardware, runs: Iterable[TrainingRun]
) -> str:
    """Memory and time, as far as they are known; "" while the recipe cannot be."""
    if made.kind == "scratch":
        return "How much memory and time it takes is said by each stage after its first step."
    try:
        config = orders.draft(made).stages[-1]
        model = catalog.find(made.base)
        size = _size(config, model.bins)
        shape = predictions.shape_of(model, config.lora)
    except StudioError:
        return ""
    machine = hardware.machine
    gpu = machine is not None and machine.device == "cuda"
    needed = predictions.predicted(shape, config, size, gpu=gpu)["peak"] + (CONTEXT if gpu else 0)
    free = machine.vram_free if machine is not None and gpu else hardware.ram_free
    words = f"Needs about {plain_size(needed)} of {'GPU ' if gpu else ''}memory"
    if free:
        words += f"; {plain_size(free)} are free"
    if free and needed > free:
        words += ". It may run out of memory: take a smaller batch, or gradient checkpointing"
    return f"{words}. {_time(config, made.base, runs)}"


def _size(config: RunConfig, table: str) -> Size:
    """The squarest size that is trained on."""
    if config.data.side:
        return Size(config.data.side, config.data.side)
    return sizes.nearest(Size(1, 1), sizes.bins(config.data.bins or table))


def _time(config: RunConfig, base: str, runs: Iterable[TrainingRun]) -> str:
    """The time, at the pace of the last run of the same method and model on this computer."""
    for run in runs:
        stage = run.facts.stage
        if stage is None or stage.config is None or not stage.pictures_per_second:
            continue
        alike = (stage.config.method, stage.config.base.model, stage.config.gradient_checkpointing)
        if alike == (config.method, base, config.gradient_checkpointing):
            seconds = config.steps * config.pictures_per_update / stage.pictures_per_second
            return f"It takes about {duration(seconds)}, at the pace of “{run.facts.name}”."
    return "How long it takes is said after its first step."
