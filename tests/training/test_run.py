"""The run folder and its checkpoints: torn, damaged, foreign."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pipelines.errors import BusyError, RequestError, SaveError
from tests.training.loop import toy
from training.loop import checkpoint
from training.run import Run, only_one, open_run, read_config


def make(root: Path, step: int, value: float = 1.0) -> checkpoint.Checkpoint:
    tensors = {"model": {"w": torch.full((4, 4), value)}, "ema": {"w": torch.zeros(4, 4)}}
    return checkpoint.save(root, step, tensors, {"trainer": {"step": step}})


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    make(tmp_path, 5, 3.0)
    newest, told = checkpoint.newest(tmp_path)
    assert newest is not None
    assert told == []
    assert (newest.step, newest.state) == (5, {"trainer": {"step": 5}})
    assert torch.equal(newest.tensors("model")["w"], torch.full((4, 4), 3.0))
    assert newest.has("ema")
    assert not newest.has("optimizer-0")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "extra-name", "format"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    make(tmp_path, 5)
    folder = make(tmp_path, 10).folder
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text("{", "utf-8")
    else:
        told = json.loads(manifest.read_text("utf-8"))
        if damage == "format":
            told["format"] = 99
        else:
            told["files"]["../../x"] = {"bytes": 1, "sha256": ""}
        manifest.write_text(json.dumps(told), "utf-8")
    newest, told_sentences = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 5
    assert len(told_sentences) == 1
    assert "step-00000010" in told_sentences[0]


def test_rotation_keeps_the_newest_the_best_and_the_last_good_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        make(tmp_path, step)
    (tmp_path / "step-00000005" / "manifest.json").unlink()
    (tmp_path / "step-00000004" / "model.safetensors").write_bytes(b"")
    checkpoint.rotate(tmp_path, 1, best=1)
    # Two damaged ones do not count as the one to keep.
    left = [int(f.name[-8:]) for f in checkpoint.found(tmp_path)]
    assert left == [5, 4, 3, 1]


def test_saving_the_same_step_again_replaces_it_whole(tmp_path: Path) -> None:
    make(tmp_path, 5, 1.0)
    make(tmp_path, 5, 2.0)
    newest, _ = checkpoint.newest(tmp_path)
    assert newest is not None
    assert float(newest.tensors("model")["w"][0, 0]) == 2.0
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000005"]


def test_half_written_ones_are_taken_away(tmp_path: Path) -> None:
    make(tmp_path, 5)
    (tmp_path / ".draft-00000010-99").mkdir()
    (tmp_path / ".draft-00000010-99" / "model.safetensors").write_bytes(b"x")
    checkpoint.remove_drafts(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000005"]


def test_what_was_put_aside_comes_back(tmp_path: Path) -> None:
    folder = make(tmp_path, 5).folder
    folder.rename(tmp_path / ".draft-old-00000005")
    checkpoint.remove_drafts(tmp_path)
    newest, told = checkpoint.newest(tmp_path)
    assert newest is not None
    assert (newest.step, told) == (5, [])


def test_the_step_counts_and_not_the_clock(tmp_path: Path) -> None:
    make(tmp_path, 10)
    folder = make(tmp_path, 5).folder
    os.utime(folder, (2e9, 2e9))
    newest, _ = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 10


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", toy.config())
    run.event("step", step=1)
    with open(run.folder / "events.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"event": "st')
    run.event("step", step=2)
    assert [event["step"] for event in run.events("step")] == [1, 2]


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear", "utf-8")
    with pytest.raises(RequestError, match="holds no run"):
        open_run(tmp_path, toy.config())
    assert [f.name for f in tmp_path.iterdir()] == ["letters.txt"]


def test_a_start_that_was_cut_off_can_be_repeated(tmp_path: Path) -> None:
    for part in ("checkpoints", "previews"):
        (tmp_path / part).mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.ab12.part").touch()
    assert open_run(tmp_path, toy.config()).folder == tmp_path


@pytest.mark.parametrize("text", ["{", "{}", '{"name": "x", "evil": 1}', "[" * 100_000, "null"])
def test_a_hostile_config_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(RequestError, match="is not the recipe of a run"):
        read_config(tmp_path)
    with pytest.raises(RequestError):
        open_run(tmp_path, toy.config())


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", "utf-8")
    with pytest.raises(SaveError, match="cannot be"), only_one(tmp_path / "run"):
        pass
    with pytest.raises(SaveError, match="cannot be made"):
        open_run(tmp_path / "run", toy.config())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaveError, match="Permission denied"):
        open_run(tmp_path / "run", toy.config())


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(BusyError), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_run_knows_when_it_is_finished(tmp_path: Path) -> None:
    run = Run(tmp_path, toy.config())
    assert not run.is_finished
    run.result.mkdir()
    assert not run.is_finished
    (run.result / "training.json").write_text("{}", "utf-8")
    assert run.is_finished
