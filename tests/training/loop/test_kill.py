"""Processes that die: kill -9 anywhere loses at most what came after the last checkpoint."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.training.loop import toy, toy_process
from training.loop import checkpoint
from training.run import Run, open_run

pytestmark = pytest.mark.slow


class Training:
    """The toy training in a process of its own, or in two that share it."""

    def __init__(self, folder: Path, *settings: str, processes: int = 1) -> None:
        places: list[dict[str, str]] = [{}] if processes == 1 else warm.places(processes)
        self._processes = [
            warm.Started(toy_process.main, str(folder), *settings, **variables)
            for variables in places
        ]
        self.stdout = self._processes[0].stdout

    def kill(self) -> None:
        """SIGKILL to all of them and to what they have started."""
        for process in self._processes:
            process.kill()
        self.wait()

    def wait(self) -> list[int]:
        """The exit codes."""
        return [process.wait() for process in self._processes]

    @property
    def said(self) -> str:
        """What they have said on standard error."""
        return "".join(process.stderr for process in self._processes)


def finish(training: Training) -> None:
    codes = training.wait()
    assert not any(codes), training.said


def until(training: Training, pictures: int) -> None:
    """Reads the lines of the training until it has seen so many pictures."""
    for line in training.stdout:
        if int(line) >= pictures:
            return
    training.wait()
    raise AssertionError(training.said)


def whole(folder: Path, **changes: int) -> Run:
    return open_run(folder, toy.config(**changes))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A whole ("") or sharded ("shard=1") run of two processes that nobody disturbed."""

    @cache
    def ran(setting: str) -> Run:
        folder = tmp_path_factory.mktemp("two") / "run"
        finish(Training(folder, *([setting] if setting else []), processes=2))
        return whole(folder, shard=bool(setting))

    return ran


@pytest.mark.parametrize("settings", [(), ("workers=2",)])
def test_kill_9_in_the_middle_then_the_same_command_again(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    straight, _ = toy.go(tmp_path / "straight", toy.config())
    # 13 updates are in the middle of an epoch of 6 micro-batches, and 3 behind a checkpoint.
    training = Training(tmp_path / "cut", f"hold={13 * 6}", *settings)
    until(training, 13 * 6)
    training.kill()
    run = whole(tmp_path / "cut")
    newest, told = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 10
    assert told == []
    finish(Training(tmp_path / "cut", *settings))
    assert run.is_finished
    toy.assert_same(straight, run)


@pytest.mark.parametrize("setting", ["", "shard=1"], ids=["whole", "sharded"])
def test_two_processes_resume_to_the_bit(
    tmp_path: Path, two: Callable[[str], Run], setting: str
) -> None:
    settings = [setting] if setting else []
    training = Training(tmp_path / "cut", f"hold={12 * 12}", *settings, processes=2)
    until(training, 12 * 12)
    training.kill()
    run = whole(tmp_path / "cut", shard=bool(setting))
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 10
    finish(Training(tmp_path / "cut", *settings, processes=2))
    toy.assert_same(two(setting), run)
    assert run.events("start")[0]["world"] == 2


def test_sharded_processes_learn_what_whole_ones_learn(two: Callable[[str], Run]) -> None:
    """The same numbers up to the order of sums, in files of the same form, from less memory."""
    both = two(""), two("shard=1")
    for name in ("model", "ema", "optimizer-0"):
        a, b = (checkpoint.read(run.checkpoints / "step-00000020").tensors(name) for run in both)
        assert list(a) == list(b)
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-3, atol=1e-5)
    results = [load_file(run.result / "toy.safetensors") for run in both]
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=1e-5)
    held = [run.events("memory")[0]["weights"] for run in both]
    assert held[1] < held[0]


def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    """Three kills at random moments; kill_many.py does it as often as one likes."""
    dice = random.Random(7)
    straight, _ = toy.go(tmp_path / "straight", toy.config(steps=60))
    for _ in range(3):
        # It does not come to its end, however late the kill is.
        training = Training(tmp_path / "cut", "steps=60", "slow=15", f"hold={59 * 6}")
        until(training, 6)
        time.sleep(dice.uniform(0, 0.5))
        training.kill()
    finish(Training(tmp_path / "cut", "steps=60"))
    toy.assert_same(straight, whole(tmp_path / "cut", steps=60))


@pytest.mark.parametrize("validation", [2, 4])
def test_kill_9_behind_a_checkpoint_keeps_the_patience(tmp_path: Path, validation: int) -> None:
    """As a validation begins, the checkpoint of that update is just there and does not hold it."""
    straight, outcome = toy.go(
        tmp_path / "straight",
        toy.config(steps=60, optimizer={"lr": 1e-12}, validation={"every": 5, "patience": 3}),
    )
    assert (outcome.reason, outcome.step) == ("patience", 15)
    settings = ("steps=60", "patience=3")
    training = Training(tmp_path / "cut", *settings, f"die={validation}")
    assert training.wait() == [-signal.SIGKILL]
    run = Run(tmp_path / "cut", straight.config)
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 5 * (validation - 1)
    finish(Training(tmp_path / "cut", *settings))
    assert run.events("end")[-1]["step"] == outcome.step
    toy.assert_same(straight, run)


def test_a_stop_signal_is_obeyed_within_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    training = Training(folder, "steps=100000", "slow=10")
    until(training, 30)
    (folder / "stop").touch()
    finish(training)
    run = whole(folder, steps=100000)
    (stop,) = run.events("stop")
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == stop["step"] < 100000
