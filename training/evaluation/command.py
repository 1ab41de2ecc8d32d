"""`train evaluate`: one model, measured on the fixed list of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from pipelines import progress
from pipelines.errors import RequestError
from training.evaluation import judge as judges
from training.evaluation.measure import Report, count, evaluate
from training.evaluation.paint import Painter, drawer
from training.evaluation.prompts import all_prompts
from training.scenes.objects import load_objects


def run(
    model: str,
    source: Path,
    *,
    workspace_models: Path,
    inputs: Path,
    cache: Path,
    limit: int | None,
    report: progress.Report,
    should_stop: progress.ShouldStop,
    keep: Callable[[Image.Image], None] | None = None,
) -> Report:
    """Measures `model` (an id or a model's folder) on the first `limit` prompts, None for all.

    `source` is the npm package of the emoji that the judge learns from; the judge is kept in
    `cache`. `keep` gets each picture. The report's ceiling is what the judge finds in drawn
    pictures that went through the model's own VAE. Stopped early, the report holds what was done.
    Raises StudioError.
    """
    prompts = all_prompts()
    if limit is not None and not 1 <= limit <= len(prompts):
        raise RequestError("limit", f"{limit} prompts: it must be 1 to {len(prompts)}.")
    prompts = prompts[:limit]
    things = load_objects(source)
    painter = Painter(
        model,
        workspace_models=workspace_models,
        inputs=inputs,
        report=report,
        should_stop=should_stop,
    )
    judge = judges.find(things, cache, report, should_stop)
    if judge is None:
        return count([], prompts)
    result = evaluate(painter, prompts, judge, report, should_stop, keep=keep)
    if not result.complete:
        return result
    size = painter.model.default_size
    drawn = drawer(things, prompts, min(size.width, size.height), painter.vae)
    best = evaluate(drawn, prompts, judge, _quiet, should_stop)
    return replace(result, ceiling=best.measures if best.complete else None)


def _quiet(step: progress.Progress) -> None:
    """The ceiling is measured in a few seconds, without a word."""
