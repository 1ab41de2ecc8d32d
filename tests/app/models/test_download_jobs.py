"""Downloads of the page, against a hub on this machine: what is said, stopped, and gone on with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs import downloads
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.models.download_jobs import FileState, ModelJob, ModelJobs
from app.models.store import ModelStore
from pipelines.catalog import Catalog
from pipelines.errors import BusyError, ModelError, RequestError, UnknownNameError
from pipelines.models import conversion
from pipelines.models.transfer import StopGate
from tests import tiny
from tests.fake_hub import FakeHub
from tests.hub.conftest import BIG, Shelf, _clean, convert_for_ever, hub  # noqa: F401
from tests.hub.published import COCO, PTH, put_original

MODEL = "alpha-1024"
SPARE = "alpha-512"


def nothing(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is painted here")


def face(
    workspace: Path, changed: Callable[[], None] = lambda: None, store: JobStore | None = None
) -> tuple[ModelJobs, JobQueue]:
    """Downloads over a queue of their own."""
    models = Shelf(workspace).store
    runner = SimpleNamespace(paint=nothing)
    kinds = [downloads.question(models), downloads.kind(models, lambda: made.refresh())]
    queue = JobQueue(runner, store, kinds=kinds)
    made = ModelJobs(models, queue, changed)
    return made, queue


@pytest.fixture
def queue(tmp_path: Path, hub: FakeHub) -> Iterator[tuple[ModelJobs, JobQueue]]:  # noqa: F811
    made = face(tmp_path / "workspace")
    yield made
    made[1].close()


@pytest.fixture
def jobs(queue: tuple[ModelJobs, JobQueue]) -> ModelJobs:
    return queue[0]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def ended(jobs: ModelJobs) -> ModelJob | None:
    until(lambda: jobs.job is None or not jobs.job.active)
    return jobs.job


def asked(jobs: ModelJobs) -> ModelJob:
    jobs.ask(MODEL)
    job = ended(jobs)
    assert job is not None
    assert job.phase == "asked", job.error
    return job


def test_exact_bytes_are_said_before_anything_is_fetched(
    jobs: ModelJobs,
    hub: FakeHub,  # noqa: F811
) -> None:
    job = asked(jobs)
    assert job.left == job.total == sum(file.size for file in job.files) > 500_000
    assert [file.size for file in job.files] == sorted(file.size for file in job.files)
    assert hub.requests(BIG) == []
    assert jobs.free() > 0
    jobs.dismiss()
    assert jobs.job is None


def test_a_download_is_followed_to_its_end(jobs: ModelJobs, hub: FakeHub) -> None:  # noqa: F811
    changed: list[bool] = []
    jobs._changed = lambda: changed.append(True)
    total = asked(jobs).total

    def shown() -> ModelJob:
        job = jobs.job or fail()
        assert job.done == sum(file.done for file in job.files) <= total
        return job

    with hub.held(BIG, behind=200_000):
        jobs.download(MODEL)
        until(lambda: any(f.path == BIG and 0 < f.done < f.size for f in shown().files))
        until(lambda: shown().speed is not None and shown().seconds_left is not None)
        assert not changed
    until(lambda: not shown().active)
    job = shown()
    assert (job.phase, job.done, job.speed) == ("done", total, None)
    assert changed
    row = next(row for row in jobs.rows() if row.id == MODEL)
    assert row.state == "downloaded"


def test_a_stopped_download_goes_on(
    jobs: ModelJobs,
    hub: FakeHub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close, looked = StopGate.close, threading.Event()

    def late(gate: StopGate) -> None:
        assert looked.wait(60)
        close(gate)

    monkeypatch.setattr(StopGate, "close", late)
    total = asked(jobs).total
    with hub.held(BIG, behind=12_000):
        jobs.download(MODEL)
        until(lambda: any(f.path == BIG and f.done > 8000 for f in (jobs.job or fail()).files))
        jobs.stop()
        assert (jobs.job or fail()).phase == "stopping"
        looked.set()
        job = ended(jobs)
    assert job is not None
    assert job.phase == "stopped"
    row = next(row for row in jobs.rows() if row.id == MODEL)
    assert row.state == "known"
    assert row.arrived > 8000

    jobs.download(MODEL)
    job = ended(jobs)
    assert job is not None
    assert (job.phase, job.done) == ("done", total), job.error
    assert any(asked.range for asked in hub.requests(BIG))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_conversion_is_followed_stopped_and_gone_on_with(
    jobs: ModelJobs,
    hub: FakeHub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    if stopped:
        monkeypatch.setattr(conversion, "convert", convert_for_ever)
    size = len(put_original(hub, tiny.build(tmp_path / "tiny")))
    jobs.ask(COCO)
    job = ended(jobs)
    assert job is not None
    assert (job.phase, job.spare) == ("asked", size)
    total = job.total
    jobs.download(COCO)
    if stopped:
        until(lambda: (jobs.job or fail()).converting)
        job = jobs.job
        assert job is not None
        assert job.total == size, "what is converted is counted by itself"
        assert all(file.done == file.size for file in job.files)
        jobs.stop()
        job = ended(jobs)
        assert job is not None
        assert (job.phase, job.done, job.total) == ("stopped", total, total)
        monkeypatch.undo()
        jobs.download(COCO)
    job = ended(jobs)
    assert job is not None
    assert (job.phase, job.done, job.total, job.converting) == ("done", total, total, False)
    assert len(hub.requests(PTH)) == 1
    assert next(row for row in jobs.rows() if row.id == COCO).state == "downloaded"
    assert jobs.remove(COCO) > 500_000


def fail() -> ModelJob:
    raise AssertionError("there is no job")


def test_a_failure_is_a_sentence_and_can_be_tried_again(
    jobs: ModelJobs,
    hub: FakeHub,  # noqa: F811
) -> None:
    asked(jobs)
    hub.fail(BIG, status=404, times=9)
    jobs.download(MODEL)
    job = ended(jobs)
    assert job is not None
    assert job.phase == "failed"
    assert job.error.endswith(".")
    hub.faults.clear()
    jobs.download(MODEL)
    job = ended(jobs)
    assert job is not None
    assert job.phase == "done", job.error


def test_a_hub_that_does_not_answer_is_a_sentence(
    jobs: ModelJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    jobs.ask(MODEL)
    job = ended(jobs)
    assert job is not None
    assert job.phase == "failed"
    assert "HF_HUB_OFFLINE" in job.error


def test_one_at_a_time_and_nothing_unasked(jobs: ModelJobs, hub: FakeHub) -> None:  # noqa: F811
    with pytest.raises(RequestError, match="Nobody asked"):
        jobs.download(MODEL)
    with pytest.raises(UnknownNameError, match="alpha-512"):
        jobs.ask("alpha-511")
    asked(jobs)
    with pytest.raises(RequestError, match="Nobody asked"):
        jobs.download(SPARE)
    with hub.held(BIG, behind=4000):
        jobs.download(MODEL)
        with pytest.raises(BusyError, match="one model at a time"):
            jobs.ask(SPARE)
        with pytest.raises(BusyError, match="Stop it first"):
            jobs.remove(MODEL)
        jobs.dismiss()
        assert jobs.job is not None, "what runs cannot be forgotten"
        jobs.stop()
        job = ended(jobs)
    assert job is not None
    assert job.phase == "stopped"


def test_a_removed_model_is_gone_from_the_list(jobs: ModelJobs) -> None:
    asked(jobs)
    jobs.download(MODEL)
    ended(jobs)
    freed = jobs.remove(MODEL)
    assert freed > 500_000
    assert jobs.job is None
    assert next(row for row in jobs.rows() if row.id == MODEL).state == "known"
    with pytest.raises(ModelError, match="nothing to remove"):
        jobs.remove(MODEL)


def test_a_fault_of_ours_ends_the_download_with_a_sentence(
    jobs: ModelJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(ModelStore, "plan", broken)
    jobs.ask(MODEL)
    job = ended(jobs)
    assert job is not None
    assert job.phase == "failed"
    assert "fault of the studio" in job.error


def test_a_download_is_done_though_the_list_cannot_be_read(
    tmp_path: Path,
    hub: FakeHub,  # noqa: F811
) -> None:
    def broken() -> None:
        raise OSError("the disk is gone")

    jobs, queue = face(tmp_path / "workspace", broken)
    asked(jobs)
    jobs.download(MODEL)
    job = ended(jobs)
    queue.close()
    assert job is not None
    assert (job.phase, job.error) == ("done", "")


def test_the_catalog_hears_of_it(tmp_path: Path, hub: FakeHub) -> None:  # noqa: F811
    shelf = Shelf(tmp_path / "workspace")
    catalog = Catalog(user_models=shelf.settings.models)
    jobs, queue = face(tmp_path / "workspace", catalog.reload)
    asked(jobs)
    jobs.download(MODEL)
    ended(jobs)
    queue.close()
    assert MODEL in {spec.id for spec in catalog}
    assert FileState(path="a", size=1, done=0) != FileState(path="a", size=1, done=1)
