"""The loop: exact resuming, right accumulation, faults of numbers, stops."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.errors import BusyError, RequestError, SaveError, TrainingError
from pipelines.progress import Progress, Stage
from tests.training.loop import toy
from training import forecast
from training.config import RunConfig
from training.loop import checkpoint
from training.loop.order import Pick
from training.loop.task import Samples
from training.loop.trainer import Trainer
from training.run import Run, only_one, open_run


class After:
    """Asks for a stop after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


class Vanishing:
    """Samples of which the sixth is not there any more."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        if pick.index == 5:
            raise SaveError("The picture 5.png is gone.", "Put it back.")
        return self.samples[pick]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "prodigy"])
@pytest.mark.parametrize("stop_at", [1, 7, 10])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, stop_at: int, optimizer: str) -> None:
    config = toy.config(optimizer={"name": optimizer, "lr": 1e-2})
    straight, _ = toy.go(tmp_path / "straight", config)
    cut, outcome = toy.go(tmp_path / "cut", config, should_stop=After(stop_at))
    assert (outcome.reason, outcome.step) == ("stopped", stop_at)
    assert not cut.is_finished
    again, outcome = toy.go(tmp_path / "cut", config)
    assert (outcome.reason, outcome.step) == ("finished", 20)
    toy.assert_same(straight, again)
    assert straight.is_finished
    assert again.is_finished


def test_loader_workers_change_nothing(tmp_path: Path) -> None:
    alone, _ = toy.go(tmp_path / "alone", toy.config())
    cut, _ = toy.go(tmp_path / "cut", toy.config(workers=2), should_stop=After(7))
    cut, _ = toy.go(tmp_path / "cut", toy.config(workers=2))
    toy.assert_same(alone, cut)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_vanished_is_one_sentence(tmp_path: Path, workers: int) -> None:
    config = toy.config(workers=workers)
    whole = toy.task(config)
    broken = dataclasses.replace(whole, samples=Vanishing(whole.samples))
    with pytest.raises(TrainingError, match=r"^The picture 5\.png is gone\. Put it back\.$"):
        toy.go(tmp_path, config, toy=broken)
    run, outcome = toy.go(tmp_path, config)
    assert outcome.reason == "finished"
    straight, _ = toy.go(tmp_path / "straight", config)
    toy.assert_same(straight, run)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one, _ = toy.go(tmp_path / "one", toy.config(steps=3))
    other, _ = toy.go(tmp_path / "other", toy.config(steps=3, seed=5))
    mine, theirs = toy.weights(one), toy.weights(other)
    assert not torch.equal(mine["model/block.0.weight"], theirs["model/block.0.weight"])


def test_accumulated_micro_batches_are_one_large_batch(tmp_path: Path) -> None:
    """The gradient of two micro-batches of three is that of one batch of the same six."""
    same: dict[str, Any] = {"steps": 1, "ema": {"decay": 0.0}, "schedule": {"warmup": 0}}

    def plan(epoch: int) -> list[tuple[int, ...]]:
        return [(0, 1, 2), (3, 4, 5)]

    results = []
    for name, batch, accumulate, batches in (
        ("small", 3, 2, plan),
        ("large", 6, 1, lambda epoch: [(0, 1, 2, 3, 4, 5)]),
    ):
        config = toy.config(batch=batch, accumulate=accumulate, **same)
        task = toy.task(config)
        quiet = _without_dice(task, batches)
        run, _ = toy.go(tmp_path / name, config, toy=quiet)
        results.append(toy.weights(run))
    small, large = results
    for name in small:
        assert torch.allclose(small[name], large[name], atol=1e-6), name


def _without_dice(task: Any, plan: Any) -> Any:
    """The same task without noise and dropout, which depend on the micro-batch."""
    from dataclasses import replace

    net = task.net
    net.block[2].p = 0.0

    def forward(batch: Any, seed: int, timestep: int | None) -> Any:
        values = batch["values"]
        return {"loss": (net.block(values)[:, 0] - values.sum(1)).square()}

    net.forward = forward
    samples = task.samples
    fixed = type("Fixed", (), {})()
    type(fixed).__len__ = lambda self: len(samples)
    type(fixed).__getitem__ = lambda self, pick: samples[type(pick)(index=pick.index, key=0)]
    return replace(task, samples=fixed, plan=plan)


def test_a_poisoned_sample_is_skipped_and_named(tmp_path: Path) -> None:
    config = toy.config(steps=6, accumulate=1)
    told: list[str] = []
    run, outcome = toy.go(
        tmp_path / "run", config, toy=toy.task(config, poison=(4,)), tell=told.append
    )
    assert len(told) == 1
    assert "was skipped: its numbers are not finite (samples: sample-4)" in told[0]
    assert outcome.reason == "finished"
    skipped = run.events("skipped")
    assert [event["samples"] for event in skipped] == [["sample-4"]]
    assert all(bool(torch.isfinite(value).all()) for value in toy.weights(run).values())
    # The skipped update moved nothing but the counter.
    assert run.events("step")[-1]["step"] == 6


def test_numbers_that_stay_bad_roll_back_once_and_then_stop(tmp_path: Path) -> None:
    config = toy.config(steps=12, checkpoints={"every": 1, "keep": 2})
    poisoned = toy.task(config, poison=tuple(range(17)))
    told: list[str] = []
    with pytest.raises(TrainingError, match="not finite 3 times in a row"):
        toy.go(tmp_path / "run", config, toy=poisoned, tell=told.append)
    assert "goes on with half the learning rate" in told[3]
    run = open_run(tmp_path / "run", config)
    assert [e["lr_scale"] for e in run.events("rollback")] == [0.5]
    assert len(run.events("skipped")) == 6
    newest, told = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert told == []
    # The data are repaired: the same command goes on.
    _, outcome = toy.go(tmp_path / "run", config)
    assert outcome.reason == "finished"


def test_a_damaged_checkpoint_is_written_again(tmp_path: Path) -> None:
    config = toy.config()
    cut, _ = toy.go(tmp_path / "cut", config, should_stop=After(10))
    (cut.checkpoints / "step-00000010" / "model.safetensors").write_bytes(b"")
    again, outcome = toy.go(tmp_path / "cut", config, should_stop=After(5))
    assert outcome.step == 10
    newest, told = checkpoint.newest(again.checkpoints)
    assert newest is not None
    assert (newest.step, told) == (10, [])
    assert "damaged" in again.events("damaged")[0]["sentence"]


def test_without_a_whole_checkpoint_nothing_begins_anew(tmp_path: Path) -> None:
    config = toy.config()
    cut, _ = toy.go(tmp_path / "cut", config, should_stop=After(3))
    for folder in checkpoint.found(cut.checkpoints):
        (folder / "manifest.json").unlink()
    with pytest.raises(TrainingError, match="is whole"):
        toy.go(tmp_path / "cut", config)


def test_a_run_that_learned_nothing_is_not_handed_on(tmp_path: Path) -> None:
    config = toy.config(steps=2)
    with pytest.raises(TrainingError, match="nothing was learned"):
        toy.go(tmp_path / "run", config, toy=toy.task(config, poison=tuple(range(17))))


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    # So small a step changes nothing: no validation is better than the first one.
    config = toy.config(steps=50, optimizer={"lr": 1e-12}, validation={"every": 2, "patience": 3})
    run, outcome = toy.go(tmp_path / "run", config)
    assert outcome.reason == "patience"
    assert outcome.step < 50
    assert run.is_finished
    # Once it has run out, not one update more.
    _, again = toy.go(tmp_path / "run", config)
    assert (again.reason, again.step) == ("patience", outcome.step)


class Killed(BaseException):
    """Stands for SIGKILL, so that every moment can be tried in one process."""


def _killed_at(step: int, folder: Path, config: RunConfig, kind: str) -> None:
    """Trains until the validation, or the save, of `step` begins, or has just ended."""
    begins, what = kind.split()
    name = {"validation": "_validate", "save": "_save"}[what]
    real = getattr(Trainer, name)

    def then_killed(self: Trainer) -> None:
        here = self._state.step == step
        if here and begins == "before":
            raise Killed
        real(self)
        if here:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, name, then_killed)
        with pytest.raises(Killed):
            toy.go(folder, config)


def _end(run: Run) -> dict[str, Any]:
    """The state with which a finished run ended, validations included."""
    told = [e for e in run.events("validation") if e["loss"] is not None]
    return {"step": run.events("end")[-1]["step"], "curve": {e["step"]: e["loss"] for e in told}}


@pytest.mark.parametrize("kind", ["after save", "before validation", "after validation"])
@pytest.mark.parametrize("validated", [5, 10])
def test_patience_survives_a_kill_beside_every_checkpoint(
    tmp_path: Path, kind: str, validated: int
) -> None:
    """The checkpoint is written before its own validation, which a resumed run makes up for."""
    config = toy.config(
        steps=60, optimizer={"lr": 1e-12}, validation={"every": validated, "patience": 3}
    )
    straight, outcome = toy.go(tmp_path / "straight", config)
    assert (outcome.reason, outcome.step) == ("patience", 3 * validated)
    for step in range(0, outcome.step + 1, validated):
        cut = tmp_path / f"cut-{step}"
        _killed_at(step, cut, config, kind)
        run, again = toy.go(cut, config)
        assert again == outcome, step
        toy.assert_same(straight, run)
        assert _end(run) == _end(straight)


def test_best_and_waited_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    """Where some validations are better and some are not, after every single one a kill."""
    config = toy.config(
        steps=30, optimizer={"lr": 0.3}, schedule={"warmup": 0}, validation={"every": 5}
    )
    straight, _ = toy.go(tmp_path / "straight", config)
    curve = [e["loss"] for e in straight.events("validation")]
    assert any(b > a for a, b in itertools.pairwise(curve))
    for step in range(0, 30, 5):
        _killed_at(step, tmp_path / "cut", config, "after save")
    run, _ = toy.go(tmp_path / "cut", config)
    toy.assert_same(straight, run)
    states = [checkpoint.newest(one.checkpoints)[0] for one in (straight, run)]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0].state["trainer"] == states[1].state["trainer"]
    assert states[0].state["trainer"]["best_step"] >= 0


def test_a_rollback_repeats_the_validation_that_its_checkpoint_does_not_hold(
    tmp_path: Path,
) -> None:
    config = toy.config(steps=12, checkpoints={"every": 4, "keep": 2}, validation={"every": 4})
    poisoned = toy.task(config)
    bad = {"left": 3}
    forward = poisoned.net.forward

    def sometimes(batch: Any, seed: int, timestep: int | None) -> Any:
        losses = forward(batch, seed, timestep)
        if torch.is_grad_enabled() and counted["updates"] > 2 * 6 and bad["left"]:
            bad["left"] -= counted["updates"] % 2 == 0
            losses = {"loss": losses["loss"] * torch.nan}
        counted["updates"] += torch.is_grad_enabled()
        return losses

    counted = {"updates": 0}
    poisoned.net.forward = sometimes
    run, outcome = toy.go(tmp_path / "run", config, toy=poisoned)
    assert outcome.reason == "finished"
    (back,) = run.events("rollback")
    told = [event["step"] for event in run.events("validation")]
    assert told.count(back["step"]) == 2
    losses = {e["loss"] for e in run.events("validation") if e["step"] == back["step"]}
    assert len(losses) == 1


def test_a_checkpoint_of_an_earlier_version_keeps_its_count(tmp_path: Path) -> None:
    """A stop wrote it behind its validation, which must not be counted twice."""
    config = toy.config(steps=60, optimizer={"lr": 1e-12}, validation={"every": 3, "patience": 5})
    _, outcome = toy.go(tmp_path / "straight", config)
    cut, stopped = toy.go(tmp_path / "cut", config, should_stop=After(6))
    file = cut.checkpoints / f"step-{stopped.step:08d}" / "manifest.json"
    told = json.loads(file.read_text())
    assert told["state"]["trainer"].pop("validated") == 6
    file.write_text(json.dumps(told))
    _, again = toy.go(tmp_path / "cut", config)
    assert again == outcome


def test_a_sample_sheet_that_a_kill_prevented_is_painted_by_the_next_start(tmp_path: Path) -> None:
    config = toy.config(steps=10, preview={"every": 5})
    painted: list[int] = []

    def paint() -> Image.Image:
        painted.append(1)
        return Image.new("RGB", (8, 8))

    task = dataclasses.replace(toy.task(config), preview=paint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_preview", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            toy.go(tmp_path / "run", config, toy=task)
    run, _ = toy.go(tmp_path / "run", config, toy=task)
    names = ["step-00000000.png", "step-00000005.png", "step-00000010.png"]
    assert sorted(file.name for file in run.previews.iterdir()) == names
    toy.go(tmp_path / "run", config, toy=task)
    assert len(painted) == 3


def test_validation_is_a_curve_and_not_noise(tmp_path: Path) -> None:
    run, _ = toy.go(tmp_path / "run", toy.config(steps=60, optimizer={"lr": 3e-2}))
    losses = [event["loss"] for event in run.events("validation")]
    assert [event["step"] for event in run.events("validation")][:3] == [0, 5, 10]
    assert losses[-1] < 0.5 * losses[0]
    frozen, _ = toy.go(tmp_path / "frozen", toy.config(steps=10, optimizer={"lr": 1e-12}))
    assert len({event["loss"] for event in frozen.events("validation")}) == 1


def test_progress_counts_pictures_and_tells_the_time_left(tmp_path: Path) -> None:
    seen: list[Progress] = []
    toy.go(tmp_path / "run", toy.config(), report=seen.append)
    trained = [p for p in seen if p.stage is Stage.TRAINING]
    assert [p.done for p in trained] == [6 * n for n in range(1, 21)]
    assert all(p.total == 120 for p in trained)
    assert all(p.seconds_left is not None for p in trained)
    forecast = next(p for p in seen if p.stage is Stage.PREPARING)
    assert "GB are free" in forecast.sentence()
    assert "at the pace of one step" in forecast.sentence()


def test_the_forecast_counts_every_part(tmp_path: Path) -> None:
    run, _ = toy.go(tmp_path / "run", toy.config(steps=1))
    (memory,) = run.events("memory")
    count = 4 * (toy.WIDTH * 8 + 8 + 8 + 1)
    assert memory["weights"] == memory["gradients"] == memory["average"] == count
    assert memory["optimizer"] == 2 * count
    parts = ("weights", "gradients", "optimizer", "average", "frozen", "activations")
    assert memory["peak"] == sum(memory[part] for part in parts)


def test_the_forecast_counts_what_does_not_learn_and_what_moving_takes() -> None:
    config = toy.config()
    net = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.BatchNorm1d(10))
    net[1].requires_grad_(False)
    weights = list(net[0].parameters())
    states = forecast.of_states(net, weights, config)
    assert states["weights"] == 4 * 110
    # Scale, shift, mean, variance, and a counter of 8 bytes.
    assert states["frozen"] == 4 * 40 + 8
    cpu = torch.device("cpu")
    # The activations of this step were smaller than the copy that the optimizer makes.
    assert forecast.told(states, 4 * 110 + 7, cpu, config)["activations"] == 4 * 110
    assert forecast.told(states, 4 * 110 + 10**6, cpu, config)["activations"] == 10**6
    alone = toy.config(optimizer={"name": "muon"}, ema={"decay": 0.0})
    assert forecast.told(states, 4 * 110 + 7, cpu, alone)["activations"] == 7


def test_a_sample_sheet_without_memory_does_not_stop_the_training(tmp_path: Path) -> None:
    def paint() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")

    config = toy.config(steps=4, preview={"every": 2})
    task = dataclasses.replace(toy.task(config), preview=paint)
    told: list[str] = []
    run, outcome = toy.go(tmp_path / "run", config, toy=task, tell=told.append)
    assert outcome.reason == "finished"
    assert [event["step"] for event in run.events("unpainted")] == [0, 2, 4]
    assert "update 0 was not painted, the memory ran out" in told[0]
    assert list(run.previews.iterdir()) == []

    def fail() -> Any:
        raise RuntimeError("something else")

    other = dataclasses.replace(toy.task(config), preview=fail)
    with pytest.raises(RuntimeError, match="something else"):
        toy.go(tmp_path / "other", config, toy=other)


def test_a_stop_before_the_first_step_leaves_a_checkpoint(tmp_path: Path) -> None:
    run, outcome = toy.go(tmp_path / "run", toy.config(), should_stop=lambda: True)
    assert (outcome.reason, outcome.step) == ("stopped", 0)
    assert [folder.name for folder in checkpoint.found(run.checkpoints)] == ["step-00000000"]


def test_a_file_called_stop_stops(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def report(progress: Progress) -> None:
        if progress.stage is Stage.TRAINING and progress.done >= 18:
            (folder / "stop").touch()

    _, outcome = toy.go(folder, toy.config(), report=report)
    assert (outcome.reason, outcome.step) == ("stopped", 3)
    _, outcome = toy.go(folder, toy.config())
    assert outcome.reason == "finished"


def test_a_full_disk_stops_with_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy.config()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    saves = []

    def usage(path: Path) -> Any:
        saves.append(path)
        return full if len(saves) == 3 else full._replace(free=10**12)

    with monkeypatch.context() as patch:
        patch.setattr("training.loop.checkpoint.shutil.disk_usage", usage)
        with pytest.raises(SaveError, match="There is no space for a checkpoint"):
            toy.go(tmp_path / "run", config)
    run = open_run(tmp_path / "run", config)
    newest, told = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert (newest.step, told) == (5, [])
    again, _ = toy.go(tmp_path / "run", config)
    straight, _ = toy.go(tmp_path / "straight", config)
    toy.assert_same(straight, again)


def test_the_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    toy.go(tmp_path / "run", toy.config(steps=2))
    with pytest.raises(RequestError, match=r"another recipe \(batch: 3 -> 4\)"):
        toy.go(tmp_path / "run", toy.config(steps=2, batch=4))
    # More updates are no other recipe.
    _, outcome = toy.go(tmp_path / "run", toy.config(steps=4))
    assert outcome.step == 4


def test_two_trainings_on_one_folder(tmp_path: Path) -> None:
    with only_one(tmp_path / "run"), pytest.raises(BusyError, match="Another training"):
        toy.go(tmp_path / "run", toy.config())


def test_fp16_needs_a_card_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="Choose bf16"):
        toy.go(tmp_path / "run", toy.config(precision="fp16"))


def test_bf16_trains(tmp_path: Path) -> None:
    run, _ = toy.go(
        tmp_path / "run", toy.config(steps=60, precision="bf16", optimizer={"lr": 0.03})
    )
    losses = [event["loss"] for event in run.events("validation")]
    assert losses[-1] < 0.6 * losses[0]


def test_no_8_bit_optimizer_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RequestError, match="pip install bitsandbytes"):
        toy.go(tmp_path / "run", toy.config(optimizer={"name": "adamw8bit"}))
