"""Jobs outlive the studio; a database that cannot be used costs only that, and one sentence."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import app.studio
from app.gallery.pictures import Gallery
from app.jobs.entry import MAX_INTERRUPTIONS
from app.jobs.job import Job, JobState
from app.jobs.kinds import Kind, Lane
from app.jobs.queue import JobQueue
from app.jobs.schema import FORM, MAX_KEPT_PASSING
from app.jobs.store import JobStore
from app.painting.runner import Keep
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.errors import BusyError, ProcessDeathError, RequestError
from pipelines.picture_record import Picture
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest, complete
from tests.app.jobs import kill_many

OWNER = "../../somebody"
CATALOG = Catalog()


def request(prompt: str = "a cat", *, seed: int = 5, count: int = 3) -> GenerationRequest:
    return complete({"prompt": prompt, "seed": seed, "count": count}, CATALOG)


def painted(request: GenerationRequest) -> Picture:
    image = Image.new("RGB", (8, 8))
    facts: dict[str, Any] = {"weights": "a1", "seconds": 0.5, "peak": 7_000, "forecast": 6_000}
    return Picture(image=image, request=request, **facts)


class Painter:
    """Paints as many pictures as `go` lets it; `asked` holds what it was asked for."""

    def __init__(self, folder: Path, finished: int = 999) -> None:
        self.gallery = Gallery(folder)
        self.go = threading.Semaphore(finished)
        self.asked: list[GenerationRequest] = []
        self.deaths = 0

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        self.asked.append(request)
        for index in range(request.count):
            report(Progress(stage=Stage.DENOISING, done=1, total=4, picture=index + 1))
            while not self.go.acquire(timeout=0.01):
                if should_stop():
                    return
            file = self.gallery.add(painted(request.single(index)))
            if self.deaths:
                self.deaths -= 1
                # Written, and nobody heard of it.
                raise ProcessDeathError("The painting process ended unexpectedly.", "Try again.")
            keep(file)


class Studio:
    """A queue over a workspace, as a studio has it."""

    def __init__(self, folder: Path, finished: int = 999, **how: Any) -> None:
        self.painter = Painter(folder / "outputs", finished)
        self.store = JobStore(folder / "jobs.db")
        self.jobs = JobQueue(self.painter, self.store, self.painter.gallery, **how)

    def until(self, job: Job, holds: Callable[[Job], Any]) -> Job:
        end = time.monotonic() + 20
        while True:
            now = self.jobs.get(job.id, job.owner)
            if now is not None and holds(now):
                return now
            assert time.monotonic() < end, now
            time.sleep(0.005)

    def ended(self, job: Job) -> Job:
        return self.until(job, lambda now: not now.active)

    def vanish(self) -> None:
        """As if it was killed: nothing is written any more, and its lock is free."""
        self.store.close()
        self.jobs.close()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Callable[..., Studio]]:
    made: list[Studio] = []

    def make(*arguments: Any, **how: Any) -> Studio:
        made.append(Studio(tmp_path, *arguments, **how))
        return made[-1]

    yield make
    for one in made:
        one.jobs.close()


Make = Callable[..., Studio]


@pytest.mark.parametrize("killed", [False, True])
def test_what_ran_goes_on_and_what_waited_waits_on(studio: Make, killed: bool) -> None:
    first = studio(1)
    made = [first.jobs.submit(request(f"job {n}", seed=10 * n), OWNER) for n in range(4)]
    before = first.until(made[0], lambda now: len(now.pictures) == 1)
    first.jobs.stop(made[2].id, OWNER)
    first.vanish() if killed else first.jobs.close()
    second = studio(0)
    second.until(made[0], lambda now: now.state is JobState.RUNNING)
    told = [second.jobs.get(job.id, OWNER) for job in made]
    assert [job.state for job in told if job] == [
        *(JobState.RUNNING, JobState.WAITING, JobState.STOPPED, JobState.WAITING),
    ]
    second.painter.go.release(99)
    ended = [second.ended(job) for job in made]
    assert [len(job.pictures) for job in ended] == [3, 3, 0, 3]
    assert [job.state for job in ended] == [JobState.DONE] * 2 + [JobState.STOPPED, JobState.DONE]
    assert ended[0].pictures[0] == before.pictures[0]
    asked = [(one.prompt, one.seed, one.count) for one in second.painter.asked]
    assert asked == [("job 0", 1, 2), ("job 1", 10, 3), ("job 3", 30, 3)]


def test_a_picture_that_nobody_heard_of_is_found_and_not_painted_twice(studio: Make) -> None:
    one = studio()
    one.painter.deaths = 1
    # Of an earlier job of the same request, and not of this one.
    earlier = one.painter.gallery.add(painted(request().single(0)))
    os.utime(earlier.path, (time.time() - 60,) * 2)
    job = one.ended(one.jobs.submit(request(), OWNER))
    assert (job.state, len(job.pictures)) == (JobState.DONE, 3)
    assert [(r.seed, r.count) for r in one.painter.asked] == [(5, 3), (6, 2)]
    assert earlier.name not in {p.name for p in job.pictures}
    assert [p.request.seed for p in job.pictures] == [5, 6, 7]


def test_a_job_that_kills_its_process_again_and_again_ends(studio: Make) -> None:
    one = studio(0)
    one.painter.paint = die  # type: ignore[method-assign]
    job = one.ended(one.jobs.submit(request(), OWNER))
    assert job.state is JobState.FAILED
    assert str(job.error) == "It died. Try again."
    assert len(DEATHS) == 1 + MAX_INTERRUPTIONS


DEATHS: list[int] = []


def die(*_: Any, **__: Any) -> None:
    DEATHS.append(1)
    raise ProcessDeathError("It died.", "Try again.")


def test_a_job_that_ends_every_studio_is_not_tried_for_ever(studio: Make) -> None:
    one = studio(0)
    job = one.jobs.submit(request(), OWNER)
    for _ in range(MAX_INTERRUPTIONS):
        one.until(job, lambda now: now.progress)
        one.vanish()
        one = studio(0)
    one.until(job, lambda now: now.progress)
    one.vanish()
    ended = studio(0).jobs.get(job.id, OWNER)
    assert ended is not None
    assert ended.state is JobState.INTERRUPTED
    assert "more than 2 times" in str(ended.error)


def test_the_last_job_is_shown_with_its_pictures(studio: Make) -> None:
    first = studio()
    job = first.ended(first.jobs.submit(request(), OWNER))
    first.jobs.close()
    job.pictures[1].path.unlink()
    latest = studio().jobs.latest(OWNER)
    assert latest is not None
    assert (latest.id, latest.state, latest.request.count) == (job.id, JobState.DONE, 2)
    assert latest.pictures == (job.pictures[0], job.pictures[2])


def test_what_was_deleted_is_not_painted_again(studio: Make) -> None:
    first = studio(2)
    job = first.jobs.submit(request(count=4), OWNER)
    now = first.until(job, lambda now: len(now.pictures) == 2)
    now.pictures[0].path.unlink()
    first.jobs.drop(now.pictures[0].name)
    first.vanish()
    second = studio()
    done = second.ended(job)
    assert done.state is JobState.DONE
    assert [p.request.seed for p in done.pictures] == [6, 7, 8]
    assert done.request.count == 3


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_nobody_else_on_the_computer_reads_who_asked_for_what(tmp_path: Path, studio: Make) -> None:
    one = studio(0)
    one.jobs.submit(request(), OWNER)
    files = list(tmp_path.glob("jobs.db*"))
    assert len(files) >= 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_copied_workspace_has_its_own_pictures(tmp_path: Path) -> None:
    first = Studio(tmp_path / "first")
    job = first.ended(first.jobs.submit(request(), OWNER))
    first.jobs.close()
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = Studio(tmp_path / "second")
    latest = second.jobs.latest(OWNER)
    second.jobs.close()
    assert latest is not None
    assert [p.name for p in latest.pictures] == [p.name for p in job.pictures]
    assert all(p.path.is_relative_to(tmp_path / "second") for p in latest.pictures)


def test_calls_of_the_api_push_nothing_out_and_do_not_go_on(studio: Make) -> None:
    first = studio()
    mine = first.ended(first.jobs.submit(request(count=1), "a browser of somebody"))
    for number in range(MAX_KEPT_PASSING + 5):
        first.ended(first.jobs.submit(request(count=1), f"api-{number}", passing=True))
    while first.painter.go.acquire(blocking=False):
        continue
    waits = first.jobs.submit(request(), "api-x", passing=True)
    first.vanish()
    second = studio()
    found = second.jobs.latest("a browser of somebody")
    assert found is not None
    assert [p.name for p in found.pictures] == [p.name for p in mine.pictures]
    gone = second.jobs.get(waits.id, "api-x")
    assert gone is not None
    assert gone.state is JobState.INTERRUPTED
    rows = second.store.load()
    assert rows is not None
    assert len(rows) <= MAX_KEPT_PASSING + 3


# --- faults of the database


def spoil(tmp_path: Path, studio: Make, sql: str) -> Job:
    """A job that waits in a database which somebody has changed."""
    first = studio(0)
    running = first.jobs.submit(request("runs"), OWNER)
    first.until(running, lambda now: now.state is JobState.RUNNING)
    job = first.jobs.submit(request("waits"), OWNER)
    first.vanish()
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with connection:
        connection.execute(sql, {"id": job.id})
    connection.close()
    return job


@pytest.mark.parametrize(
    "change",
    [
        "payload = '{'",
        "payload = '[]'",
        "payload = '{\"prompt\": 1}'",
        "payload = json_set(payload, '$.count', 9999)",
        "payload = json_set(payload, '$.init', '../../etc/passwd')",
        "payload = printf('%.*c', 300000, '[')",
        "payload = x'ff'",
        "kind = 'rm'",
        "owner = printf('%.*c', 1000, 'x')",
        "state = 'waiting', created = 9e999",
        "position = 'first'",
        "priority = 'high'",
        "result = json_set(result, '$.painted', 99)",
        "result = json_set(result, '$.total', -1)",
        "result = json_set(result, '$.pictures', 7)",
        "result = '[]'",
        "grace = 'x'",
    ],
)
def test_a_hostile_row_is_no_job_and_the_others_go_on(
    tmp_path: Path, studio: Make, change: str
) -> None:
    job = spoil(tmp_path, studio, f"UPDATE jobs SET {change} WHERE id = :id")
    second = studio()
    assert second.jobs.get(job.id, OWNER) is None
    (other,) = second.jobs.jobs()
    assert second.ended(other).state is JobState.DONE
    assert second.store.problem == ""


@pytest.mark.parametrize("name", ["../outside.png", "2026-01-01/../../outside.png", "/etc/passwd"])
def test_a_name_that_leads_elsewhere_is_no_picture(tmp_path: Path, studio: Make, name: str) -> None:
    first = studio()
    job = first.ended(first.jobs.submit(request(count=1), OWNER))
    first.jobs.close()
    shutil.copy(job.pictures[0].path, tmp_path / "outside.png")
    told = {"pictures": [{"name": name, "seconds": 1, "peak": 0, "forecast": 0}], "total": 1}
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with connection:
        connection.execute("UPDATE jobs SET result = ?", (json.dumps(told),))
    connection.close()
    latest = studio().jobs.latest(OWNER)
    assert latest is not None
    assert latest.pictures == ()


@pytest.mark.parametrize("fault", ["noise", "a cut", "a newer version"])
def test_a_database_of_no_use_is_kept_aside_and_said(
    tmp_path: Path, studio: Make, fault: str
) -> None:
    first = studio()
    first.ended(first.jobs.submit(request(), OWNER))
    first.jobs.close()
    file = tmp_path / "jobs.db"
    if fault == "noise":
        file.write_bytes(os.urandom(20_000))
    elif fault == "a cut":
        file.write_bytes(file.read_bytes()[:6000])
    else:
        connection = sqlite3.connect(file)
        connection.execute(f"PRAGMA user_version = {FORM + 1}")
        connection.close()
    before = file.read_bytes()
    second = studio()
    words = "newer version" if fault == "a newer version" else "was damaged"
    assert words in second.store.problem
    (aside,) = tmp_path.glob("jobs.db.2*")
    assert aside.read_bytes() == before
    assert str(aside) in second.store.problem
    job = second.ended(second.jobs.submit(request(), OWNER))
    second.jobs.close()
    third = studio()
    assert third.store.problem == ""
    assert third.jobs.latest(OWNER) == job


def test_a_locked_database_costs_nothing_once_it_is_free(tmp_path: Path, studio: Make) -> None:
    first = studio(0)
    waits = first.jobs.submit(request("waits", count=1), "other")
    first.vanish()
    locker = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    second = studio()
    job = second.ended(second.jobs.submit(request(), OWNER))
    # Nobody lets go of the lock.
    assert time.monotonic() - began < 30
    assert job.state is JobState.DONE
    assert "locked by another program" in second.store.problem
    assert second.jobs.get(waits.id, "other") is None
    locker.execute("ROLLBACK")
    locker.close()
    assert second.ended(waits).state is JobState.DONE, "it is taken in as soon as it can be read"
    assert second.store.problem == ""
    second.jobs.close()
    assert studio().jobs.latest(OWNER) == job


def test_a_pause_while_the_database_is_locked_outlives_the_studio(
    tmp_path: Path, studio: Make
) -> None:
    first = studio()
    first.jobs.note("another", "note")
    locker = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    first.jobs.pause(True)
    assert "locked" in first.store.problem
    assert first.store.noted("paused") == "yes"
    locker.execute("ROLLBACK")
    locker.close()
    first.jobs.submit(request(), OWNER)
    assert first.store.problem == ""
    first.jobs.close()
    second = studio()
    assert second.jobs.paused
    assert second.jobs.noted("another") == "note"
    # Kept aside, because it is damaged: what is known goes to the new one.
    assert second.store._connection is not None
    second.store._connection.close()
    second.store._connection = None
    (tmp_path / "jobs.db").write_bytes(os.urandom(20_000))
    for left in (*tmp_path.glob("jobs.db-*"),):
        left.unlink()
    second.jobs.submit(request(), OWNER)
    assert "was damaged" in second.store.problem
    second.jobs.close()
    third = studio()
    assert third.jobs.paused
    assert third.jobs.noted("another") == "note"


def test_a_full_disk_costs_only_the_memory(
    tmp_path: Path, studio: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = studio()
    assert one.store._connection is not None
    pages = one.store._connection.execute("PRAGMA page_count").fetchone()[0]
    one.store._connection.execute(f"PRAGMA max_page_count = {pages}")
    connect = sqlite3.connect

    def full(*arguments: Any, **how: Any) -> Any:
        made = connect(*arguments, **how)
        made.execute(f"PRAGMA max_page_count = {pages}")
        return made

    monkeypatch.setattr(sqlite3, "connect", full)
    jobs = [one.ended(one.jobs.submit(request("x" * 9000, seed=n), OWNER)) for n in range(9)]
    assert [job.state for job in jobs] == [JobState.DONE] * 9
    assert "disk is full" in one.store.problem
    monkeypatch.undo()
    last = one.ended(one.jobs.submit(request("y"), OWNER))
    assert one.store.problem == ""
    one.jobs.close()
    found = studio().jobs
    assert found.latest(OWNER) == last
    assert found.get(jobs[0].id, OWNER) is not None, "what could not be written then is written now"


@pytest.mark.parametrize("fault", ["a folder in its place", "no folder"])
def test_a_file_that_cannot_be_made_costs_only_the_memory(tmp_path: Path, fault: str) -> None:
    workspace = tmp_path / "workspace"
    if fault == "no folder":
        workspace.mkdir()
        (workspace / "outputs").mkdir()
        store = JobStore(workspace / "outputs" / "file" / "jobs.db")
        (workspace / "outputs" / "file").write_text("in the way")
    else:
        (workspace / "jobs.db").mkdir(parents=True)
        store = JobStore(workspace / "jobs.db")
    painter = Painter(workspace / "outputs")
    jobs = JobQueue(painter, store, painter.gallery)
    job = jobs.wait(jobs.submit(request(), OWNER).id, OWNER, 20)
    jobs.close()
    assert job is not None
    assert job.state is JobState.DONE
    assert "cannot be used" in store.problem


@pytest.mark.slow
def test_a_second_studio_says_so_and_shares_nothing(studio: Make) -> None:
    first = studio(0)
    mine = first.jobs.submit(request(), OWNER)
    second = studio()
    assert "Another studio holds the jobs of this workspace" in second.store.problem
    assert second.jobs.latest(OWNER) is None
    theirs = second.ended(second.jobs.submit(request("theirs"), "other"))
    assert theirs.state is JobState.DONE
    first.painter.go.release(9)
    assert first.ended(mine).state is JobState.DONE
    rows = first.store.load()
    assert rows is not None
    assert [row.id for row in rows] == [mine.id]


def test_a_studio_waits_for_a_command_that_holds_the_jobs(tmp_path: Path, studio: Make) -> None:
    first = studio(0)
    job = first.jobs.submit(request(), OWNER)
    first.vanish()
    command = JobStore(tmp_path / "jobs.db")
    assert command.hold()
    timer = threading.Timer(0.5, command.close)
    timer.start()
    second = studio()
    timer.join()
    assert second.store.problem == ""
    assert second.ended(job).state is JobState.DONE


@pytest.mark.slow
def test_the_page_can_say_that_another_studio_holds_the_jobs(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path)
    first, second = app.studio.Studio.of(settings), app.studio.Studio.of(settings)
    try:
        assert [f for f in first.examine() if f.name == "jobs"] == []
        (found,) = [f for f in second.examine() if f.name == "jobs"]
        assert "Another studio holds the jobs" in found.fact
        first.close()
        third = app.studio.Studio.of(settings)
        assert [f for f in third.examine() if f.name == "jobs"] == []
        third.close()
    finally:
        second.close()
        first.close()


# --- order


@pytest.mark.slow
def test_fifty_owners_with_twenty_jobs_wait_alike(studio: Make) -> None:
    one = studio(0)
    one.jobs.pause(True)
    owners = [f"owner {n}" for n in range(50)]
    for owner in owners:
        for _ in range(20):
            one.jobs.submit(request(count=1), owner, trusted=True)
    order = [job.owner for job in one.jobs.jobs()]
    assert len(order) == 1000
    waits = [sum(i for i, o in enumerate(order) if o == owner) / 20 for owner in owners]
    assert max(waits) <= 1.5 * min(waits)
    with pytest.raises(BusyError):
        one.jobs.submit(request(count=1), "one more", trusted=True)


def test_move_priority_retry_duplicate_and_pause(studio: Make) -> None:
    one = studio(0)
    one.jobs.pause(True)
    made = [one.jobs.submit(request(f"job {n}", count=1), OWNER) for n in range(4)]

    def order() -> list[str]:
        return [job.request.prompt[-1] for job in one.jobs.jobs() if job.active]

    assert order() == list("0123")
    assert "place 3 of 4" in one.jobs.obey("move", made[3].id[:8], "up")
    assert order() == list("0132")
    one.jobs.obey("move", made[0].id, "last")
    assert order() == list("1320")
    one.jobs.obey("move", made[2].id, "first")
    assert order() == list("2130")
    one.jobs.obey("priority", made[0].id, "high")
    assert order() == list("0213")
    one.jobs.obey("stop", made[1].id)
    assert order() == list("023")
    one.jobs.obey("retry", made[1].id)
    assert order() == list("0231")
    copied = one.jobs.obey("duplicate", made[2].id).split()[-1].rstrip(".")
    assert order() == list("02312")
    one.vanish()
    second = studio()
    assert [job.request.prompt[-1] for job in second.jobs.jobs() if job.active] == list("02312")
    assert second.jobs.paused, "a restart does not let go on what somebody has paused"
    for verb, job, value in [
        ("move", made[0].id, "sideways"),
        ("priority", made[0].id, "99"),
        ("retry", made[0].id, ""),
        ("stop", "zzzz", ""),
        ("stop", "", ""),
        ("dance", made[0].id, ""),
    ]:
        with pytest.raises(RequestError):
            second.jobs.obey(verb, job, value)
    with pytest.raises(RequestError):
        second.jobs.obey("stop", made[0].id, owner="somebody else")
    second.jobs.obey("resume")
    for left in [one for one in second.jobs.jobs() if one.active]:
        assert second.ended(left).state is JobState.DONE
    assert [r.prompt[-1] for r in second.painter.asked] == list("02312")
    assert second.jobs.obey("duplicate", copied).startswith(f"Job {copied}")
    with pytest.raises(RequestError, match="Duplicate it"):
        second.jobs.obey("retry", made[0].id)


def test_lanes_run_side_by_side_and_one_job_each(studio: Make) -> None:
    running: list[str] = []
    most: list[int] = []
    go = threading.Event()

    def run(control: Any) -> bool:
        running.append(control.entry.job.kind)
        most.append(running.count(control.entry.job.kind))
        assert go.wait(20)
        running.remove(control.entry.job.kind)
        return True

    kinds = [
        Kind(name=name, lane=lane, resumes=False, run=run, write=dict, read=dict, title=str)
        for name, lane in (("fetch", Lane.NETWORK), ("copy", Lane.DISK))
    ]
    one = studio(0, kinds=kinds)
    painted = one.jobs.submit(request(count=1), OWNER)
    others = [one.jobs.add(kind, {"n": n}, OWNER) for n in range(2) for kind in ("fetch", "copy")]
    end = time.monotonic() + 20
    while sorted(running) != ["copy", "fetch"] and time.monotonic() < end:
        time.sleep(0.005)
    assert one.until(painted, lambda now: now.state is JobState.RUNNING)
    go.set()
    one.painter.go.release(1)
    assert {one.ended(job).state for job in (painted, *others)} == {JobState.DONE}
    assert max(most) == 1


def test_what_cannot_go_on_says_so_after_a_restart(studio: Make) -> None:
    gate, begun = threading.Event(), threading.Event()
    kind = Kind(
        name="copy",
        lane=Lane.DISK,
        resumes=False,
        run=lambda _: True,
        write=dict,
        read=dict,
        title=str,
    )
    first = studio(kinds=[kind_waiting(kind, gate, begun)])
    runs, waits = (first.jobs.add("copy", {"n": n}, OWNER) for n in range(2))
    # Until then the database may not know yet that it runs.
    assert begun.wait(20)
    first.store.close()
    gate.set()
    second = studio(kinds=[kind])
    ended = second.jobs.get(runs.id, OWNER)
    assert ended is not None
    assert ended.state is JobState.INTERRUPTED
    assert str(ended.error) == "The studio was restarted before it was done. Retry it."
    assert second.ended(waits).state is JobState.DONE
    second.jobs.obey("retry", runs.id)
    assert second.ended(runs).state is JobState.DONE


def kind_waiting(kind: Kind, gate: threading.Event, begun: threading.Event) -> Kind:
    def run(_: Any) -> bool:
        begun.set()
        return gate.wait(20)

    return replace(kind, run=run)


def test_a_painting_that_needs_its_visitor_does_not_wait_over_a_restart(studio: Make) -> None:
    first = studio(0)
    made = [first.jobs.submit(request(count=1), OWNER) for _ in range(2)]
    first.until(made[0], lambda now: now.state is JobState.RUNNING)
    first.jobs.close()
    second = studio(resumes=False)
    told = [second.jobs.get(job.id, OWNER) for job in made]
    assert [job.state for job in told if job] == [JobState.INTERRUPTED] * 2
    said = str(told[1].error) if told[1] else ""
    assert said.startswith("The studio was restarted while it waited")
    assert second.painter.asked == []


def test_the_time_left_is_learned_and_outlives_the_studio(studio: Make) -> None:
    first = studio()
    first.ended(first.jobs.submit(request(), OWNER))
    first.jobs.close()
    second = studio(0)
    second.jobs.pause(True)
    made = [second.jobs.submit(request(seed=n), OWNER) for n in range(2)]
    other = complete({"prompt": "x", "steps": 3, "count": 1}, CATALOG)
    unknown = second.jobs.submit(other, OWNER)
    left = [second.jobs.get(job.id, OWNER) for job in (*made, unknown)]
    assert [job.seconds_left for job in left if job] == [1.5, 3.0, None]


# --- the real processes, really killed


@pytest.mark.timeout(200)
@pytest.mark.slow
@pytest.mark.parametrize("victim", kill_many.VICTIMS)
def test_a_kill_loses_nothing_and_paints_nothing_twice(tmp_path: Path, victim: str) -> None:
    kill_many.one_moment(tmp_path, victim, 7, 0.06)
