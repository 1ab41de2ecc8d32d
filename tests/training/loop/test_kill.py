"""Processes that die: kill -9 anywhere loses at most what came after the last checkpoint."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests import ports
from tests.training.loop import toy
from training.loop import checkpoint
from training.run import Run, open_run

SCRIPT = Path(__file__).with_name("toy_process.py")
# What `accelerate launch --multi_gpu` calls; for processors it wants MPI, which few have.
LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
QUIET = {"OMP_NUM_THREADS": "1", "ACCELERATE_DISABLE_RICH": "1"}


def start(folder: Path, *settings: str, processes: int = 1) -> subprocess.Popen[str]:
    launch = (*LAUNCH, "--master_port", str(ports.free())) if processes == 2 else ()
    return subprocess.Popen(
        [sys.executable, *launch, str(SCRIPT), str(folder), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **QUIET},
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and all that it started; launchers start sessions of their own."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone, timeout=20)
    process.communicate()


def wait(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def until(process: subprocess.Popen[str], pictures: int) -> None:
    """Reads the process's lines until it has trained on so many pictures."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= pictures:
            return
    raise AssertionError(process.communicate()[1])


def whole(folder: Path, **changes: int) -> Run:
    return open_run(folder, toy.config(**changes))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A whole ("") or sharded ("shard=1") run of two processes that nobody disturbed."""

    @cache
    def ran(setting: str) -> Run:
        folder = tmp_path_factory.mktemp("two") / "run"
        wait(start(folder, *([setting] if setting else []), processes=2))
        return whole(folder, shard=bool(setting))

    return ran


@pytest.mark.parametrize("settings", [(), ("workers=2",)])
def test_kill_9_in_the_middle_then_the_same_command_again(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    straight, _ = toy.go(tmp_path / "straight", toy.config())
    # 13 updates are in the middle of an epoch of 6 micro-batches, and 3 behind a checkpoint.
    process = start(tmp_path / "cut", "slow=100", *settings)
    until(process, 13 * 6)
    kill(process)
    run = whole(tmp_path / "cut")
    newest, told = checkpoint.newest(run.checkpoints)
    assert newest is not None
    # A slow machine may kill an update or two later; never behind the end.
    assert 10 <= newest.step < 20
    assert told == []
    wait(start(tmp_path / "cut", *settings))
    assert run.is_finished
    toy.assert_same(straight, run)


@pytest.mark.parametrize("setting", ["", "shard=1"], ids=["whole", "sharded"])
def test_two_processes_resume_to_the_bit(
    tmp_path: Path, two: Callable[[str], Run], setting: str
) -> None:
    settings = [setting] if setting else []
    process = start(tmp_path / "cut", "slow=100", *settings, processes=2)
    until(process, 12 * 12)
    kill(process)
    run = whole(tmp_path / "cut", shard=bool(setting))
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert 10 <= newest.step < 20
    wait(start(tmp_path / "cut", *settings, processes=2))
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
        process = start(tmp_path / "cut", "steps=60", "slow=15")
        until(process, 6)
        time.sleep(dice.uniform(0, 0.5))
        kill(process)
    wait(start(tmp_path / "cut", "steps=60"))
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
    process = start(tmp_path / "cut", *settings, f"die={validation}")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    run = Run(tmp_path / "cut", straight.config)
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 5 * (validation - 1)
    wait(start(tmp_path / "cut", *settings))
    assert run.events("end")[-1]["step"] == outcome.step
    toy.assert_same(straight, run)


def test_a_stop_signal_is_obeyed_within_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "steps=500", "slow=10")
    until(process, 30)
    (folder / "stop").touch()
    wait(process)
    run = whole(folder, steps=500)
    (stop,) = run.events("stop")
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == stop["step"] < 500
