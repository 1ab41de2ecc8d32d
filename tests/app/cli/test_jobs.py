"""The verb `jobs`, with a studio that runs and without one."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import jobs as cli
from app.cli.main import main
from app.jobs import queue
from app.jobs.downloads import DOWNLOAD, Fetch
from app.jobs.exports import ExportOrder
from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.store import JobStore
from app.models import import_process
from app.models.rows import ImportOptions
from app.parts import assemble
from app.settings import Settings
from tests.app.jobs.test_kinds import Process
from tests.app.jobs.test_store import OWNER, Studio, request

Told = pytest.CaptureFixture[str]


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    made = Studio(tmp_path, 0)
    yield made
    made.jobs.close()


@pytest.fixture
def jobs(studio: Studio) -> list[Job]:
    """One that runs and three that wait."""
    made = [studio.jobs.submit(request(f"job {n}", count=1), OWNER) for n in range(4)]
    studio.until(made[0], lambda now: now.progress)
    return made


def run(tmp_path: Path, *words: str) -> int:
    return main(["jobs", *words, "--workspace", str(tmp_path)])


def order(tmp_path: Path, capsys: Told) -> list[tuple[str, str]]:
    capsys.readouterr()
    assert run(tmp_path, "list", "--json") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(job["title"][-1], job["state"]) for job in told]


RUNNING = [("0", "running"), ("1", "waiting"), ("2", "waiting"), ("3", "waiting")]


def test_a_running_studio_obeys_within_a_second(
    tmp_path: Path, studio: Studio, jobs: list[Job], capsys: Told
) -> None:
    assert order(tmp_path, capsys) == RUNNING
    began = time.monotonic()
    assert run(tmp_path, "move", jobs[3].id[:8], "first") == 0
    # It looks for orders more often than that; a busy machine has ten times as long.
    assert queue._TICK_SECONDS < 1
    assert time.monotonic() - began < 10
    assert capsys.readouterr().out == f"Job {jobs[3].id[:8]} is at place 1 of 3.\n"
    assert [title for title, _ in order(tmp_path, capsys)] == list("0312")
    assert run(tmp_path, "move", jobs[2].id, "--priority", "high") == 0
    assert [title for title, _ in order(tmp_path, capsys)] == list("0231")
    assert run(tmp_path, "stop", jobs[1].id) == 0
    assert order(tmp_path, capsys)[-1] == ("1", "stopped")
    stopped = studio.jobs.get(jobs[1].id, OWNER)
    assert stopped is not None
    assert stopped.state is JobState.STOPPED
    assert run(tmp_path, "pause") == 0
    assert studio.jobs.paused
    assert run(tmp_path, "retry", jobs[1].id) == 0
    assert run(tmp_path, "resume", "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"verb": "resume", "job": "", "said": "Waiting jobs begin again."}
    studio.painter.go.release(9)
    assert {studio.ended(job).state for job in jobs} == {JobState.DONE}
    assert [r.prompt[-1] for r in studio.painter.asked] == list("0231")


def test_without_a_studio_it_waits_for_the_next_one(
    tmp_path: Path, studio: Studio, jobs: list[Job], capsys: Told
) -> None:
    others = threading.active_count()
    studio.vanish()
    assert order(tmp_path, capsys) == RUNNING
    assert run(tmp_path, "move", jobs[3].id[:8], "up") == 0
    assert run(tmp_path, "stop", jobs[1].id[:8]) == 0
    assert run(tmp_path, "pause") == 0
    capsys.readouterr()
    assert run(tmp_path, "list") == 0
    told = capsys.readouterr()
    assert "the queue is paused" in told.err
    assert len(told.out.splitlines()) == 4
    second = Studio(tmp_path)
    assert second.jobs.paused
    assert run(tmp_path, "resume") == 0
    for job in (jobs[0], jobs[2], jobs[3]):
        assert second.ended(job).state is JobState.DONE
    second.jobs.close()
    assert [r.prompt[-1] for r in second.painter.asked] == list("032")
    assert threading.active_count() <= others


def test_what_is_finished_stays_with_its_job(tmp_path: Path, studio: Studio) -> None:
    job = studio.jobs.submit(request(count=3), OWNER)
    studio.painter.go.release(2)
    before = studio.until(job, lambda now: len(now.pictures) == 2)
    studio.vanish()
    assert run(tmp_path, "stop", job.id) == 0
    assert run(tmp_path, "retry", job.id) == 0
    second = Studio(tmp_path)
    done = second.ended(job)
    second.jobs.close()
    assert done.pictures[:2] == before.pictures
    assert [(r.seed, r.count) for r in second.painter.asked] == [(7, 1)]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        ("stop", "zzzz"),
        ("stop", "x"),
        ("move", "{job}", "sideways"),
        ("move", "{job}"),
        ("move", "{job}", "--priority", "most"),
        ("retry", "{job}"),
        ("stop", "\x1b[31m"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path,
    studio: Studio,
    jobs: list[Job],
    capsys: Told,
    running: bool,
    words: tuple[str, ...],
) -> None:
    if not running:
        studio.vanish()
    assert run(tmp_path, *(word.format(job=jobs[2].id) for word in words)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "\x1b" not in told.err
    # What was killed while it ran waits for the next studio, once somebody has looked.
    assert [title for title, _ in order(tmp_path, capsys)] == list("0123")


def test_a_workspace_without_jobs_is_said_and_not_changed(tmp_path: Path, capsys: Told) -> None:
    assert run(tmp_path, "list") == 0
    assert run(tmp_path, "stop", "abcd") == 2
    assert "There are no jobs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_row_holds_never_reaches_the_terminal_as_a_command(
    tmp_path: Path, studio: Studio, jobs: list[Job], capsys: Told
) -> None:
    studio.vanish()
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with connection:
        connection.execute(
            "UPDATE jobs SET payload = ?, error = ?, created = 1e300, result = '[1]'",
            (json.dumps({"prompt": "\x1b[2J\n\r", "model": 7, "count": "x"}), "\x1b]0;x\x07"),
        )
    connection.close()
    assert run(tmp_path, "list") == 0
    assert run(tmp_path, "list", "--json") == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.out
    assert len(told.out.splitlines()) == 8


@pytest.mark.parametrize("verb", ["stop", "duplicate"])
def test_what_nobody_answered_does_not_happen_later(
    tmp_path: Path,
    studio: Studio,
    jobs: list[Job],
    capsys: Told,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    studio.vanish()
    # Another command has the jobs.
    holder = JobStore(tmp_path / "jobs.db")
    assert holder.hold()
    monkeypatch.setattr(cli, "_ANSWER_SECONDS", 0.2)
    assert run(tmp_path, verb, jobs[1].id) != 0
    assert "does not answer" in capsys.readouterr().err
    # And one that was killed while it waited, before long ago.
    assert holder.order(verb, jobs[2].id, "")
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with connection:
        connection.execute("UPDATE orders SET at = at - 60")
    connection.close()
    holder.close()
    second = Studio(tmp_path, 0)
    asked = JobStore(tmp_path / "jobs.db")
    number = asked.order("pause", "", "")
    assert number is not None
    end = time.monotonic() + 60
    while asked.answered(number) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    asked.close()
    found = [job.state for job in second.jobs.jobs()]
    second.jobs.close()
    assert found == [JobState.RUNNING, *[JobState.WAITING] * 3]


@pytest.mark.slow
def test_a_command_goes_on_by_itself_where_another_one_had_the_jobs(
    tmp_path: Path, studio: Studio, jobs: list[Job], capsys: Told
) -> None:
    studio.vanish()
    other = JobStore(tmp_path / "jobs.db")
    assert other.hold()
    timer = threading.Timer(0.7, other.close)
    timer.start()
    assert run(tmp_path, "duplicate", jobs[1].id) == 0
    timer.join()
    assert "is queued once more" in capsys.readouterr().out
    assert len(order(tmp_path, capsys)) == 5
    second = Studio(tmp_path, 0)
    time.sleep(1)
    found = len(second.jobs.jobs())
    second.jobs.close()
    assert found == 5


@pytest.mark.slow
def test_an_order_whose_answer_cannot_be_written_is_obeyed_once(
    tmp_path: Path, studio: Studio, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    obey, obeyed = studio.jobs.obey, []
    locker = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None, check_same_thread=False)

    def locked(*arguments: str) -> str:
        obeyed.append(arguments)
        said = obey(*arguments)
        if len(obeyed) == 1:
            locker.execute("BEGIN IMMEDIATE")
        return said

    monkeypatch.setattr(studio.jobs, "obey", locked)
    asked = JobStore(tmp_path / "jobs.db")
    number = asked.order("duplicate", jobs[1].id, "")
    assert number is not None
    end = time.monotonic() + 60
    while not studio.store.problem:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(1)
    locker.execute("ROLLBACK")
    # Another process writes, so that orders are looked for again.
    asked.note("any", "note")
    while asked.answered(number) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    asked.note("any", "other note")
    time.sleep(0.7)
    asked.close()
    locker.close()
    assert obeyed == [("duplicate", jobs[1].id, "")]
    assert len(studio.jobs.jobs()) == 5


def test_a_queue_without_jobs_is_said_to_be_paused(
    tmp_path: Path, studio: Studio, capsys: Told
) -> None:
    assert run(tmp_path, "pause") == 0
    assert run(tmp_path, "list") == 0
    assert capsys.readouterr().err == "0 waiting or running, 0 ended; the queue is paused.\n"


def test_a_database_of_a_newer_version_is_not_touched(
    tmp_path: Path, studio: Studio, jobs: list[Job], capsys: Told
) -> None:
    studio.vanish()
    connection = sqlite3.connect(tmp_path / "jobs.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert run(tmp_path, "list") == 2
    assert "newer version" in capsys.readouterr().err
    assert not list(tmp_path.glob("jobs.db.2*"))


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False])
def test_every_kind_is_listed_stopped_retried_and_duplicated(
    tmp_path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """Also by a command that has none of the parts which run them."""
    monkeypatch.setattr(import_process, "run", importing)
    settings = Settings(workspace=tmp_path)
    parts = assemble(settings, worker=Process(settings.outputs))
    parts.jobs.pause(True)
    parts.jobs.start()
    parts.jobs.add(DOWNLOAD, Fetch(model="alpha-512"), COMPUTER)
    parts.exports.start(ExportOrder(format="zip", everybodys=True), OWNER)
    (tmp_path / "my\x1bnet.pth").touch()
    parts.imports.start(str(tmp_path / "my\x1bnet.pth"), ImportOptions())
    ids = {job.kind: job.id for job in parts.jobs.jobs()}
    if not running:
        parts.store.close()
        parts.jobs.close()

    def shown() -> dict[str, str]:
        capsys.readouterr()
        assert run(tmp_path, "list") == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert OWNER not in out
        return {line[:8]: line for line in out.splitlines()}

    lines = shown()
    for kind, title in (
        ("download", "Download PixArt-α 512"),
        ("import", "Import my net.pth"),
        ("export", "Export all pictures (Archive)"),
    ):
        line = lines[ids[kind][:8]]
        assert line.split()[1] == "waiting", line
        assert line.endswith(f"  {kind}  {title}")
    for kind, job_id in ids.items():
        assert run(tmp_path, "stop", job_id) == 0
        assert " stopped " in shown()[job_id[:8]], kind
        assert run(tmp_path, "retry", job_id) == 0
        assert " waiting " in shown()[job_id[:8]], kind
    assert run(tmp_path, "duplicate", ids["download"]) == 0
    copy = capsys.readouterr().out.split()[-1].rstrip(".")
    assert " waiting " in shown()[copy]
    assert run(tmp_path, "duplicate", ids["export"]) == 2
    assert "waits or runs already" in capsys.readouterr().err
    if not running:
        parts = assemble(settings, worker=Process(settings.outputs))
        parts.jobs.start()
    for job in (ids["download"], copy):
        assert run(tmp_path, "stop", job) == 0
    assert run(tmp_path, "resume") == 0
    done = parts.jobs.wait(ids["import"], COMPUTER, 20)
    parts.jobs.close()
    assert done is not None
    assert (done.state, done.result) == (JobState.DONE, "net")


def importing(*_: object, **__: object) -> str:
    return "net"
