"""A training from its first stage to where its result can be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.catalog import Catalog
from pipelines.progress import Report, ShouldStop
from training import publish, stages
from training.config import RunConfig, TrainingRecipe
from training.loop.run_state import RunEnd
from training.run import is_first_process


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How it ended. `made` is the model's folder or the LoRA's file; None where the recipe does
    not publish, where it was stopped, where one stage alone was asked for, and in all processes but
    the first."""

    end: RunEnd
    made: Path | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether the same call goes on from a checkpoint."""
        return self.end.reason == "stopped"


def train(
    recipe: TrainingRecipe,
    *,
    root: Path,
    data: Path,
    models: Path,
    loras: Path,
    catalog: Catalog,
    report: Callable[[RunConfig], Report],
    should_stop: ShouldStop,
    tell: Callable[[str], None],
    only: str | None = None,
) -> Trained:
    """Walks the stages of `recipe` below `root` and publishes into `models` or `loras`.

    The rest is as `stages.walk` has it. A name that is taken is said before anything is computed.
    Raises StudioError.
    """

    def begins(config: RunConfig, digest: str) -> None:
        if only is None:
            publish.check(recipe, config, digest, models=models, loras=loras)

    end = stages.walk(
        recipe,
        root=root,
        data=data,
        report=report,
        should_stop=should_stop,
        tell=tell,
        only=only,
        catalog=catalog,
        begins=begins,
    )
    is_whole = end.reason != "stopped" and only is None
    if not is_whole or recipe.publish is None or not is_first_process():
        return Trained(end=end)
    return Trained(
        end=end, made=publish.finished(recipe, root, catalog, models=models, loras=loras)
    )
