"""What a training has made, put into Create or painted at several weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.training.training_jobs import TrainingRun
from pipelines.errors import RequestError

if TYPE_CHECKING:
    from app.studio import Studio

WEIGHTS = (0.0, 0.5, 0.75, 1.0)
"""At which a LoRA is compared."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A LoRA with the model that it belongs to, and a prompt that shows what was learned."""

    lora: str
    base: str
    prompt: str


def find(studio: Studio, name: str, *, of_checkpoint: bool) -> Trial:
    """The LoRA of a run, or the one that was made last of its checkpoints. Raises StudioError."""
    run = studio.trainings.get(name)
    stage, lora = run.facts.stage, run.result
    if of_checkpoint:
        made = studio.trainings.made_of(name)
        lora = str(made.result) if made is not None and made.result else ""
    if not lora or stage is None or stage.config is None:
        raise RequestError("training", "Its LoRA is not there any more.", "Publish it again.")
    base, prompt = stage.config.base.model or "", _prompt(studio, run, lora)
    return Trial(lora=lora, base=base, prompt=prompt)


def compare(studio: Studio, trial: Trial, owner: str) -> list[tuple[float, str]]:
    """Has it painted at each weight; the weights and their jobs. Raises StudioError."""
    jobs = []
    for weight in WEIGHTS:
        values = {"prompt": trial.prompt, "model": trial.base, "seed": 1, "count": 1}
        if weight:
            values["loras"] = f"{trial.lora}:{weight:g}"
        jobs.append((weight, studio.submit(studio.request(values), owner).id))
    return jobs


def _prompt(studio: Studio, run: TrainingRun, lora: str) -> str:
    """What shows what was learned: the first sample of the recipe."""
    stage = run.facts.stage
    prompts = stage.config.preview_prompts if stage is not None and stage.config else ()
    with_trigger = studio.catalog.loras.find(lora).trigger
    return prompts[0] if prompts else with_trigger or "a picture"
