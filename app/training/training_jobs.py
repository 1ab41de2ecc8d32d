"""Trainings as the page asks for them and shows them; the work is a kind of job."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from app.jobs.checkpoints import CHECKPOINT, CheckpointOrder
from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.queue import JobQueue
from app.jobs.trainings import TRAIN
from app.settings import Settings, make_folder
from app.training import orders, run_list
from app.training.preparation import Preparation, Preparations
from app.training.run_list import KEEP, ORDER, RunFacts, RunList
from app.training.training_order import TrainingOrder
from lora_manager.library import LoraLibrary
from pipelines import files
from pipelines.errors import BusyError, RequestError, StudioError, model_errors, printable

RunState = Literal["waiting", "running", "stopping", "paused", "done", "failed"]
PHOTOS = "photos"
"""The folder in a run that holds the pictures that it was begun with."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run as the page shows it: what its folder tells, and its job, if there is one. `result` is
    the name of its LoRA or model, "" where it has none yet."""

    facts: RunFacts
    job: Job | None
    state: RunState
    result: str = ""
    error: StudioError | None = None


class TrainingJobs:
    """The trainings of one studio. Every method may be called from any thread."""

    def __init__(self, settings: Settings, queue: JobQueue) -> None:
        self._settings = settings
        self._queue = queue
        self.preparations = Preparations(settings.trainings)
        self.runs = RunList(settings.runs)

    def all(self) -> list[TrainingRun]:
        """Every run, the last changed first."""
        jobs = self._jobs()
        return [self._shown(facts, jobs.get(facts.name)) for facts in self.runs.all()]

    def get(self, name: str) -> TrainingRun:
        """One run. Raises RequestError."""
        return self._shown(self.runs.get(name), self._jobs().get(name))

    @property
    def running(self) -> Job | None:
        """The training that has the device, or None."""
        job = self._queue.latest(COMPUTER, TRAIN)
        return job if job is not None and job.state is JobState.RUNNING else None

    def _jobs(self) -> dict[str, Job]:
        """The last job of each run: what runs comes first, then what waits."""
        found: dict[str, Job] = {}
        for job in self._queue.jobs():
            if job.kind == TRAIN:
                found.setdefault(job.payload.name, job)
        return found

    def _shown(self, facts: RunFacts, job: Job | None) -> TrainingRun:
        error = job.error if job is not None and job.state is JobState.FAILED else None
        result = self._result(facts)
        if job is not None and job.active:
            state: RunState = "stopping" if job.stopping else "waiting"
            if job.state is JobState.RUNNING and not job.stopping:
                state = "running"
        elif error is not None:
            state = "failed"
        elif facts.finished:
            state = "done"
        else:
            state = "failed" if facts.stage is not None and facts.stage.fault else "paused"
        return TrainingRun(facts=facts, job=job, state=state, result=result, error=error)

    def _result(self, facts: RunFacts) -> str:
        """What the run has published, if it is still there."""
        if facts.order is None or not facts.finished:
            return ""
        row = facts.order.recipe.publish
        if row is None:
            return ""
        lora = self._settings.loras / f"{row.id}.safetensors"
        model = self._settings.models / row.id
        return row.id if lora.is_file() or model.is_dir() else ""

    # --- verbs ----------------------------------------------------------------------------------

    def start(self, made: Preparation) -> str:
        """Begins the training that was prepared; the name of its run. Raises StudioError."""
        wanted = orders.order(made, Path("/"))
        folder = self.runs.folder(wanted.name)
        if folder.exists():
            raise RequestError(
                "name", f"There is a training called “{wanted.name}”.", "Give this another name."
            )
        last = wanted.recipe.stages[-1]
        if last.row.published == "loras" and wanted.recipe.publish is not None:
            library = LoraLibrary(self._settings.loras)
            with model_errors():
                library.check_free(wanted.recipe.publish.id)
        if made.kind == "scratch":
            data = Path(made.data).expanduser()
            if not made.data.strip() or not data.is_absolute() or not data.is_dir():
                shown = printable(made.data, 200) or "nothing"
                raise RequestError(
                    "data", f"There is no folder {shown}.", "Give its whole path, from / on."
                )
        else:
            data = folder / PHOTOS
        order = replace(wanted, data=data)
        try:
            make_folder(folder)
            if made.kind != "scratch":
                self.preparations.write(made.id, data)
            self._note(order)
            self._queue.add(TRAIN, order, COMPUTER, trusted=True)
        except StudioError:
            # Nothing was begun: the name is free again.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.preparations.change(made.id, runs=(*made.runs, order.name))
        return order.name

    def pause(self, name: str) -> None:
        """Stops with a checkpoint, from which `resume` goes on."""
        job = self._jobs().get(name)
        if job is not None and job.active:
            self._queue.stop(job.id, job.owner)

    def resume(self, name: str) -> None:
        """Goes on from the last checkpoint. Raises RequestError, BusyError."""
        self._begin(self._order(name))

    def keep(self, name: str) -> None:
        """Ends the training, and publishes what it has learned. Raises RequestError, BusyError,
        SaveError."""
        run = self.get(name)
        stage = run.facts.stage
        wanted = self._order(name)
        if stage is None or not stage.step or len(run.facts.stages) < len(wanted.recipe.stages):
            raise RequestError(
                "training", "It has learned nothing yet that could be kept.", "Wait a little."
            )
        files.write(self.runs.folder(name) / KEEP, b"")
        if run.job is not None and run.job.active:
            self.pause(name)
        else:
            self._begin(wanted)

    def longer(self, name: str, steps: int) -> None:
        """Trains on, up to so many updates in all. Raises RequestError, BusyError, SaveError."""
        order = self._order(name)
        last = order.recipe.stages[-1]
        if steps <= last.steps:
            raise RequestError("steps", f"It has {last.steps:,} updates already.", "Give more.")
        changed = orders.with_steps(order, steps)
        _ = changed.recipe
        self._check_idle(name)
        self._note(changed)
        self._begin(changed)

    def checkpoint(self, name: str, step: int) -> None:
        """Makes a LoRA of what was learned at a checkpoint. Raises RequestError, BusyError."""
        stage = self.get(name).facts.stage
        self._order(name)
        if stage is None or step not in stage.checkpoints:
            raise RequestError("checkpoint", "This checkpoint is not there any more.")
        last = self.made_of(name)
        if last is not None and last.active:
            raise BusyError("A LoRA of a checkpoint is being made.", "Wait for it.")
        self._queue.add(CHECKPOINT, CheckpointOrder(name=name, step=step), COMPUTER, trusted=True)

    def made_of(self, name: str) -> Job | None:
        """The last job that made a LoRA of a checkpoint of this run."""
        jobs = self._queue.jobs()
        return next((j for j in jobs if j.kind == CHECKPOINT and j.payload.name == name), None)

    def duplicate(self, name: str) -> Preparation:
        """A new preparation with the same photos and values. Raises RequestError, SaveError."""
        for made in self.preparations.all():
            if name in made.runs:
                return self.preparations.copy(made.id)
        raise RequestError(
            "training",
            f"“{printable(name, 80)}” was not begun in this page.",
            "Give its command with another --run.",
        )

    def remove(self, name: str) -> None:
        """Deletes a run: checkpoints, samples, log. What it has published stays, and its photos are
        there to be trained on again. Raises RequestError, BusyError, SaveError."""
        self._check_idle(name)
        folder = self.runs.folder(name)
        for job in self._queue.jobs():
            if job.kind == TRAIN and job.payload.name == name:
                self._queue.forget(job.id, job.owner)
        shutil.rmtree(folder, ignore_errors=True)
        for made in self.preparations.all():
            if name in made.runs:
                left = tuple(run for run in made.runs if run != name)
                self.preparations.change(made.id, runs=left)

    def _begin(self, order: TrainingOrder) -> None:
        self._check_idle(order.name)
        self._queue.add(TRAIN, order, COMPUTER, trusted=True)

    def _check_idle(self, name: str) -> None:
        job = self._jobs().get(name)
        if job is not None and job.active:
            raise BusyError(f"The training “{name}” runs or waits.", "Stop it first.")

    def _order(self, name: str) -> TrainingOrder:
        order = run_list.read_order(self.runs.folder(name))
        if order is None:
            raise RequestError(
                "training",
                f"“{printable(name, 80)}” was begun on the command line.",
                "Give the same command again: it goes on from its checkpoint.",
            )
        return order

    def _note(self, order: TrainingOrder) -> None:
        folder = make_folder(self.runs.folder(order.name))
        files.write(folder / ORDER, _json(order.to_json()))


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()
