"""Exports of the page: one each, followed, stopped, fetched by whoever has the link, swept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from app import scratch
from app.gallery.exports import export, formats
from app.gallery.exports.export_jobs import MAX_RUNNING, ExportJob, ExportJobs
from app.gallery.index import GalleryIndex, IndexedPicture
from pipelines.catalog import ROOT
from pipelines.errors import BusyError, RecipeError, RequestError
from tests.app.gallery.test_index import put

NAME = "2025-01-01/000000-1-000000.png"


@pytest.fixture
def entries(tmp_path: Path) -> Callable[[], Sequence[IndexedPicture]]:
    put(tmp_path / "outputs", NAME, "a red fox")
    index = GalleryIndex(tmp_path / "outputs", tmp_path / "gallery.db")
    index.sync()
    return lambda: index.search().entries


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
    end = time.monotonic() + 20
    while time.monotonic() < end:
        job = jobs.job(owner)
        assert job is not None
        if not job.active:
            return job
        time.sleep(0.01)
    raise AssertionError("the export did not end")


def test_an_export_is_fetched_by_its_token_and_goes_with_its_note(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]]
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    assert jobs.job("me") is None
    jobs.start(entries, "zip", "me")
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
    assert list(scratch.folder(tmp_path / "exports").iterdir()) == []
    with pytest.raises(RecipeError, match="not there any more"):
        jobs.file(job.token)


@pytest.mark.parametrize("format", list(formats.FORMATS))
def test_every_format_is_one_file(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]], format: str
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    jobs.start(entries, format, "me", strip=True)
    job = ended(jobs, "me")
    assert job.phase == "done", job.error
    assert jobs.file(job.token).is_file()


def test_a_new_export_takes_the_place_of_the_last(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]]
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    jobs.start(entries, "zip", "me")
    first = ended(jobs, "me")
    jobs.start(entries, "html", "me")
    second = ended(jobs, "me")
    assert len(list(scratch.folder(tmp_path / "exports").iterdir())) == 1
    assert jobs.file(second.token).suffix == ".html"
    with pytest.raises(RecipeError):
        jobs.file(first.token)


def test_a_stop_leaves_nothing(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]], gate: threading.Event
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    jobs.start(entries, "zip", "me")
    with pytest.raises(BusyError, match="being exported already"):
        jobs.start(entries, "zip", "me")
    jobs.dismiss("me")
    assert jobs.job("me") is not None, "what runs is not forgotten"
    jobs.stop("somebody else")
    jobs.stop("me")
    assert ended(jobs, "me").phase == "stopped"
    assert not list((tmp_path / "exports").rglob("*.zip"))


def test_many_at_once_are_refused(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]], gate: threading.Event
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    for i in range(MAX_RUNNING):
        jobs.start(entries, "zip", f"owner {i}")
    with pytest.raises(BusyError, match="Others are exporting"):
        jobs.start(entries, "zip", "me")
    gate.set()
    for i in range(MAX_RUNNING):
        assert ended(jobs, f"owner {i}").phase == "done"
    jobs.start(entries, "zip", "me")
    assert ended(jobs, "me").phase == "done"


def test_failures_end_with_a_sentence(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    with pytest.raises(RequestError, match="There is no format"):
        jobs.start(entries, "gif", "me")
    assert jobs.job("me") is None
    jobs.start(lambda: (), "zip", "me")
    assert "no picture to export" in str(ended(jobs, "me").error)

    def fault() -> Sequence[IndexedPicture]:
        raise ZeroDivisionError("ours")

    jobs.start(fault, "zip", "me")
    job = ended(jobs, "me")
    assert job.phase == "failed"
    assert "fault of the studio (ours)" in str(job.error)


def test_closing_stops_and_sweeps(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]], gate: threading.Event
) -> None:
    folder = tmp_path / "exports"
    jobs = ExportJobs(folder)
    jobs.start(entries, "zip", "me")
    jobs.close()
    assert ended(jobs, "me").phase == "stopped"
    assert not list(scratch.folder(folder).rglob("*"))


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
    ExportJobs(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, new])
    assert (mine / "pictures.zip").is_file()


def test_what_nobody_closed_goes_after_a_while(
    tmp_path: Path, entries: Callable[[], Sequence[IndexedPicture]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = ExportJobs(tmp_path / "exports")
    for i in range(3):
        jobs.start(entries, "zip", f"visitor {i}")
        assert ended(jobs, f"visitor {i}").phase == "done"
    monkeypatch.setattr("app.gallery.exports.export_jobs._MAX_ENDED", 2)
    jobs.start(entries, "zip", "me")
    assert ended(jobs, "me").phase == "done"
    assert [jobs.job(f"visitor {i}") is None for i in range(3)] == [True, False, False]
    monkeypatch.setattr("app.gallery.exports.export_jobs._ENDED_SECONDS", 0.0)
    jobs.start(entries, "zip", "another")
    assert ended(jobs, "another").phase == "done"
    assert jobs.job("me") is None
    assert len(list(scratch.folder(tmp_path / "exports").iterdir())) == 1
