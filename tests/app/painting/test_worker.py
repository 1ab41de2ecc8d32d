"""The painting process: real, on the model that ships, killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.gallery import metadata
from app.gallery.pictures import Gallery
from app.jobs.job import Job, JobState
from app.jobs.kinds import JobControl, Kind, Lane
from app.jobs.queue import JobQueue
from app.painting import process
from app.painting.worker import WorkerRunner
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.errors import BusyError, StudioError, WorkerError
from pipelines.processes.inside import ParentPipe
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest, complete
from tests.app.painting.held import holding, may_be_held

CATALOG = Catalog()
real_main = process.main
# Only the first one of all, which `worker` starts, is started as the studio does it.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]


def main_that_may_be_held(pipe: ParentPipe, workspace: str, preload: str | None) -> None:
    """The painting process itself, which waits where a test wants it."""
    may_be_held(Path(workspace))
    real_main(pipe, workspace, preload)


@pytest.fixture(scope="module", autouse=True)
def _may_be_held() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "main", main_that_may_be_held)
        yield


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
    assert worker._child is not None
    return worker._child.pid


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
    assert [metadata.read(file).request.seed for file in files] == [5, 6]
    assert all(file.is_relative_to(settings.outputs) for file in files)
    steps = [p for p in seen if p.stage is Stage.DENOISING and p.done > 0]
    assert [p.done for p in steps if p.picture == 1] == [1, 2, 3, 4]
    # Of what comes while the first one is written, only the last is told.
    assert steps[-1].done == 4
    # The first of each picture; how many more depends on how long they take.
    assert all(p.preview for p in steps if p.done == 1)
    assert [p.picture for p in seen if p.stage is Stage.SAVING] == [1, 2]
    assert worker.state.phase == "ready"


def test_torch_stays_out_of_this_side() -> None:
    """The page's side of the module is light; the architecture tests hold the imports."""
    script = (
        "import sys, pathlib\n"
        "from app.painting.worker import WorkerRunner\n"
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


def test_stopping_reaches_the_next_step(worker: WorkerRunner, settings: Settings) -> None:
    files: list[Path] = []
    seen: list[Progress] = []
    with holding(settings.workspace, step=3):
        worker.paint(
            request(steps=200, count=3),
            report=seen.append,
            keep=lambda file: files.append(file.path),
            should_stop=lambda: any(p.done >= 2 for p in seen),
        )
    assert files == []
    assert max(p.done for p in seen) in (2, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_replaced_and_its_job_goes_on(
    worker: WorkerRunner, settings: Settings, number: signal.Signals
) -> None:
    until(lambda: worker.state.phase == "ready")
    restarts = worker.state.restarts
    jobs = JobQueue(worker, gallery=Gallery(settings.outputs))
    wanted = request(steps=8, count=2)

    def now() -> Job:
        snapshot = jobs.get(job.id, "me")
        assert snapshot is not None
        return snapshot

    def progress() -> Progress:
        return now().progress or Progress(stage=Stage.LOADING)

    with holding(settings.workspace, picture=2, step=3):
        job = jobs.submit(wanted, "me")
        until(lambda: progress().picture == 2 and progress().done >= 3)
        os.kill(pid(worker), number)
        until(lambda: worker.state.restarts == restarts + 1)
    until(lambda: not now().active)
    assert (now().state, now().error) == (JobState.DONE, None)
    assert [metadata.read(p.path).request.seed for p in now().pictures] == [5, 6]
    assert worker.state.restarts == restarts + 1
    jobs.close()


def test_a_job_whose_worker_dies_again_and_again_fails_with_its_sentence(
    worker: WorkerRunner, settings: Settings
) -> None:
    until(lambda: worker.state.phase == "ready")
    jobs = JobQueue(worker)
    killed: set[int] = set()

    def ended_by_killing() -> bool:
        child = worker._child
        if child is not None and worker.state.phase == "painting" and child.pid not in killed:
            killed.add(child.pid)
            os.kill(child.pid, signal.SIGKILL)
        now = jobs.get(job.id, "me")
        return now is not None and not now.active

    with holding(settings.workspace):
        job = jobs.submit(request(count=9), "me")
        until(ended_by_killing, 180)
    assert len(killed) == 3
    ended = jobs.wait(job.id, "me", 60)
    assert ended is not None
    assert ended.state is JobState.FAILED
    assert "killed by SIGKILL" in str(ended.error)
    again = jobs.wait(jobs.submit(request(), "me").id, "me", 60)
    assert again is not None
    assert again.state is JobState.DONE
    jobs.close()


def test_a_worker_that_cannot_live_is_not_started_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.painting.process.main", _die)
    runner = WorkerRunner(settings)
    runner.start()
    until(lambda: runner.state.restarts == 3 and runner._child is None)
    # In which a fourth one would be started.
    time.sleep(0.5)
    assert runner.state.restarts == 3
    assert runner.state.phase == "lost"
    assert "exit code 3" in runner.state.message
    with pytest.raises(WorkerError):
        paint(runner, request())
    runner.close()


def _die(*args: object) -> None:
    os._exit(3)


def test_a_model_that_kills_the_worker_does_not_stop_the_others(
    settings: Settings, tmp_path: Path
) -> None:
    """The preloaded default is broken beyond a sentence; the small model still paints."""
    runner = WorkerRunner(Settings(workspace=tmp_path))
    runner.start(preload="nano")
    # As when the system kills a worker for the memory that a large model takes while it loads.
    os.kill(pid(runner), signal.SIGKILL)
    until(lambda: runner.state.restarts == 1)
    until(lambda: runner.state.phase == "ready")
    assert paint(runner, request())[0]
    runner.close()


def test_a_refused_process_is_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = WorkerRunner(settings)

    def refuse(*args: object, **kwargs: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.process.BaseProcess.start", refuse)
        runner.start()
        assert runner.state.phase == "lost"
        with pytest.raises(WorkerError, match="could not be started"):
            paint(runner, request())
    assert paint(runner, request())[0]
    runner.close()


def test_closing_ends_worker_and_job_at_once(settings: Settings) -> None:
    runner = WorkerRunner(settings)
    runner.start(preload="nano")
    number = pid(runner)
    until(lambda: runner.state.phase == "ready")
    jobs = JobQueue(runner)
    with holding(settings.workspace):
        running = jobs.submit(request(count=9), "me")
        waiting = jobs.submit(request(), "me")
        until(lambda: runner.state.phase == "painting")
        child = runner._child
        assert child is not None
        runner.close()
        assert child.exitcode == 0, "it ended by itself, it was not killed"
        jobs.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    ended = [jobs.get(job.id, "me") for job in (running, waiting)]
    assert [job.active for job in ended if job] == [False, False]
    with pytest.raises(BusyError, match="closing"):
        jobs.submit(request(), "me")


def test_the_device_is_lent_and_taken_back(settings: Settings) -> None:
    """Nothing of the painter is left meanwhile: its process is gone, with all that it held."""
    runner = WorkerRunner(settings)
    runner.start(preload="nano")
    until(lambda: runner.state.phase == "ready")
    number, painted = pid(runner), []
    with runner.lent():
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
        assert runner.state.phase == "lent"
        assert "lent to another job" in runner.state.message
        waits = threading.Thread(target=lambda: painted.append(paint(runner, request())[0]))
        waits.start()
        waits.join(0.3)
        assert waits.is_alive(), "who wants to paint waits"
        assert runner._child is None
    waits.join(60)
    assert len(painted) == 1
    assert runner.state.restarts == 0, "it was no death"
    runner.close()


def test_a_job_of_another_kind_has_the_device_for_itself(settings: Settings) -> None:
    """The queue sees to it: whoever adds a kind of the device says no more than its lane."""
    runner = WorkerRunner(settings)
    runner.start(preload="nano")
    until(lambda: runner.state.phase == "ready")
    number, phases = pid(runner), []

    def caption(control: JobControl) -> bool:
        phases.append(runner.state.phase)
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
        return True

    kind = Kind(
        name="caption",
        lane=Lane.DEVICE,
        resumes=False,
        run=caption,
        write=dict,
        read=dict,
        title=str,
    )
    gallery = Gallery(settings.outputs)
    jobs = JobQueue(runner, gallery=gallery, kinds=[kind], lend=runner.lent, runs=False)
    made = [jobs.submit(request(), "me"), jobs.add("caption", {}, "me")]
    made.append(jobs.submit(request(), "me"))
    jobs.start()
    ended = [jobs.wait(job.id, "me", 120) for job in made]
    jobs.close()
    runner.close()
    assert [(job.state, job.error) for job in ended if job] == [("done", None)] * 3
    assert phases == ["lent"]
    assert runner.state.restarts == 0, "it was no death"


def test_a_page_that_is_killed_takes_its_worker_with_it(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from app.settings import Settings\n"
        "from app.painting.worker import WorkerRunner\n"
        "if __name__ == '__main__':\n"
        "    runner = WorkerRunner(Settings(workspace=Path(sys.argv[1])))\n"
        "    runner.start()\n"
        "    print(runner._child.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "page.py").write_text(script)
    page = subprocess.Popen(
        [sys.executable, str(tmp_path / "page.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    assert page.stdout is not None
    worker = int(page.stdout.readline())
    page.kill()
    page.communicate()

    def gone() -> bool:
        # A process that nobody waits for stays in the table as a zombie.
        status = Path(f"/proc/{worker}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    until(gone, 30)
