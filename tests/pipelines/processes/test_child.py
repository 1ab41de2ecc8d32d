"""Child processes: what they say arrives as it was, and they always end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import errors
from pipelines.errors import (
    ProcessDeathError,
    RequestError,
    SaveError,
    StudioError,
    UnknownNameError,
    WorkerError,
)
from pipelines.processes import wire
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.progress import Progress, Stage

pytestmark = pytest.mark.slow

SPEC = ChildSpec(name="pixart-test", what="The test")


def follow(
    work: Callable[..., Any], *args: Any, spec: ChildSpec = SPEC, **how: Any
) -> tuple[Any, list[Any]]:
    """The result of `work` and the events before it."""
    heard: list[Any] = []
    child = Child.start(spec, work, *args)
    try:
        told = child.follow(heard.append, **how)
    finally:
        child.close()
    assert child.exitcode is not None
    return told, heard


def count(pipe: ParentPipe, most: int) -> dict[str, int]:
    for number in range(most):
        pipe.tell("progress", done=number)
    return {"counted": most}


def fail(pipe: ParentPipe, kind: str) -> None:
    raise {
        "request": RequestError("steps", "Too many.", "Take fewer."),
        "name": UnknownNameError("model", "model", "nanu", ["nano"]),
        "save": SaveError("No space.", "Free some."),
        "fault": ZeroDivisionError("ours"),
    }[kind]


def sleep(pipe: ParentPipe, mark: str) -> None:
    try:
        pipe.tell("progress", pid=os.getpid())
        time.sleep(60)
    finally:
        Path(mark).touch()


def deaf(pipe: ParentPipe, terminates: bool) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not terminates:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.tell("progress")
    time.sleep(60)


def die(pipe: ParentPipe, how: int) -> None:
    os.kill(os.getpid(), how) if how else os._exit(3)


def write(pipe: ParentPipe) -> None:
    print("printed", file=sys.stderr)
    os.write(1, b"from C \n")


@pytest.mark.timeout(60)
def test_the_result_and_every_event_arrive_in_order() -> None:
    told, heard = follow(count, 50)
    assert told["result"] == {"counted": 50}
    assert [message["done"] for message in heard] == list(range(50))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("request", RequestError), ("name", UnknownNameError), ("save", SaveError)],
)
def test_class_field_and_sentences_of_an_error_survive(
    kind: str, expected: type[StudioError]
) -> None:
    with pytest.raises(StudioError) as mine:
        fail(ParentPipe(None), kind)  # type: ignore[arg-type]
    with pytest.raises(StudioError) as theirs:
        follow(fail, kind)
    assert type(theirs.value) is expected
    assert str(theirs.value) == str(mine.value)
    assert getattr(theirs.value, "field", None) == getattr(mine.value, "field", None)


def test_every_error_class_crosses_and_a_private_one_becomes_the_next() -> None:
    public = set(map(id, vars(errors).values()))
    for kind in [kind for kind in all_errors() if id(kind) in public]:
        error = kind.__new__(kind)
        StudioError.__init__(error, "What happened.", "What to do.")
        if isinstance(error, RequestError):
            error.field = "seed"
        again = wire.error_of(wire.error_fields(error))
        assert (type(again), vars(again)) == (kind, vars(error))

    class _PrivateError(SaveError):
        pass

    assert type(wire.error_of(wire.error_fields(_PrivateError("x")))) is SaveError
    assert type(wire.error_of({"kind": "SystemExit", "message": "x"})) is StudioError


def all_errors(kind: type[StudioError] = StudioError) -> list[type[StudioError]]:
    return [kind, *(inner for sub in kind.__subclasses__() for inner in all_errors(sub))]


def test_progress_crosses_with_its_preview() -> None:
    progress = Progress(stage=Stage.DENOISING, done=3, total=9, preview=b"\xff\xd8", note="n")
    assert wire.progress_of(wire.progress_fields(progress)) == progress


@pytest.mark.timeout(60)
def test_a_fault_of_ours_is_a_sentence_and_lies_in_the_log(tmp_path: Path) -> None:
    spec = ChildSpec(name="pixart-test", what="The test", log=tmp_path / "logs" / "test.log")
    with pytest.raises(WorkerError, match="The test failed through a fault of the studio") as error:
        follow(fail, "fault", spec=spec)
    assert str(spec.log) in str(error.value)
    assert "ZeroDivisionError: ours" in (tmp_path / "logs" / "test.log").read_text()


@pytest.mark.timeout(60)
def test_what_it_prints_lies_in_the_log_also_from_c(tmp_path: Path) -> None:
    spec = ChildSpec(name="pixart-test", what="The test", log=tmp_path / "test.log")
    follow(write, spec=spec)
    assert (tmp_path / "test.log").read_text().splitlines() == ["printed", "from C "]


@pytest.mark.timeout(60)
def test_a_stop_lets_it_clean_up(tmp_path: Path) -> None:
    child = Child.start(SPEC, sleep, str(tmp_path / "mark"))
    assert child.receive(30) is not None
    began = time.monotonic()
    assert child.follow(lambda _: None, lambda: True) is None
    child.close()
    # It sleeps for a minute.
    assert time.monotonic() - began < 30
    assert child.exitcode == 0
    assert (tmp_path / "mark").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("terminates", [True, False])
def test_whoever_does_not_stop_is_terminated_and_then_killed(terminates: bool) -> None:
    child = Child.start(SPEC, deaf, terminates)
    assert child.receive(30) == {"event": "progress"}
    # It sleeps for a minute, which is longer than this test may take.
    assert child.follow(lambda _: None, lambda: True, patience=0.3) is None
    child.close()
    assert child.exitcode == -(signal.SIGTERM if terminates else signal.SIGKILL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "words"),
    [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (0, "exit code 3")],
)
def test_a_death_is_a_sentence(how: int, words: str) -> None:
    with pytest.raises(ProcessDeathError, match=f"The test ended unexpectedly .*{words}"):
        follow(die, int(how))


@pytest.mark.timeout(60)
def test_ctrl_c_in_the_terminal_is_for_the_studio_alone(tmp_path: Path) -> None:
    child = Child.start(SPEC, sleep, str(tmp_path / "mark"))
    assert child.receive(30) is not None
    os.kill(child.pid, signal.SIGINT)
    assert not child.wait(0.5)
    child.end()
    assert (tmp_path / "mark").exists()


def test_a_process_that_the_system_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    with pytest.raises(WorkerError, match="The test could not be started"):
        Child.start(SPEC, count, 1)
