"""A training as a job: beside the painter, stopped with a checkpoint, gone on after a restart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.trainings import TRAIN
from app.parts import StudioParts, assemble
from app.settings import Settings
from app.training import training_order
from app.training.training_order import TrainingOrder
from lora_manager.library import LoraLibrary
from pipelines.errors import StudioError
from pipelines.progress import Stage
from tests import tiny
from tests.app.jobs.test_kinds import Process
from tests.training import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]
ENDLESS = 100_000
"""So many steps that none of these trainings comes to its end before it is stopped."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(workspace=tmp_path / "workspace")
    tiny.build(made.models / "tiny")
    bare = small.pictures(tmp_path / "photos", count=4)
    (bare / "metadata.jsonl").unlink()
    return made


def order(settings: Settings, steps: int) -> TrainingOrder:
    values = {
        "title": "A disc",
        "publish": {"id": "my-disc", "title": "My disc"},
        "method": "dreambooth",
        "steps": steps,
        "batch": 1,
        "precision": "fp32",
        "log_every": 1,
        "data": {"source": ".", "side": 64, "held_out": 0.0},
        "base": {"model": "tiny"},
        "subject": {"word": "sks", "kind": "disc"},
        "ema": {"decay": 0.0},
        "checkpoints": {"every": 5, "keep": 2},
        "validation": {"every": 0},
    }
    return TrainingOrder(name="disc", data=settings.workspace.parent / "photos", values=values)


@contextmanager
def studio(settings: Settings) -> Iterator[StudioParts]:
    parts = assemble(settings, worker=Process(settings.outputs, 999))
    parts.jobs.start()
    try:
        yield parts
    finally:
        parts.jobs.close()


def last(parts: StudioParts) -> Job:
    job = parts.jobs.latest(COMPUTER, TRAIN)
    assert job is not None
    return job


def until(parts: StudioParts, true: Callable[[Job], bool], seconds: float = 120) -> Job:
    end = time.monotonic() + seconds
    while not true(last(parts)):
        assert time.monotonic() < end, last(parts)
        time.sleep(0.02)
    return last(parts)


def trains(job: Job) -> bool:
    return job.progress is not None and job.progress.stage is Stage.TRAINING


def test_a_subject_is_learned_and_lies_in_the_library(settings: Settings) -> None:
    with studio(settings) as parts:
        parts.jobs.add(TRAIN, order(settings, 4), COMPUTER)
        job = until(parts, lambda job: not job.active)
        assert (job.state, job.error, job.result) == (JobState.DONE, None, "my-disc")
    assert LoraLibrary(settings.loras).find("my-disc").trigger == "sks disc"


def checkpoints(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.runs.glob("disc/*/checkpoints/step-*"))


def test_a_stop_writes_a_checkpoint_and_a_retry_goes_on(settings: Settings) -> None:
    with studio(settings) as parts:
        job_id = parts.jobs.add(TRAIN, order(settings, ENDLESS), COMPUTER).id
        until(parts, trains)
        parts.jobs.stop(job_id, COMPUTER)
        job = until(parts, lambda job: not job.active)
        assert job.state is JobState.STOPPED
        reached = max(int(name.partition("-")[2]) for name in checkpoints(settings))
        assert 0 < reached < ENDLESS
        # The same run, to an end that is near.
        parts.jobs.add(TRAIN, order(settings, reached + 2), COMPUTER)
        assert until(parts, lambda job: not job.active).state is JobState.DONE
    (told,) = resumed(settings)
    assert f'"step": {reached}' in told


def resumed(settings: Settings) -> list[str]:
    """What the run wrote each time that it went on from a checkpoint."""
    (file,) = settings.runs.glob("disc/*/events.jsonl")
    return [e for e in file.read_text("utf-8").splitlines() if '"event": "resume"' in e]


def test_a_killed_training_goes_on_from_its_last_checkpoint(settings: Settings) -> None:
    with studio(settings) as parts:
        job_id = parts.jobs.add(TRAIN, order(settings, ENDLESS), COMPUTER).id
        until(parts, lambda job: trains(job) and bool(checkpoints(settings)))
        (child,) = [c for c in psutil.Process().children(recursive=True) if _trains(c)]
        os.kill(child.pid, signal.SIGKILL)
        job = until(parts, lambda job: not job.active or bool(resumed(settings)))
        assert job.active, job.error
        parts.jobs.stop(job_id, COMPUTER)
        assert until(parts, lambda job: not job.active).state is JobState.STOPPED


def _trains(process: psutil.Process) -> bool:
    """Whether it holds the log of a training open: forks have no names of their own."""
    try:
        return any(file.path.endswith("training.log") for file in process.open_files())
    except psutil.Error:
        return False


def test_a_closed_studio_hands_its_training_to_the_next_one(settings: Settings) -> None:
    with studio(settings) as parts:
        parts.jobs.add(TRAIN, order(settings, ENDLESS), COMPUTER)
        until(parts, trains)
    assert checkpoints(settings)
    with studio(settings) as parts:
        job = until(parts, lambda job: not job.active or bool(resumed(settings)))
        assert job.active, job.error
        parts.jobs.stop(job.id, COMPUTER)
        assert until(parts, lambda job: not job.active).state is JobState.STOPPED


def test_photos_that_are_gone_are_a_sentence(settings: Settings) -> None:
    wanted = order(settings, 4)
    with studio(settings) as parts:
        wanted.data.rename(wanted.data.with_name("elsewhere"))
        parts.jobs.add(TRAIN, wanted, COMPUTER)
        job = until(parts, lambda job: not job.active)
    assert job.state is JobState.FAILED
    assert "There is no folder" in str(job.error)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../dog"},
        {"name": 3},
        {"data": "photos"},
        {"data": "/a\0b"},
        {"values": []},
        {"values": {"method": "dreamboth"}},
        {"values": {"method": "dreambooth", "steps": "many"}},
    ],
)
def test_an_order_from_anywhere_is_checked(settings: Settings, changes: dict[str, Any]) -> None:
    told = order(settings, 4).to_json()
    assert training_order.of_json(told) == order(settings, 4)
    with pytest.raises(StudioError):
        training_order.of_json(told | changes)
    with pytest.raises(StudioError):
        training_order.of_json([told])
