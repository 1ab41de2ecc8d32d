"""Presses at the wrong moment, and studios that are gone: nothing is lost and nothing half done.

The queue is paused: what is begun waits, and the runs are as a training would have left them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.gallery.pictures import Gallery
from app.jobs import trainings as train_kind
from app.jobs.checkpoints import CHECKPOINT
from app.jobs.job import COMPUTER, JobState
from app.jobs.trainings import TRAINER
from app.parts import StudioParts, assemble
from app.settings import Settings
from app.training import training_process
from app.training.preparation import Preparation
from app.training.run_list import KEEP
from lora_manager import card, drafts
from pipelines.errors import BusyError, RequestError, SaveError
from pipelines.progress import Progress, Stage
from tests.app.jobs.test_kinds import Process, until
from tests.app.training.test_run_list import step, write
from tests.training import small


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[StudioParts]:
    settings = Settings(workspace=tmp_path / "workspace")
    made = assemble(settings, worker=Process(settings.outputs, 999))
    made.jobs.pause(True)
    made.jobs.start()
    yield made
    made.jobs.close()


def prepared(parts: StudioParts, tmp_path: Path) -> Preparation:
    preparations = parts.trainings.preparations
    folder = small.pictures(tmp_path / "photos", count=4)
    (folder / "metadata.jsonl").unlink()
    made = preparations.add(preparations.new("subject", "nano").id, "photos", folder)
    return preparations.change(made.id, subject="dog", name="my-dog", settings={"steps": "100"})


def begun(parts: StudioParts, tmp_path: Path, reached: int = 40) -> Path:
    """A training that was paused at an update; the folder of its stage."""
    trainings = parts.trainings
    trainings.start(prepared(parts, tmp_path))
    trainings.pause("my-dog")
    order = trainings.runs.get("my-dog").order
    assert order is not None
    stage = parts.settings.runs / "my-dog" / "01-dreambooth"
    (stage / "checkpoints" / f"step-{reached:08d}").mkdir(parents=True)
    (stage / "config.json").write_text(order.recipe.stages[0].model_dump_json(), "utf-8")
    write(stage, step(reached, 0.5))
    return stage


def finish(stage: Path, at: int, run: str = "mine") -> None:
    result = stage / "result"
    result.mkdir(exist_ok=True)
    (result / "training.json").write_text(json.dumps({"step": at, "reason": "finished"}), "utf-8")
    lora(result / "lora.safetensors", run)


def lora(file: Path, run: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, file, {card.RUN: run})


def test_a_start_that_is_cut_leaves_its_name_free(
    parts: StudioParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, trainings = prepared(parts, tmp_path), parts.trainings
    seen: list[tuple[bool, list[str]]] = []
    write_photos = trainings.preparations.write

    def cut(name: str, target: Path) -> None:
        write_photos(name, target)
        seen.append(((parts.settings.runs / "my-dog").exists(), trainings.runs.names()))
        raise SaveError("The disk is full.")

    monkeypatch.setattr(trainings.preparations, "write", cut)
    with pytest.raises(SaveError):
        trainings.start(made)
    # A kill at that moment would have left nothing under this name.
    assert seen == [(False, [])]
    assert list(parts.settings.runs.iterdir()) == []
    monkeypatch.undo()
    assert trainings.start(made) == "my-dog"
    assert (parts.settings.runs / "my-dog" / "photos" / "0004.png").is_file()


def test_keeping_what_waits_lets_it_be_kept_when_its_turn_comes(
    parts: StudioParts, tmp_path: Path
) -> None:
    begun(parts, tmp_path)
    trainings = parts.trainings
    trainings.resume("my-dog")
    trainings.keep("my-dog")
    assert trainings.get("my-dog").state == "waiting"
    assert (parts.settings.runs / "my-dog" / KEEP).exists()
    trainings.pause("my-dog")
    trainings.pause("my-dog")
    assert trainings.get("my-dog").state == "paused"
    # Whoever resumes wants it to go on.
    trainings.resume("my-dog")
    assert not (parts.settings.runs / "my-dog" / KEEP).exists()


def test_two_presses_begin_one_job(parts: StudioParts, tmp_path: Path) -> None:
    begun(parts, tmp_path)
    refused: list[BusyError] = []

    def press() -> None:
        try:
            parts.trainings.resume("my-dog")
        except BusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert sum(job.active for job in parts.jobs.jobs()) == 1


@pytest.mark.parametrize("wish", [b"", None])
def test_a_wish_to_keep_outlives_what_ends_its_training(
    parts: StudioParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: bytes | None
) -> None:
    begun(parts, tmp_path)
    file = parts.settings.runs / "my-dog" / KEEP
    asked: list[int] = []

    def run(order: Any, *_: Any, **__: Any) -> str:
        asked.append(order.recipe.stages[-1].steps)
        assert file.exists() is (wish is not None)
        if len(asked) == 1:
            raise SaveError("The disk is full.")
        return "my-dog"

    monkeypatch.setattr(training_process, "run", run)
    parts.trainings.resume("my-dog")
    if wish is not None:
        parts.trainings.keep("my-dog")
    parts.jobs.pause(False)
    job = until(lambda: (j := parts.jobs.latest(COMPUTER, "train")) and not j.active and j)
    assert job.state is JobState.FAILED
    assert file.exists() is (wish is not None)
    parts.jobs.obey("retry", job.id)
    until(lambda: parts.jobs.latest(COMPUTER, "train").state is JobState.DONE)  # type: ignore[union-attr]
    assert asked == ([40, 40] if wish is not None else [100, 100])
    assert not file.exists()


def test_one_goes_on_beyond_what_was_kept(parts: StudioParts, tmp_path: Path) -> None:
    stage = begun(parts, tmp_path)
    finish(stage, 40)
    config = json.loads((stage / "config.json").read_text("utf-8"))
    (stage / "config.json").write_text(json.dumps(config | {"steps": 40}), "utf-8")
    trainings = parts.trainings
    assert trainings.get("my-dog").state == "done"
    with pytest.raises(RequestError, match="It has 40 updates already"):
        trainings.longer("my-dog", 40)
    # Fewer than were ordered first, and more than it has.
    trainings.longer("my-dog", 80)
    order = trainings.runs.get("my-dog").order
    assert order is not None
    assert order.recipe.stages[-1].steps == 80


def test_what_is_trained_longer_and_paused_is_not_finished(
    parts: StudioParts, tmp_path: Path
) -> None:
    stage = begun(parts, tmp_path, 120)
    finish(stage, 100)
    assert parts.trainings.get("my-dog").state == "done"
    config = json.loads((stage / "config.json").read_text("utf-8"))
    (stage / "config.json").write_text(json.dumps(config | {"steps": 200}), "utf-8")
    assert parts.trainings.get("my-dog").state == "paused"


def test_a_lora_that_somebody_else_has_put_there_is_no_result(
    parts: StudioParts, tmp_path: Path
) -> None:
    stage = begun(parts, tmp_path, 100)
    finish(stage, 100)
    file = parts.settings.loras / "my-dog.safetensors"
    assert parts.trainings.get("my-dog").result == ""
    lora(file, "theirs")
    assert parts.trainings.get("my-dog").result == ""
    file.write_bytes(b"damaged")
    assert parts.trainings.get("my-dog").result == ""
    lora(file, "mine")
    assert parts.trainings.get("my-dog").result == "my-dog"


def test_a_run_is_not_removed_while_a_lora_is_made_of_it(
    parts: StudioParts, tmp_path: Path
) -> None:
    stage = begun(parts, tmp_path)
    trainings = parts.trainings
    trainings.checkpoint("my-dog", 40)
    for verb in (trainings.remove, lambda name: trainings.checkpoint(name, 40)):
        with pytest.raises(BusyError, match="LoRA of a checkpoint is being made"):
            verb("my-dog")
    assert stage.is_dir()
    job = trainings.made_of("my-dog")
    assert job is not None
    parts.jobs.stop(job.id, COMPUTER)
    trainings.remove("my-dog")
    assert list(parts.settings.runs.iterdir()) == []
    assert [job.kind for job in parts.jobs.jobs() if job.kind == CHECKPOINT] == []


def test_the_model_of_a_training_that_waits_is_known(parts: StudioParts, tmp_path: Path) -> None:
    trainings = parts.trainings
    trainings.start(prepared(parts, tmp_path))
    assert trainings.wants("nano") == "my-dog"
    assert trainings.wants("alpha-512") == ""
    trainings.pause("my-dog")
    assert trainings.wants("nano") == ""


def test_the_trainer_of_a_studio_that_was_killed_is_waited_for(
    parts: StudioParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings, began = parts.trainings, threading.Event()

    def run(*_: Any, born: Callable[[int], None], **__: Any) -> str:
        began.set()
        born(1)
        return "my-dog"

    monkeypatch.setattr(training_process, "run", run)
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as orphan:
        trainings.start(prepared(parts, tmp_path))
        (parts.settings.runs / TRAINER).write_text(drafts.writer(orphan.pid), "utf-8")
        parts.jobs.pause(False)
        assert not began.wait(0.5)
        # It can be stopped while it waits.
        trainings.pause("my-dog")
        until(lambda: trainings.get("my-dog").state == "paused")
        assert orphan.poll() is None
        trainings.resume("my-dog")
        assert not began.wait(0.3)
        orphan.kill()
    assert began.wait(30)
    until(lambda: trainings.get("my-dog").job.state is JobState.DONE)  # type: ignore[union-attr]
    assert (parts.settings.runs / TRAINER).read_text("utf-8") == drafts.writer(1)


def test_a_training_that_gets_further_may_be_killed_again_and_again(
    parts: StudioParts, tmp_path: Path
) -> None:
    stage = begun(parts, tmp_path)
    entry = SimpleNamespace(
        job=SimpleNamespace(payload=SimpleNamespace(name="my-dog")), painted=0, interruptions=2
    )
    train_kind._recover(parts.settings, entry)  # type: ignore[arg-type]
    assert (entry.painted, entry.interruptions) == (40, 0)
    entry.interruptions = 2
    train_kind._recover(parts.settings, entry)  # type: ignore[arg-type]
    assert entry.interruptions == 2
    (stage / "checkpoints" / "step-00000041").mkdir()
    train_kind._recover(parts.settings, entry)  # type: ignore[arg-type]
    assert entry.interruptions == 0


def test_a_picture_that_was_half_written_goes_before_its_job_goes_on(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as painter:
        name = f".1.png.{drafts.writer(painter.pid)}-0123abcd.part"
        painter.kill()
    for day in ("2026-11-29", "2026-11-30"):
        (tmp_path / day).mkdir()
        (tmp_path / day / name).write_bytes(b"half")
    gallery.sweep("2026-11-30")
    assert [file.parent.name for file in tmp_path.glob("*/.*")] == ["2026-11-29"]


def test_a_studio_that_is_gone_does_not_end_a_training_before_its_checkpoint() -> None:
    class Gone:
        def tell(self, event: str, **values: Any) -> None:
            raise BrokenPipeError

    report = training_process._reports(Gone())(None)  # type: ignore[arg-type]
    report(Progress(stage=Stage.TRAINING, done=1, total=2))


def test_photos_that_come_while_somebody_types_all_stay(parts: StudioParts, tmp_path: Path) -> None:
    from app.ui.train import filling

    preparations = parts.trainings.preparations
    key = preparations.new("subject", "nano").id
    photos = sorted(small.pictures(tmp_path / "more", count=16).glob("*.png"))

    def bring(mine: list[Path]) -> None:
        for file in mine:
            preparations.add(key, file.name, file)

    def type_words() -> None:
        for number in range(60):
            filling.fill(preparations, key, {"subject": f"dog{number}"})

    threads = [threading.Thread(target=bring, args=(photos[n::2],)) for n in range(2)]
    threads.append(threading.Thread(target=type_words))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = preparations.get(key)
    assert (len(made.photos), made.subject) == (16, "dog59")
    assert len({one.file for one in made.photos}) == 16
