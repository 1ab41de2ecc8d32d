"""What the page does with trainings: begin, pause, go on, keep, longer, a checkpoint, another one,
remove. Everything real, on a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.parts import StudioParts, assemble
from app.settings import Settings
from app.training.preparation import Preparation
from app.training.training_jobs import TrainingRun
from lora_manager.library import LoraLibrary
from pipelines.errors import BusyError, RequestError, StudioError
from tests import tiny
from tests.app.jobs.test_kinds import Process
from tests.training import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]
QUICK = {
    "batch": "1",
    "accumulate": "1",
    "precision": "fp32",
    "text_precision": "fp32",
    "gradient_checkpointing": "false",
    "log_every": "1",
    "data.side": "64",
    "schedule.warmup": "0",
    "checkpoints.every": "5",
    "preview.every": "0",
}


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[StudioParts]:
    settings = Settings(workspace=tmp_path / "workspace")
    tiny.build(settings.models / "tiny")
    made = assemble(settings, worker=Process(settings.outputs, 999))
    made.jobs.start()
    yield made
    made.jobs.close()


def prepared(parts: StudioParts, tmp_path: Path, steps: int) -> Preparation:
    preparations = parts.trainings.preparations
    folder = small.pictures(tmp_path / "photos", count=4)
    (folder / "metadata.jsonl").unlink()
    made = preparations.add(preparations.new("subject", "tiny").id, "photos", folder)
    settings = QUICK | {"steps": str(steps)}
    return preparations.change(made.id, subject="disc", name="my-disc", settings=settings)


def until(parts: StudioParts, true: Callable[[TrainingRun], bool]) -> TrainingRun:
    end = time.monotonic() + 120
    while not true(run := parts.trainings.get("my-disc")):
        assert time.monotonic() < end, run
        time.sleep(0.02)
    return run


def learned(run: TrainingRun) -> bool:
    return run.facts.stage is not None and run.facts.stage.step > 0


def test_a_training_from_photos_to_what_is_kept(parts: StudioParts, tmp_path: Path) -> None:
    trainings = parts.trainings
    made = prepared(parts, tmp_path, 100_000)
    assert trainings.start(made) == "my-disc"
    with pytest.raises(RequestError, match="There is a training called"):
        trainings.start(made)
    until(parts, learned)
    with pytest.raises(BusyError):
        trainings.remove("my-disc")

    trainings.pause("my-disc")
    run = until(parts, lambda run: run.state == "paused")
    assert run.facts.stage is not None
    reached = run.facts.stage.step
    assert run.result == ""
    trainings.resume("my-disc")
    until(parts, lambda run: run.facts.stage is not None and run.facts.stage.step > reached)

    trainings.keep("my-disc")
    run = until(parts, lambda run: run.state == "done")
    assert run.facts.stage is not None
    kept = run.facts.stage.step
    assert reached < kept < 100_000
    assert run.result == "my-disc"
    library = LoraLibrary(parts.settings.loras)
    assert library.find("my-disc").trigger == "sks disc"

    with pytest.raises(RequestError, match="updates already"):
        trainings.longer("my-disc", kept)
    trainings.longer("my-disc", 100_001)
    until(parts, lambda run: run.facts.stage is not None and run.facts.stage.step > kept)
    trainings.pause("my-disc")
    run = until(parts, lambda run: run.job is not None and not run.job.active)
    assert run.error is None

    step = max(run.facts.stage.checkpoints) if run.facts.stage is not None else 0
    trainings.checkpoint("my-disc", step)
    until(parts, lambda run: not getattr(trainings.made_of("my-disc"), "active", True))
    job = trainings.made_of("my-disc")
    assert job is not None
    assert (job.result, job.error) == (f"my-disc-at-{step}", None)
    assert library.find(f"my-disc-at-{step}").trigger == "sks disc"

    other = trainings.duplicate("my-disc")
    assert (len(other.photos), other.subject, other.runs) == (4, "disc", ())
    trainings.remove("my-disc")
    assert trainings.all() == []
    # Its photos are there to be trained on again.
    assert {one.id for one in trainings.preparations.all()} == {made.id, other.id}
    assert trainings.preparations.get(made.id).runs == ()
    # What was published stays.
    assert library.find("my-disc")


def test_what_could_not_be_begun_leaves_its_name_free(parts: StudioParts, tmp_path: Path) -> None:
    made = prepared(parts, tmp_path, 4)
    broken = made.model_copy(update={"base": "no-such-model"})
    trainings = parts.trainings
    photo = made.photos[0].file
    original = parts.settings.trainings / made.id / "originals" / photo
    data = original.read_bytes()
    original.unlink()
    with pytest.raises(StudioError):
        trainings.start(made)
    assert trainings.runs.names() == []
    original.write_bytes(data)
    # A base that went meanwhile is said by the job, in a sentence.
    trainings.start(broken)
    run = until(parts, lambda run: run.state == "failed")
    assert "no-such-model" in str(run.error)
    trainings.remove("my-disc")
    trainings.start(made)
    assert until(parts, lambda run: run.state == "done").result == "my-disc"


def test_a_name_that_a_lora_has_is_refused_before_it_begins(
    parts: StudioParts, tmp_path: Path
) -> None:
    parts.settings.loras.mkdir(parents=True)
    (parts.settings.loras / "My-Disc.safetensors").write_bytes(b"somebody's")
    with pytest.raises(StudioError, match="There is a LoRA called"):
        parts.trainings.start(prepared(parts, tmp_path, 4))
    assert parts.trainings.runs.names() == []


def test_a_run_of_the_command_line_is_only_looked_at(parts: StudioParts, tmp_path: Path) -> None:
    folder = parts.settings.runs / "theirs" / "01-dreambooth"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", "utf-8")
    for verb in (parts.trainings.resume, parts.trainings.keep, parts.trainings.duplicate):
        with pytest.raises(RequestError):
            verb("theirs")
    assert parts.trainings.get("theirs").state == "paused"
