"""The command line in a process of its own that need not load torch first.

`launch.py generate` spends eight seconds of processor time on imports before it paints the first
step, and two on taking them apart. One process that has imported everything stays for all tests of
a session (the fork server of `multiprocessing`), and each command runs in a fork of it: with its
own standard streams, environment, working folder, exit code and death. Tests whose subject is the
start itself (what Python and the libraries read from the environment, signals in the middle of an
import, limits of the address space) start a process in the ordinary way.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

import launch as launcher
from tests import ports

ROOT = Path(__file__).resolve().parents[1]


def launch(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240.0,
    terminal: str | None = None,
    before: Callable[[], object] = int,
) -> subprocess.CompletedProcess[str]:
    """`python launch.py arguments...` to its end, as `subprocess.run` would.

    Standard error goes to `terminal`, the path of one, instead of being returned. `before`, a
    function at the top of a module, is called in the fork first.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        where = _Where(
            cwd=str(cwd or Path.cwd()),
            env=dict(os.environ if env is None else env),
            out=str(out),
            err=terminal or str(err),
        )
        process = _forks().Process(target=_command, args=(arguments, where, before))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["launch.py", *arguments], timeout)
        said = [file.read_text("utf-8") if file.exists() else "" for file in (out, err)]
    return subprocess.CompletedProcess(["launch.py", *arguments], process.exitcode, *said)


class Started:
    """A process that calls a function at the top of a module: followed, killed, waited for."""

    def __init__(self, function: Callable[..., object], *args: str, **env: str) -> None:
        self._folder = Path(tempfile.mkdtemp())
        out, self._err = self._folder / "out", self._folder / "err"
        os.mkfifo(out)
        where = _Where(
            cwd=str(Path.cwd()), env={**os.environ, **env}, out=str(out), err=str(self._err)
        )
        self._process = _forks().Process(target=_call, args=(function, args, where))
        self._process.start()
        # Waits until the process has opened its end.
        self.stdout = open(out, encoding="utf-8")
        self.stderr = ""

    @property
    def pid(self) -> int:
        """The number of the process."""
        return int(self._process.pid)

    def kill(self) -> None:
        """SIGKILL to the process and all that it has started; `wait` for its end."""
        process = psutil.Process(self._process.pid)
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; below zero, the signal that ended it. Reads what it still prints;
        what it said on standard error is in `stderr` from now on."""
        self.stdout.read()
        self.stdout.close()
        self._process.join(timeout)
        code: int | None = self._process.exitcode
        assert code is not None, "it does not end"
        self.stderr = self._err.read_text("utf-8")
        shutil.rmtree(self._folder)
        return code


def places(processes: int) -> list[dict[str, str]]:
    """What `torch.distributed.run` tells each of the processes that train together."""
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ports.free()),
    }
    return [shared | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]


@dataclass(frozen=True, kw_only=True)
class _Where:
    """What a start gives to a process."""

    cwd: str
    env: dict[str, str]
    out: str
    err: str


@functools.cache
def _forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warmed"])
    # Where it looks for that module; it has none of the search path of this process.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        forkserver.ensure_running()
    return context


def serve_forks() -> None:
    """From now on this process has a fork server that has loaded what it has loaded itself: a fork
    of it. Called before there are threads."""
    context = multiprocessing.get_context("forkserver")
    resource_tracker.ensure_running()
    with mock.patch.object(util, "spawnv_passfds", _fork_server):
        forkserver.ensure_running()
    _forks.cache_clear()
    assert context is _forks()


def _fork_server(program: bytes, arguments: list[str], passed: list[int]) -> int:
    """What starts the fork server of `multiprocessing`, but as a fork; its number."""
    listener, alive = passed
    if (process := os.fork()) != 0:
        return process
    # Otherwise it would hold its own end of the pipe that tells it of the end of the others.
    kept = {listener, alive, resource_tracker.getfd()}
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
        with suppress(OSError):
            os.close(number)
    # Nor does anybody wait for what it never says.
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    forkserver.main(listener, alive, [])
    os._exit(0)


class Children:
    """Stands for the context of `multiprocessing` that the studio's child processes come from."""

    @staticmethod
    def Pipe() -> Any:
        return _forks().Pipe()

    @staticmethod
    def Process(*, target: Callable[..., object], args: tuple[Any, ...], **more: Any) -> Any:
        given = (dict(os.environ), str(Path.cwd()), target, args)
        return _forks().Process(target=_born, args=given, **more)


def _born(
    env: dict[str, str], cwd: str, target: Callable[..., object], args: tuple[Any, ...]
) -> None:
    _as_begun(env, cwd)
    target(*args)


def _as_begun(env: dict[str, str], cwd: str) -> None:
    """What a new process has of the one that starts it, and a fork of another one has not."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    # Otherwise those that it starts come from a process that forks, too, and from another one.
    multiprocessing.set_start_method(None, force=True)


def _command(arguments: tuple[str, ...], where: _Where, before: Callable[[], object]) -> None:
    """What the fork of `launch` runs."""
    _settle(where)
    sys.argv = [str(launcher.__file__), *arguments]
    # What a process that it starts by "spawn" imports once more.
    sys.modules["__main__"] = launcher
    before()
    sys.exit(launcher.main(list(arguments)))


def _call(function: Callable[..., object], args: tuple[str, ...], where: _Where) -> None:
    """What the fork of `Started` runs."""
    _settle(where)
    function(*args)


def _settle(where: _Where) -> None:
    """What a new process finds made for it."""
    for target, file in enumerate((where.out, where.err), 1):
        stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY)
        os.dup2(stream, target)
        os.close(stream)
    # Those that were made before know nothing of a terminal.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(
        2, "w", encoding="utf-8", closefd=False, errors="backslashreplace", buffering=1
    )
    _as_begun(where.env, where.cwd)
