"""ZeroGPU: the same runner inside a function that a platform runs in a fork of the page."""

from __future__ import annotations

import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app import hosting
from app.gallery import metadata
from app.gallery.pictures import PictureFile
from app.jobs.queue import JobQueue
from app.painting import zero
from app.painting.zero import Failed
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.memory.planning import Machine
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest, complete
from tests import tiny
from tests.app.painting.held import holding, may_be_held

ROOT = Path(__file__).resolve().parents[3]
FAKE = ROOT / "tests" / "fake_spaces"
HOUR = 3600
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ZeroGPU is Linux, and forks")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A workspace with a small model of its own."""
    workspace = tmp_path_factory.mktemp("zero")
    tiny.build(workspace / "models" / "tiny")
    return Settings(workspace=workspace)


def request(settings: Settings, **values: object) -> GenerationRequest:
    given = {"prompt": "a red apple", "model": "tiny", "seed": 3, "steps": 4, **values}
    return complete(given, Catalog(user_models=settings.models))


class Page:
    """The driver in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.log = settings.workspace / "spaces.jsonl"
        self.refusal = self.log.with_name(self.log.name + ".refuse")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.app.painting.zero_page", str(settings.workspace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(FAKE),
                "SPACES_ZERO_GPU": "true",
                "FAKE_SPACES_LOG": str(self.log),
                "SPACE_ID": "me/studio",
            },
        )
        self.started = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def ask(self, **values: object) -> None:
        assert self.process.stdin is not None
        given = {"prompt": "a red apple", "model": "tiny", "seed": 3, "steps": 4, **values}
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()

    def rest(self) -> list[dict[str, Any]]:
        events = [self.read()]
        while events[-1]["event"] != "end":
            events.append(self.read())
        return events

    def paint(self, **values: object) -> list[dict[str, Any]]:
        self.ask(**values)
        return self.rest()

    def lent(self) -> list[dict[str, Any]]:
        """What the platform lent so far."""
        rows = [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]
        return [row for row in rows if "lent" in row]


@pytest.fixture(scope="module")
def page(settings: Settings) -> Iterator[Page]:
    page = Page(settings)
    yield page
    page.process.communicate(timeout=30)
    assert page.process.returncode == 0


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def test_it_paints_in_the_fork_and_previews_stream(page: Page, settings: Settings) -> None:
    assert (page.started["device"], page.started["phase"]) == ("ZeroGPU", "ready")
    events = page.paint(count=2)
    steps = [e for e in of(events, "progress") if e["stage"] == Stage.DENOISING and e["done"]]
    done = [e["done"] for e in steps]
    assert done[:4] == [1, 2, 3, 4]
    # Of what comes of the second while the first is written, only the last is told.
    assert done[4:] == sorted(set(done[4:]))
    assert done[-1] == 4
    assert all(e["preview"] for e in steps if e["done"] == 1)
    assert {e["phase"] for e in of(events, "progress")} == {"painting"}
    files = [Path(e["path"]) for e in of(events, "picture")]
    assert [metadata.read(file).request.seed for file in files] == [3, 4]
    assert all(file.is_relative_to(settings.outputs) for file in files)
    # In between, and not at the end.
    kinds = [event["event"] for event in events]
    assert kinds.index("picture") < len(kinds) - 1 - kinds[::-1].index("progress")
    end = events[-1]
    assert end["phase"] == "ready"
    assert end["machine"]["name"].startswith("ZeroGPU, ")


def test_nothing_was_loaded_before_the_platform_and_only_the_fork_paints(
    page: Page, settings: Settings
) -> None:
    first = json.loads(page.log.read_text("utf-8").splitlines()[0])
    assert first["imported"]
    assert first["torch"] is False
    page.paint()
    lent = page.lent()[-1]
    assert lent["fork"] != page.started["here"]
    assert zero.seconds(request(settings), 0) <= lent["lent"] < zero.LONGEST


def test_a_fork_that_is_met_again_has_its_model_still(page: Page) -> None:
    page.paint()
    events = page.paint(seed=8)
    forks = [row["fork"] for row in page.lent()[-2:]]
    assert forks[0] == forks[1]
    assert Stage.LOADING not in {e["stage"] for e in of(events, "progress")}


def test_the_picture_is_that_of_any_other_runner(page: Page, settings: Settings) -> None:
    """In a process of its own, as the worker: the number of threads decides the last bit."""
    events = page.paint(seed=21)
    ours = Path(of(events, "picture")[0]["path"])
    other = subprocess.run(
        [
            *[sys.executable, "launch.py", "generate", "a red apple", "--model", "tiny"],
            *["--seed", "21", "--steps", "4", "--workspace", str(settings.workspace)],
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = Path(other.stdout.strip())
    assert ours != theirs
    assert metadata.read(ours).weights == metadata.read(theirs).weights
    assert ours.read_bytes() == theirs.read_bytes()


def test_stopping_reaches_the_fork_and_the_next_job_paints(page: Page, settings: Settings) -> None:
    with holding(settings.workspace, step=3):
        events = page.paint(steps=90, count=2, stop_at=2)
    assert of(events, "picture") == []
    assert of(events, "failed") == []
    assert max(e["done"] for e in of(events, "progress")) in (2, 3)
    assert of(page.paint(), "picture")


def test_a_fault_is_its_sentence(page: Page) -> None:
    (failed,) = of(page.paint(init="0123456789abcdef.png"), "failed")
    assert "not there any more" in failed["said"]
    assert of(page.paint(), "picture")


def test_a_visitor_without_time_hears_what_the_platform_says(page: Page) -> None:
    page.refusal.touch()
    events = page.paint()
    page.refusal.unlink()
    (failed,) = of(events, "failed")
    assert failed["kind"] == "WorkerError"
    assert "exceeded your free ZeroGPU quota (60s requested vs. 1s left)" in failed["said"]
    assert events[-1]["phase"] == "ready"


def test_a_fork_that_is_ended_is_said_and_replaced(page: Page, settings: Settings) -> None:
    with holding(settings.workspace, step=2):
        page.ask(steps=90, count=2)
        while (event := page.read())["event"] != "progress" or event["done"] < 2:
            pass
        fork = page.lent()[-1]["fork"]
        os.kill(fork, signal.SIGKILL)
        (failed,) = of(page.rest(), "failed")
    assert "GPU task aborted" in failed["said"]
    assert of(page.paint(), "picture")
    assert page.lent()[-1]["fork"] != fork


def test_seconds_follow_the_work_and_end_where_the_platform_ends(settings: Settings) -> None:
    few, many = request(settings), request(settings, steps=100, count=4, size="256x256")
    assert zero.seconds(few, 0) < zero.seconds(many, 0) <= zero.LONGEST
    assert zero.seconds(few, 0) < zero.seconds(few, 20_000_000_000) <= zero.LONGEST
    assert zero.seconds(request(settings, steps=200, count=64), 0) == zero.LONGEST


def test_out_of_time_is_a_sentence_and_keeps_what_is_finished(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.engine import Engine

    monkeypatch.setattr(Engine, "generate", Engine.generate)
    may_be_held(settings.workspace)
    fork = zero._Fork(settings)
    news: list[Any] = []
    # The second one is not done before anybody heard of the first.
    with holding(settings.workspace, picture=2):
        for one in fork.paint(request(settings, count=4), HOUR):
            news.append(one)
            if isinstance(one, PictureFile):
                # From now on no time is left.
                monkeypatch.setattr(zero, "time", SimpleNamespace(monotonic=lambda: float("inf")))
    assert isinstance(news[0], Machine)
    assert len([one for one in news if isinstance(one, PictureFile)]) == 1
    assert isinstance(news[-1], Failed)
    assert "time" in news[-1].error["message"]


def test_time_that_ends_with_the_last_picture_is_no_failure(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    news = []
    for one in zero._Fork(settings).paint(request(settings), HOUR):
        news.append(one)
        if isinstance(one, Progress) and one.stage is Stage.SAVING:
            monkeypatch.setattr("app.painting.zero.time.monotonic", lambda: float("inf"))
    assert isinstance(news[-1], PictureFile)


def test_closing_the_generator_ends_the_painter(settings: Settings) -> None:
    running = zero._Fork(settings).paint(request(settings, steps=90), HOUR)
    while not (isinstance(one := next(running), Progress) and one.done):
        pass
    running.close()
    assert "painter" not in {thread.name for thread in threading.enumerate()}


def test_elsewhere_nothing_of_it_is_imported(tmp_path: Path) -> None:
    """Also where the package is there: on a Space without ZeroGPU, and at home."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from app.settings import Settings\n"
        "from app.parts import assemble\n"
        "runner = assemble(Settings(workspace=Path(sys.argv[1]))).worker\n"
        "print(type(runner).__name__, 'spaces' in sys.modules, 'torch' in sys.modules)"
    )
    for variables in ({}, {"SPACE_ID": "me/studio"}, {"SPACES_ZERO_GPU": "false"}):
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(FAKE), **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.split() == ["WorkerRunner", "False", "False"]


def test_zerogpu_without_its_package_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert hosting.zero_gpu() is None
    assert "its package is not there" in caplog.text


def test_a_job_runs_in_the_context_of_who_asked(settings: Settings) -> None:
    """ZeroGPU reads from it whose time a call takes."""
    visitor: contextvars.ContextVar[str] = contextvars.ContextVar("visitor", default="nobody")
    seen: list[str] = []

    class Runner:
        def paint(self, request: GenerationRequest, **how: Any) -> None:
            seen.append(visitor.get())

    jobs = JobQueue(Runner())
    for name in ("ann", "bob"):
        visitor.set(name)
        job = jobs.submit(request(settings), name)
        jobs.wait(job.id, name, 30)
    visitor.set("nobody")
    jobs.close()
    assert seen == ["ann", "bob"]
