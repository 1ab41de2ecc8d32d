"""One training as HTML: pure functions of what is known of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from app.jobs.job import Job
from app.markup import render
from app.training.run_list import Point, StageFacts, smoothed
from app.training.training_jobs import TrainingRun
from app.ui.routes import PICTURES, RUNS, THUMBS
from pipelines.progress import Stage, duration, plain_size

_MARKUP = "ui/train/run.html"
_WIDTH, _HEIGHT = 640, 220
_MOST_SAMPLES = 12
_STATES = {
    "waiting": "Waiting",
    "running": "Training",
    "stopping": "Stopping",
    "paused": "Paused",
    "done": "Finished",
    "failed": "Failed",
}


@dataclass(frozen=True, kw_only=True)
class RunNotes:
    """What the person is asked, was told, and has had painted at several weights.

    `made` is the last job that made a LoRA of a checkpoint.
    """

    asking: str = ""
    notice: str = ""
    error: str = ""
    made: Job | None = None
    comparing: Sequence[tuple[float, Job]] = ()


def percent(run: TrainingRun) -> int | None:
    """How much of the stage at work is done."""
    stage = run.facts.stage
    if stage is None or not stage.steps or run.state == "done":
        return None
    return min(100, round(100 * stage.step / stage.steps))


def told(run: TrainingRun) -> str:
    """What is going on, in a sentence."""
    stage, job = run.facts.stage, run.job
    if run.state == "waiting" and job is not None:
        ahead = f" behind {job.ahead} other{'s' if job.ahead != 1 else ''}" if job.ahead else ""
        return f"It waits for its turn{ahead}: one job at a time has the device."
    if run.state == "stopping":
        return "It writes a checkpoint and stops."
    if run.state == "running" and job is not None:
        progress = job.progress
        if progress is None:
            return "It is getting ready; pictures that wait are painted after it."
        if progress.stage is not Stage.TRAINING or stage is None:
            return progress.sentence() + "."
        return _pace(stage)
    if run.state == "done" and stage is not None:
        made = f" “{run.result}” is there to be used." if run.result else ""
        return f"{stage.step:,} updates.{made}"
    if stage is not None and stage.step:
        return f"It stands at update {stage.step:,} of {stage.steps:,}, and goes on from there."
    return "It has not begun to learn yet."


def _pace(stage: StageFacts) -> str:
    words = f"Update {stage.step:,} of {stage.steps:,}"
    if stage.pictures_per_second:
        words += f", {stage.pictures_per_second:.3g} pictures a second"
    if stage.seconds_left >= 1:
        words += f", {duration(stage.seconds_left)} left"
    return words + ". Pictures that wait are painted after it."


def page(run: TrainingRun, asked: RunNotes) -> str:
    """The whole run."""
    facts, stage = run.facts, run.facts.stage
    order = facts.order
    title = order.recipe.publish.title if order is not None and order.recipe.publish else facts.name
    fault = str(run.error) if run.error is not None else stage.fault if stage is not None else ""
    return render(
        _MARKUP,
        "page",
        run={
            "name": facts.name,
            "title": title,
            "state": run.state,
            "state_words": _STATES[run.state],
            "percent": percent(run),
            "told": told(run),
            "twice": 2 * stage.steps if stage is not None else "",
        },
        error=asked.error or (fault if run.state == "failed" else ""),
        notice=asked.notice,
        buttons=_buttons(run),
        asking=asked.asking,
        plot=Markup(_plot(stage)),
        samples=Markup(_samples(facts.name, stage)),
        facts_rows=_facts(run),
        stages=_stages(run),
        log=list(stage.log) if stage is not None else [],
        tries=Markup(_tries(run, asked)),
    )


def _buttons(run: TrainingRun) -> list[tuple[str, str, str]]:
    own, lora = run.facts.order is not None, _makes_lora(run)
    learned = run.facts.stage is not None and run.facts.stage.step > 0
    buttons: list[tuple[str, str, str]] = []
    if run.state in ("waiting", "running"):
        buttons.append(("pause", "Pause", ""))
        if learned:
            buttons.append(("keep", "Stop and keep", ""))
        return buttons
    if run.state == "stopping":
        return []
    if run.state == "done":
        if run.result and lora:
            buttons += [("try", "Try it", "lead"), ("compare", "Compare weights", "")]
        if own:
            buttons.append(("ask-longer", "Train longer…", ""))
    elif own:
        buttons.append(("resume", "Resume", "lead"))
        if learned:
            buttons.append(("keep", "Keep what it learned", ""))
    if own:
        buttons.append(("duplicate", "Duplicate with other settings", ""))
    return [*buttons, ("ask-remove", "Remove…", "")]


def _makes_lora(run: TrainingRun) -> bool:
    stage = run.facts.stage
    return stage is not None and stage.config is not None and stage.config.row.result == "lora"


def _facts(run: TrainingRun) -> list[tuple[str, str]]:
    stage = run.facts.stage
    if stage is None or stage.config is None:
        return []
    config, memory = stage.config, dict(stage.memory)
    rows = [("Method", config.row.title), ("Base", config.base.model or "")]
    if config.row.result == "lora":
        rows.append(("LoRA", f"rank {config.lora.rank}, {config.lora.targets}"))
    seen = config.pictures_per_update
    rows.append(("Pictures per update", f"{seen}"))
    if "peak" in memory:
        needs = plain_size(memory["peak"])
        free = f", {plain_size(memory['available'])} were free" if "available" in memory else ""
        rows.append(("Memory", f"about {needs}{free}"))
    if stage.checkpoints:
        rows.append(("Checkpoints", ", ".join(map(str, stage.checkpoints[-8:]))))
    return [(name, value) for name, value in rows if value]


def _stages(run: TrainingRun) -> list[dict[str, str]]:
    known = {stage.name.partition("-")[2]: stage for stage in run.facts.stages}
    names = run.facts.titles or tuple(known)
    rows = []
    for name in names:
        stage = known.get(name)
        state, words = "waiting", "to come"
        if stage is not None and stage.finished:
            state, words = "done", f"{stage.step:,} updates"
        elif stage is not None:
            state, words = "running", f"{stage.step:,} of {stage.steps:,} updates"
        rows.append({"title": name, "state": state, "told": words})
    return rows


# --- losses ---------------------------------------------------------------------------------------


def _plot(stage: StageFacts | None) -> str:
    """The losses as lines; "" where there are not two points yet."""
    if stage is None or len(stage.losses) < 2:
        return ""
    curves = {"raw": stage.losses, "smooth": smoothed(stage.losses), "held": stage.validation}
    values = sorted(p.loss for points in curves.values() for p in points)
    # One wild value must not press the rest flat.
    high = values[min(len(values) - 1, int(0.99 * len(values)))]
    low = values[0]
    if high <= low:
        low, high = low - 0.5, high + 0.5
    pad = 0.06 * (high - low)
    # A loss is never below nothing, and an axis that says so is odd.
    low, high = max(0.0, low - pad) if low >= 0 else low - pad, high + pad
    end = max(stage.losses[-1].step, 1)

    def path(points: Sequence[Point]) -> str:
        places = []
        for point in points:
            share = min(1.0, max(0.0, (point.loss - low) / (high - low)))
            x, y = _WIDTH * point.step / end, _HEIGHT * (1 - share)
            places.append(f"{x:.1f},{y:.1f}")
        return " ".join(places)

    last = [
        ("raw", "Loss", stage.losses[-1].loss),
        ("smooth", "Smoothed", curves["smooth"][-1].loss),
    ]
    if stage.validation:
        last.append(("held", "Validation", stage.validation[-1].loss))
    smooth = {p.step: p.loss for p in curves["smooth"]}
    held = {p.step: p.loss for p in stage.validation}
    points = [
        [
            p.step,
            *(
                None if v is None else round(v, 4)
                for v in (p.loss, smooth[p.step], held.get(p.step))
            ),
        ]
        for p in stage.losses
    ]
    rules = [low + (high - low) * k / 4 for k in range(5)]
    digits = min(6, max(1, 2 - math.floor(math.log10(high - low))))
    return render(
        _MARKUP,
        "plot",
        points=json.dumps(points, separators=(",", ":")),
        lines=[(name, path(points)) for name, points in curves.items() if points],
        across=[(_HEIGHT * (1 - k / 4), f"{rule:.{digits}f}") for k, rule in enumerate(rules)],
        along=["0", f"{end // 2:,}", f"{end:,}"],
        last=[(name, words, _loss(value)) for name, words, value in last],
    )


def _loss(value: float) -> str:
    """A loss that has run away has no room for all its digits."""
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.3g}"


def _samples(name: str, stage: StageFacts | None) -> str:
    """The sheets of samples, the base first; in a long run every so many."""
    if stage is None or not stage.samples or stage.config is None:
        return ""
    prompts = stage.config.preview_prompts
    steps = list(stage.samples)
    while len(steps) > _MOST_SAMPLES:
        steps = [steps[0], *steps[1:-1][1::2], steps[-1]]
    rows = [
        {
            "address": f"{RUNS}/{name}/{stage.name}/{step}",
            "words": "Before" if step == 0 else f"{step:,}",
            "alt": f"Samples after {step:,} updates",
        }
        for step in steps
    ]
    return render(_MARKUP, "samples", rows=rows, prompts=list(prompts) or ["samples"])


def _tries(run: TrainingRun, asked: RunNotes) -> str:
    stage = run.facts.stage
    if stage is None or run.state not in ("done", "paused") or not _makes_lora(run):
        return ""
    if run.facts.order is None:
        return ""
    steps = [step for step in stage.checkpoints if 0 < step]
    comparing = []
    for weight, job in asked.comparing:
        file = job.pictures[0] if job.pictures else None
        comparing.append(
            {
                "words": f"weight {weight:g}",
                "src": f"{THUMBS}/{file.name}" if file is not None else "",
                "whole": f"{PICTURES}/{file.name}" if file is not None else "",
                "state": "painting" if job.active else "not painted",
            }
        )
    return render(
        _MARKUP,
        "tries",
        name=run.facts.name,
        checkpoints=list(reversed(steps)),
        comparing=comparing,
        made=_made(asked.made),
    )


def _made(job: Job | None) -> dict[str, str]:
    """How the LoRA of a checkpoint goes, or went."""
    told, lora = "", ""
    if job is not None and job.active:
        told = "It is being made."
    elif job is not None and job.error is not None:
        told = str(job.error)
    elif job is not None and job.result:
        lora, told = str(job.result), f"“{job.result}” is there to be used."
    return {"told": told, "lora": lora}


def row(run: TrainingRun) -> dict[str, Any]:
    """The run in the list."""
    words = _STATES[run.state]
    stage = run.facts.stage
    if run.state in ("running", "paused") and stage is not None and stage.steps:
        words += f", {stage.step:,} of {stage.steps:,}"
    return {
        "key": f"run:{run.facts.name}",
        "title": run.facts.name,
        "told": words,
        "state": run.state,
        "percent": percent(run) if run.state in ("running", "stopping", "paused") else None,
    }
