"""Exports of the page: one each, followed, stopped, fetched by whoever has the link, swept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app import scratch
from app.gallery.exports import export, formats
from app.gallery.exports.export_jobs import ExportJob, ExportJobs
from app.gallery.index import GalleryIndex, IndexedPicture
from app.jobs import exports, joblist
from app.jobs.exports import ExportOrder
from app.jobs.queue import JobQueue
from pipelines.catalog import ROOT
from pipelines.errors import BusyError, RecipeError, RequestError
from tests.app.gallery.test_index import put

NAME = "2025-01-01/000000-1-000000.png"


ALL = ExportOrder(format="zip", everybodys=True)


class Exports:
    """Exports over a queue of their own; what they find can be changed."""

    def __init__(self, folder: Path, pictures: Sequence[IndexedPicture]) -> None:
        self.folder, self.pictures = folder / "exports", pictures
        self.fault: Exception | None = None
        kinds = [exports.kind(self.folder, self.find)]
        self.queue = JobQueue(SimpleNamespace(paint=None), kinds=kinds)
        self.jobs = ExportJobs(self.folder, self.queue)

    def find(self, order: ExportOrder, owner: str) -> Sequence[IndexedPicture]:
        if self.fault is not None:
            raise self.fault
        return self.pictures

    def files(self) -> list[Path]:
        return list(scratch.folder(self.folder).iterdir())


@pytest.fixture
def pictures(tmp_path: Path) -> Sequence[IndexedPicture]:
    put(tmp_path / "outputs", NAME, "a red fox")
    index = GalleryIndex(tmp_path / "outputs", tmp_path / "gallery.db")
    index.sync()
    return index.search().entries


@pytest.fixture
def made(tmp_path: Path, pictures: Sequence[IndexedPicture]) -> Iterator[Exports]:
    made = Exports(tmp_path, pictures)
    yield made
    made.queue.close()


@pytest.fixture
def jobs(made: Exports) -> ExportJobs:
    return made.jobs


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Exports wait for it, but hear a stop."""
    opened = threading.Event()
    write = export.export

    def slowly(*arguments: Any, should_stop: Callable[[], bool], **more: Any) -> Any:
        while not opened.wait(0.01) and not should_stop():
            pass
        return write(*arguments, should_stop=should_stop, **more)

    monkeypatch.setattr(export, "export", slowly)
    return opened


def ended(jobs: ExportJobs, owner: str) -> ExportJob:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        job = jobs.job(owner)
        assert job is not None
        if not job.active:
            return job
        time.sleep(0.01)
    raise AssertionError("the export did not end")


def test_an_export_is_fetched_by_its_token_and_goes_with_its_note(
    made: Exports, jobs: ExportJobs
) -> None:
    assert jobs.job("me") is None
    jobs.start(ALL, "me")
    job = ended(jobs, "me")
    assert (job.phase, job.error) == ("done", None)
    file = jobs.file(job.token)
    assert file.name.startswith("pictures-")
    with zipfile.ZipFile(file) as archive:
        assert NAME in archive.namelist()
    for token in ("", "0" * 32, "../" + job.token, job.token.upper()):
        with pytest.raises(RecipeError):
            jobs.file(token)
    jobs.dismiss("me")
    assert jobs.job("me") is None
    assert made.files() == []
    with pytest.raises(RecipeError, match="not there any more"):
        jobs.file(job.token)


@pytest.mark.parametrize("format", list(formats.FORMATS))
def test_every_format_is_one_file(jobs: ExportJobs, format: str) -> None:
    jobs.start(replace(ALL, format=format, strip=True), "me")
    job = ended(jobs, "me")
    assert job.phase == "done", job.error
    assert jobs.file(job.token).is_file()


def test_a_new_export_takes_the_place_of_the_last(made: Exports, jobs: ExportJobs) -> None:
    jobs.start(ALL, "me")
    first = ended(jobs, "me")
    jobs.start(replace(ALL, format="html"), "me")
    second = ended(jobs, "me")
    assert len(made.files()) == 1
    assert jobs.file(second.token).suffix == ".html"
    with pytest.raises(RecipeError):
        jobs.file(first.token)


def test_copies_of_an_export_take_the_place_of_the_last(made: Exports, jobs: ExportJobs) -> None:
    jobs.start(replace(ALL, everybodys=False), "me")
    first = ended(jobs, "me")
    jobs.start(ALL, "another")
    ended(jobs, "another")
    for _ in range(4):
        made.queue.obey("duplicate", ended(jobs, "me").token, owner="me")
    last = ended(jobs, "me")
    assert last.token != first.token
    assert [job.id for job in made.queue.jobs("me")] == [last.token]
    assert sorted(file.name for file in made.files()) == sorted(
        [last.token, ended(jobs, "another").token]
    )
    assert jobs.file(last.token).is_file()


