"""Trainings as the page asks for them and shows them; the work is a kind of job."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from app.jobs.checkpoints import CHECKPOINT, CheckpointOrder
from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.queue import JobQueue
from app.jobs.trainings import TRAIN
from app.settings import Settings, make_folder
from app.training import orders, run_list
from app.training.preparation import Preparation, Preparations, writing
from app.training.run_list import KEEP, ORDER, RunFacts, RunList
from app.training.training_order import TrainingOrder
from lora_manager import card, drafts, headers
from lora_manager.errors import LoraError
from lora_manager.library import LoraLibrary
from pipelines import files
from pipelines.errors import BusyError, RequestError, StudioError, model_errors, printable
from training.config import MODEL_PREFIX

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
        # What was looked up stays true until it is acted on, whoever else presses.
        self._acting = threading.RLock()

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
        stage = facts.stage
        if stage is None or stage.config is None:
            return ""
        if stage.config.row.published != "loras":
            return row.id if (self._settings.models / row.id / "training.json").is_file() else ""
        # One that somebody has imported under its name meanwhile is another.
        results = (self.runs.folder(facts.name) / stage.name / "result").glob("*.safetensors")
        mine = {_made_by(file) for file in results} - {""}
        return row.id if _made_by(self._settings.loras / f"{row.id}.safetensors") in mine else ""

    # --- verbs ----------------------------------------------------------------------------------

    def start(self, made: Preparation) -> str:
        """Begins the training that was prepared; the name of its run. Raises StudioError."""
        with self._acting:
            return self._start(made)

    def _start(self, made: Preparation) -> str:
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
        order, draft = replace(wanted, data=data), drafts.beside(folder)
        try:
            # Whole or not there: a studio that is killed here leaves no name that is taken.
            make_folder(draft)
            if made.kind != "scratch":
                self.preparations.write(made.id, draft / PHOTOS)
            files.write(draft / ORDER, _json(order.to_json()))
            with writing(draft):
                draft.rename(folder)
            self._queue.add(TRAIN, order, COMPUTER, trusted=True)
        except StudioError:
            # Nothing was begun: the name is free again.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        before = self.preparations.get(made.id).runs
        self.preparations.change(made.id, runs=(*before, order.name))
        return order.name

    def pause(self, name: str) -> None:
        """Stops with a checkpoint, from which `resume` goes on."""
        job = self._jobs().get(name)
        if job is not None and job.active:
            self._queue.stop(job.id, job.owner)

    def resume(self, name: str) -> None:
        """Goes on from the last checkpoint. Raises RequestError, BusyError."""
        with self._acting:
            order = self._order(name)
            self._check_idle(name)
            # What could not be kept, as the disk was full, is trained on instead.
            (self.runs.folder(name) / KEEP).unlink(missing_ok=True)
            self._begin(order)

    def keep(self, name: str) -> None:
        """Ends the training, and publishes what it has learned. Raises RequestError, BusyError,
        SaveError."""
        with self._acting:
            facts, wanted = self.runs.get(name), self._order(name)
            stage = facts.stage
            if stage is None or not stage.step or len(facts.stages) < len(wanted.recipe.stages):
                raise RequestError(
                    "training", "It has learned nothing yet that could be kept.", "Wait a little."
                )
            files.write(self.runs.folder(name) / KEEP, b"")
            # Looked up now: what begins after this finds the wish by itself.
            job = self._jobs().get(name)
            if job is None or not job.active:
                self._begin(wanted)
            elif job.state is JobState.RUNNING:
                self.pause(name)

    def longer(self, name: str, steps: int) -> None:
        """Trains on, up to so many updates in all. Raises RequestError, BusyError, SaveError."""
        with self._acting:
            order, stage = self._order(name), self.runs.get(name).stage
            # Fewer than were ordered may have been kept.
            reached = stage.step if stage is not None else 0
            if steps <= reached:
                raise RequestError("steps", f"It has {reached:,} updates already.", "Give more.")
            changed = orders.with_steps(order, steps)
            _ = changed.recipe
            self._check_idle(name)
            files.write(self.runs.folder(name) / ORDER, _json(changed.to_json()))
            self._begin(changed)

    def checkpoint(self, name: str, step: int) -> None:
        """Makes a LoRA of what was learned at a checkpoint. Raises RequestError, BusyError."""
        with self._acting:
            stage = self.runs.get(name).stage
            self._order(name)
            if stage is None or step not in stage.checkpoints:
                raise RequestError("checkpoint", "This checkpoint is not there any more.")
            self._check_makes_none(name)
            order = CheckpointOrder(name=name, step=step)
            self._queue.add(CHECKPOINT, order, COMPUTER, trusted=True)

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
        with self._acting:
            self._check_idle(name)
            self._check_makes_none(name)
            folder = self.runs.folder(name)
            for job in self._queue.jobs():
                if job.kind in (TRAIN, CHECKPOINT) and job.payload.name == name:
                    self._queue.forget(job.id, job.owner)
            going = drafts.beside(folder, "gone")
            # At once: half a run would be one that can be gone on with.
            with suppress(OSError):
                folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            for made in self.preparations.all():
                if name in made.runs:
                    left = tuple(run for run in made.runs if run != name)
                    self.preparations.change(made.id, runs=left)

    def wants(self, model_id: str) -> str:
        """The training that runs or waits and learns on that model; "" for none."""
        for name, job in self._jobs().items():
            stages = job.payload.recipe.stages if job.active else ()
            if any({model_id, MODEL_PREFIX + model_id} & {*s.bases.values()} for s in stages):
                return name
        return ""

    def _begin(self, order: TrainingOrder) -> None:
        self._check_idle(order.name)
        self._queue.add(TRAIN, order, COMPUTER, trusted=True)

    def _check_idle(self, name: str) -> None:
        job = self._jobs().get(name)
        if job is not None and job.active:
            raise BusyError(f"The training “{name}” runs or waits.", "Stop it first.")

    def _check_makes_none(self, name: str) -> None:
        last = self.made_of(name)
        if last is not None and last.active:
            raise BusyError("A LoRA of a checkpoint is being made.", "Wait for it.")

    def _order(self, name: str) -> TrainingOrder:
        order = run_list.read_order(self.runs.folder(name))
        if order is None:
            raise RequestError(
                "training",
                f"“{printable(name, 80)}” was begun on the command line.",
                "Give the same command again: it goes on from its checkpoint.",
            )
        return order


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _made_by(file: Path) -> str:
    """The training that has made a LoRA; "" where it does not say, or cannot be read."""
    try:
        told = file.stat()
    except OSError:
        return ""
    return _noted(file, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=1000)
def _noted(file: Path, changed: int, size: int) -> str:
    """What is noted in a file that was last changed then: the list is drawn every second."""
    try:
        return headers.read(file).metadata.get(card.RUN, "")
    except LoraError:
        return ""
