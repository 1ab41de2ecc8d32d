"""Whether a subject was learned, and what it cost: counted on fixed prompts.

A LoRA is painted with at the weights of WEIGHTS, each prompt with the same seed, so that what is
compared differs by the LoRA alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from PIL import Image

from pipelines.progress import Progress, Report, ShouldStop, Stage
from training.evaluation import measure, subject_set
from training.evaluation.judge import Judge
from training.evaluation.measure import OBJECT, Count
from training.evaluation.prompts import FIRST, ScenePrompt, all_prompts
from training.evaluation.references import Look, References
from training.scenes.objects import SceneObject

WEIGHTS = (0.0, 0.5, 1.0)
# Likenesses that differ by less are the same.
_SAME = 0.02


class PaintWith(Protocol):
    """(prompt, seed, LoRAs as a request writes them) -> its picture, None where it was stopped."""

    def __call__(self, prompt: str, seed: int, loras: str = "") -> Image.Image | None: ...


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was counted on some pictures: `there` has the subject, `ground` the background that was
    asked for, `placed` is where it was asked to be (of the prompts that say where)."""

    there: Count
    ground: Count
    placed: Count

    def plus(self, asked: ScenePrompt, look: Look, emoji: str) -> Measured:
        """This and one more picture."""
        placed = self.placed
        if asked.place:
            placed = placed.plus(hit=look.place == asked.place)
        return Measured(
            there=self.there.plus(hit=look.nearest == emoji),
            ground=self.ground.plus(hit=look.colour == asked.colour),
            placed=placed,
        )


@dataclass(frozen=True, kw_only=True)
class SubjectReport:
    """One subject. `at` holds what was measured at each weight, `ceiling` the same of drawn scenes
    through the model's VAE. `likeness` is the mean cosine to the subject at each weight, `between`
    counts the prompts whose likeness at half the weight lies between the others. `others` counts
    what the model could paint before, at the weights 0 and 1."""

    subject: str
    at: Mapping[float, Measured]
    ceiling: Measured
    likeness: Mapping[float, float]
    between: Count
    others: Mapping[float, Count]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What measures: the painter, drawn scenes of a prompt through the same VAE, and who looks."""

    paint: PaintWith
    drawn: Callable[[SceneObject, ScenePrompt], Image.Image]
    references: References
    judge: Judge
    report: Report
    should_stop: ShouldStop


def subject(
    bench: Bench,
    thing: SceneObject,
    lora: str,
    base: Count | None,
    keep: Callable[[ScenePrompt, float, Image.Image], None] = lambda *_: None,
) -> SubjectReport | None:
    """Measures the LoRA called `lora`, which was taught `thing`; None where it was stopped.

    `base` is what `others` counted for the model alone, if it was before. `keep` gets each picture
    of the subject. Raises StudioError.
    """
    emoji = thing.sprites[0].emoji
    asked = subject_set.prompts(thing, subject_set.HALF_PROMPTS)
    looks: dict[float, list[Look]] = {weight: [] for weight in WEIGHTS}
    for number, one in enumerate(asked, 1):
        bench.report(Progress(stage=Stage.DENOISING, picture=number, pictures=len(asked)))
        for weight in WEIGHTS:
            picture = (
                None
                if bench.should_stop()
                else bench.paint(one.prompt, one.seed, loras=_written(lora, weight))
            )
            if picture is None:
                return None
            keep(one, weight, picture)
            looks[weight].append(bench.references.look(picture, emoji))
    alone = base if base is not None else others(bench, "")
    after = others(bench, _written(lora, 1.0))
    if alone is None or after is None:
        return None
    few = asked[: subject_set.PROMPTS]
    drawn = [bench.references.look(bench.drawn(thing, one), emoji) for one in few]
    return SubjectReport(
        subject=thing.name,
        at={weight: counted(few, looks[weight], emoji) for weight in WEIGHTS},
        ceiling=counted(few, drawn, emoji),
        likeness={w: sum(look.likeness for look in looks[w]) / len(asked) for w in WEIGHTS},
        between=between(*(looks[weight] for weight in WEIGHTS)),
        others={0.0: alone, 1.0: after},
    )


def _written(lora: str, weight: float) -> str:
    return f"{lora}:{weight:g}" if weight else ""


def counted(asked: Sequence[ScenePrompt], looks: Sequence[Look], emoji: str) -> Measured:
    """What the pictures of `asked` show of the sprite `emoji`."""
    found = Measured(there=Count(), ground=Count(), placed=Count())
    for one, look in zip(asked, looks, strict=False):
        found = found.plus(one, look, emoji)
    return found


def between(without: Sequence[Look], half: Sequence[Look], whole: Sequence[Look]) -> Count:
    """How many pictures at half the weight are as like the subject as something between both."""
    found = Count()
    for looks in zip(without, half, whole, strict=True):
        none, middle, all_of_it = (look.likeness for look in looks)
        low, high = min(none, all_of_it) - _SAME, max(none, all_of_it) + _SAME
        found = found.plus(hit=low <= middle <= high)
    return found


def others(bench: Bench, loras: str) -> Count | None:
    """How many of the single objects that the model knows it paints right with `loras`; None where
    it was stopped."""
    asked = [one for one in all_prompts() if one.list == FIRST and one.kind != "pair"]
    found = measure.evaluate(
        partial(bench.paint, loras=loras), asked, bench.judge, bench.report, bench.should_stop
    )
    return found.measures[OBJECT] if found.complete else None


# ---- to read ----


def as_json(report: SubjectReport) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "subject": report.subject,
        "at": {f"{weight:g}": asdict(found) for weight, found in report.at.items()},
        "ceiling": asdict(report.ceiling),
        "likeness": {f"{weight:g}": round(like, 4) for weight, like in report.likeness.items()},
        "between": asdict(report.between),
        "others": {f"{weight:g}": asdict(found) for weight, found in report.others.items()},
    }


def fallen(report: SubjectReport) -> float:
    """By how many points of 100 other objects are painted right less often with the LoRA."""
    return 100 * (report.others[0.0].share - report.others[1.0].share)


_COLUMNS: Mapping[str, Callable[[SubjectReport], float]] = {
    "subject there, %": lambda one: 100 * one.at[1.0].there.share,
    "without the LoRA, %": lambda one: 100 * one.at[0.0].there.share,
    "ceiling, %": lambda one: 100 * one.ceiling.there.share,
    "background as asked, %": lambda one: 100 * one.at[1.0].ground.share,
    "place as asked, %": lambda one: 100 * one.at[1.0].placed.share,
    "half the weight between, %": lambda one: 100 * one.between.share,
    "likeness at 0": lambda one: one.likeness[0.0],
    "at ½": lambda one: one.likeness[0.5],
    "at 1": lambda one: one.likeness[1.0],
    "other objects, points": lambda one: -fallen(one),
}


def table(reports: Mapping[str, SubjectReport]) -> str:
    """The reports, by what they are called, in Markdown, with the mean of each column."""
    lines = [f"| | {' | '.join(_COLUMNS)} |", f"|---|{'---|' * len(_COLUMNS)}"]
    rows = {name: [value(one) for value in _COLUMNS.values()] for name, one in reports.items()}
    if len(rows) > 1:
        rows["mean"] = [sum(column) / len(reports) for column in zip(*rows.values(), strict=True)]
    for name, row in rows.items():
        cells = [
            f"{value:.2f}" if "at" in what.split() else f"{value:.1f}"
            for what, value in zip(_COLUMNS, row, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