@pytest.mark.parametrize("verb", ["retry", "duplicate"])
def test_pictures_of_everybody_are_not_exported_anew_by_a_visitor(
    made: Exports, jobs: ExportJobs, verb: str
) -> None:
    made.fault = ZeroDivisionError("ours")
    jobs.start(ALL, "me", trusted=True)
    failed = ended(jobs, "me")
    made.fault = None
    with pytest.raises(RequestError, match="what others own"):
        made.queue.obey(verb, failed.token, owner="me")
    assert ended(jobs, "me").phase == "failed"
    made.queue.obey(verb, failed.token)
    assert ended(jobs, "me").phase == "done"


def test_files_are_deleted_without_the_lock_of_the_queue(
    made: Exports, jobs: ExportJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblist, "MAX_KEPT", 1)
    delete, free = shutil.rmtree, []

    def slowly(*arguments: Any, **how: Any) -> None:
        asked = threading.Thread(target=made.queue.jobs, daemon=True)
        asked.start()
        asked.join(20)
        free.append(not asked.is_alive())
        delete(*arguments, **how)

    for owner in ("a", "b", "c"):
        jobs.start(ALL, owner)
        ended(jobs, owner)
    monkeypatch.setattr(shutil, "rmtree", slowly)
    jobs.start(ALL, "a")
    ended(jobs, "a")
    assert free
    assert all(free)
    assert len(made.files()) <= 3


def test_a_stop_leaves_nothing(made: Exports, jobs: ExportJobs, gate: threading.Event) -> None:
    jobs.start(ALL, "me")
    with pytest.raises(BusyError, match="being exported already"):
        jobs.start(ALL, "me")
    jobs.dismiss("me")
    assert jobs.job("me") is not None, "what runs is not forgotten"
    jobs.stop("somebody else")
    jobs.stop("me")
    assert ended(jobs, "me").phase == "stopped"
    assert not list(made.folder.rglob("*.zip"))


def test_others_wait_for_their_turn_and_one_cannot_have_two(
    made: Exports, jobs: ExportJobs, gate: threading.Event
) -> None:
    for i in range(6):
        jobs.start(ALL, f"owner {i}")
    assert [job.state for job in made.queue.jobs()][1:] == ["waiting"] * 5
    mine = made.queue.jobs("owner 3")[0]
    with pytest.raises(BusyError, match="waits or runs already"):
        made.queue.obey("duplicate", mine.id, owner="owner 3")
    gate.set()
    for i in range(6):
        assert ended(jobs, f"owner {i}").phase == "done"


def test_failures_end_with_a_sentence(made: Exports, jobs: ExportJobs) -> None:
    with pytest.raises(RequestError, match="There is no format"):
        jobs.start(replace(ALL, format="gif"), "me")
    with pytest.raises(RequestError, match="no such picture"):
        jobs.start(replace(ALL, names=("../../etc/passwd",)), "me")
    with pytest.raises(RequestError, match="more than 5,000"):
        jobs.start(replace(ALL, names=(NAME,) * 5001), "me")
    assert jobs.job("me") is None
    made.pictures = ()
    jobs.start(ALL, "me")
    assert "no picture to export" in str(ended(jobs, "me").error)
    made.fault = ZeroDivisionError("ours")
    jobs.start(ALL, "me")
    job = ended(jobs, "me")
    assert job.phase == "failed"
    assert "fault of the studio (ZeroDivisionError('ours'))" in str(job.error)


def test_closing_stops_and_sweeps(made: Exports, jobs: ExportJobs, gate: threading.Event) -> None:
    jobs.start(ALL, "me")
    made.queue.close()
    jobs.close()
    assert not ended(jobs, "me").done
    assert made.files() == []


def test_a_killed_studio_leaves_nothing(tmp_path: Path) -> None:
    """What lies in its own folder goes at the next start, what others have put there by its age."""
    script = "from pathlib import Path; from app import scratch; import os, sys;"
    script += "print(scratch.folder(Path(sys.argv[1])), flush=True); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    killed = Path(done.stdout.strip())
    assert killed.parent == tmp_path
    mine = scratch.folder(tmp_path)
    new, old = tmp_path / ("b" * 32), tmp_path / ("a" * 32)
    for path in (killed, mine, new, old):
        path.mkdir(exist_ok=True)
        (path / "pictures.zip").write_bytes(b"x")
    for path in (old / "pictures.zip", old):
        os.utime(path, (0, 0))
    queue = JobQueue(SimpleNamespace(paint=None), runs=False)
    ExportJobs(tmp_path, queue)
    assert sorted(tmp_path.iterdir()) == sorted([mine, new])
    assert (mine / "pictures.zip").is_file()


def test_what_nobody_closed_goes_after_a_while(
    made: Exports, jobs: ExportJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        jobs.start(ALL, f"visitor {i}")
        assert ended(jobs, f"visitor {i}").phase == "done"
    monkeypatch.setattr("app.gallery.exports.export_jobs._MAX_ENDED", 2)
    jobs.start(ALL, "me")
    assert ended(jobs, "me").phase == "done"
    assert [jobs.job(f"visitor {i}") is None for i in range(3)] == [True, False, False]
    monkeypatch.setattr("app.gallery.exports.export_jobs._ENDED_SECONDS", 0.0)
    jobs.start(ALL, "another")
    assert ended(jobs, "another").phase == "done"
    assert jobs.job("me") is None
    assert len(made.files()) == 1
