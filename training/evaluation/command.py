"""`train evaluate`: one model, measured on the fixed list of prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from pipelines import progress
from pipelines.errors import RequestError, UnknownNameError
from training.evaluation import judge as judges
from training.evaluation.likeness import Looks, looks
from training.evaluation.measure import EvaluationReport, count, evaluate
from training.evaluation.paint import EvaluationPainter, drawer
from training.evaluation.prompts import LISTS, ScenePrompt, all_prompts
from training.scenes.objects import SceneObject, load_objects

OTHER_SEEDS = 100_000


def run(
    model: str,
    source: Path,
    *,
    workspace_models: Path,
    inputs: Path,
    cache: Path,
    limit: int | None,
    lists: Collection[str] = LISTS,
    report: progress.Report,
    should_stop: progress.ShouldStop,
    keep: Callable[[Image.Image], None] | None = None,
) -> EvaluationReport:
    """Measures `model` (an id or a model's folder) on the first `limit` prompts (None for all) of
    `lists`.

    `source` is the npm package of the emoji that the judge learns from; the judge is kept in
    `cache`. `keep` gets each picture. The report's ceiling is what the judge finds in drawn
    pictures that went through the model's own VAE. How pictures look is compared with drawn scenes
    of the same prompts, at the model's own size. Stopped early, the report holds what was done.
    Raises StudioError.
    """
    prompts = tuple(asked for asked in all_prompts() if asked.list in _known(lists))
    if limit is not None and not 1 <= limit <= len(prompts):
        raise RequestError("limit", f"{limit} prompts: it must be 1 to {len(prompts)}.")
    prompts = prompts[:limit]
    things = load_objects(source)
    painter = EvaluationPainter(
        model,
        workspace_models=workspace_models,
        inputs=inputs,
        report=report,
        should_stop=should_stop,
    )
    judge = judges.find(things, cache, report, should_stop)
    if judge is None:
        return count([], prompts)
    painted = Looks()

    def both(picture: Image.Image) -> None:
        painted.add(picture)
        if keep is not None:
            keep(picture)

    result = evaluate(painter, prompts, judge, report, should_stop, keep=both)
    if not result.complete:
        return result
    ceiling, best, drawn = _drawn(painter, things, prompts, judge, should_stop)
    if not ceiling.complete:
        return result
    return replace(
        result,
        ceiling=ceiling.measures,
        likeness=painted.against(drawn),
        best=best.against(drawn),
    )


def _drawn(
    painter: EvaluationPainter,
    things: Sequence[SceneObject],
    prompts: Sequence[ScenePrompt],
    judge: judges.Judge,
    should_stop: progress.ShouldStop,
) -> tuple[EvaluationReport, Looks, Looks]:
    """What can be reached: drawn pictures through the model's VAE, measured, and their looks; and
    the looks of drawn pictures of the same prompts as they are."""
    size = painter.model.default_size
    side = min(size.width, size.height)
    plain, coded = drawer(things, prompts, side), drawer(things, prompts, side, painter.vae)
    best = Looks()
    ceiling = evaluate(coded, prompts, judge, _quiet, should_stop, keep=best.add)
    # Other seeds than those: pictures are not compared with themselves.
    drawn = looks(
        None if should_stop() else plain(asked.prompt, asked.seed + OTHER_SEEDS)
        for asked in prompts
    )
    return ceiling, best, drawn


def _known(lists: Collection[str]) -> Collection[str]:
    """`lists`, if they are. Raises UnknownNameError."""
    for name in lists:
        if name not in LISTS:
            raise UnknownNameError("lists", "list of prompts", name, LISTS)
    return lists


def _quiet(step: progress.Progress) -> None:
    """The ceiling is measured in a few seconds, without a word."""
