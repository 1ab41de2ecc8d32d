"""The painting process: real, on the model that ships, killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import metadata
from app.jobs import Job, JobQueue, JobState
from app.settings import Settings
from app.worker import WorkerRunner
from pipelines.catalog import Catalog
from pipelines.errors import StudioError, WorkerError
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest, complete

CATALOG = Catalog()


def request(**values: object) -> GenerationRequest:
    return complete({"prompt": "a red apple", "seed": 5, "steps": 4, **values}, CATALOG)


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(workspace=tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[WorkerRunner]:
    runner = WorkerRunner(settings)
    runner.start(preload="nano")
    yield runner
    runner.close()


def pid(worker: WorkerRunner) -> int:
    process = worker._process
    assert process is not None
    assert process.pid is not None
    return int(process.pid)


def paint(worker: WorkerRunner, wanted: GenerationRequest) -> tuple[list[Path], list[Progress]]:
    files: list[Path] = []
    seen: list[Progress] = []
    worker.paint(
        wanted,
        report=seen.append,
        keep=lambda file: files.append(file.path),
        should_stop=lambda: False,
    )
    return files, seen


def test_it_gets_ready_behind_the_page_and_paints(worker: WorkerRunner, settings: Settings) -> None:
    until(lambda: worker.state.phase == "ready")
    assert worker.state.device
    files, seen = paint(worker, request(count=2))
    assert [metadata.read(file).seed for file in files] == [5, 6]
    assert all(file.is_relative_to(settings.outputs) for file in files)
    assert [p.preview is not None for p in seen if p.stage is Stage.DENOISING and p.done > 0]
    assert any(p.preview for p in seen)
    assert worker.state.phase == "ready"


def test_torch_stays_out_of_this_side() -> None:
    """The page's side of the module is light; the architecture tests hold the imports."""
    import subprocess

    script = (
        "import sys, pathlib\n"
        "from app.worker import WorkerRunner\n"
        "from app.settings import Settings\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_failure_is_its_sentence_and_the_next_job_works(
    worker: WorkerRunner, settings: Settings
) -> None:
    with pytest.raises(StudioError, match="not there any more"):
        paint(worker, request(init="0123456789abcdef.png"))
    assert paint(worker, request())[0]


def test_disk_trouble_fails_the_job_and_keeps_earlier_pictures(
    worker: WorkerRunner, settings: Settings
) -> None:
    kept = sorted(settings.outputs.rglob("*.png"))
    hidden = settings.outputs.with_name("outputs-before")
    settings.outputs.rename(hidden)
    settings.outputs.write_text("in the way")
    try:
        with pytest.raises(StudioError, match=r"cannot be made|is a file"):
            paint(worker, request())
    finally:
        settings.outputs.unlink()
        hidden.rename(settings.outputs)
    assert sorted(settings.outputs.rglob("*.png")) == kept
    assert paint(worker, request())[0]


def test_stopping_reaches_the_next_step(worker: WorkerRunner) -> None:
    files: list[Path] = []
    seen: list[Progress] = []
    worker.paint(
        request(steps=200, count=3),
        report=seen.append,
        keep=lambda file: files.append(file.path),
        should_stop=lambda: any(p.done >= 2 for p in seen),
    )
    assert files == []
    assert max(p.done for p in seen) < 150


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_said_replaced_and_the_next_job_works(
    worker: WorkerRunner, number: signal.Signals
) -> None:
    until(lambda: worker.state.phase == "ready")
    restarts = worker.state.restarts
    jobs = JobQueue(worker)
    job = jobs.submit(request(steps=200, count=2), "me")

    def now() -> Job:
        snapshot = jobs.get(job.id, "me")
        assert snapshot is not None
        return snapshot

    until(lambda: bool(now().progress and now().progress.done >= 3))  # type: ignore[union-attr]
    os.kill(pid(worker), number)
    until(lambda: not now().active)
    assert now().state is JobState.FAILED
    assert now().error is not None
    assert f"killed by {number.name}" in now().error  # type: ignore[operator]
    assert "press Generate again" in now().error  # type: ignore[operator]
    assert worker.state.restarts == restarts + 1
    again = jobs.submit(request(), "me")
    until(lambda: not (jobs.get(again.id, "me") or again).active)
    done = jobs.get(again.id, "me")
    assert done is not None
    assert (done.state, len(done.pictures)) == (JobState.DONE, 1)
    jobs.close()


def test_a_worker_that_cannot_live_is_not_started_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.main", _die)
    runner = WorkerRunner(settings)
    runner.start()
    until(lambda: runner.state.restarts == 3 and runner._process is None)
    time.sleep(0.5)
    assert runner.state.phase == "lost"
    assert "exit code 3" in runner.state.message
    with pytest.raises(WorkerError):
        paint(runner, request())
    runner.close()


def _die(*args: object) -> None:
    os._exit(3)


def test_the_worker_ends_with_the_page(settings: Settings) -> None:
    runner = WorkerRunner(settings)
    runner.start()
    number = pid(runner)
    until(lambda: runner.state.phase != "starting")
    closer = threading.Thread(target=runner.close)
    closer.start()
    closer.join(timeout=10)
    assert not closer.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
