"""Downloads, imports and exports as jobs: restarts, owners, faults, and the device that is lent."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs.downloads import DOWNLOAD, Fetch
from app.jobs.entry import MAX_INTERRUPTIONS
from app.jobs.exports import EXPORT, ExportOrder
from app.jobs.imports import IMPORT
from app.jobs.job import COMPUTER, Job, JobState
from app.jobs.kinds import JobControl, Kind, Lane
from app.jobs.queue import JobQueue
from app.jobs.schema import FORM
from app.models import import_process, store
from app.models.rows import ImportOptions
from app.models.store import ModelStore
from app.painting.worker import EngineState
from app.parts import StudioParts, assemble
from app.settings import Settings
from app.ui.create.watch import BrowserSession
from pipelines.catalog import ROOT
from pipelines.errors import BusyError, ModelError, ProcessDeathError, RequestError
from pipelines.models.hub import Hub
from pipelines.progress import Progress, Report, ShouldStop, Stage
from tests.app.gallery.test_index import put
from tests.app.jobs.test_store import Painter, request
from tests.fake_hub import FakeHub
from tests.hub.conftest import BIG, FAST, _clean, hub  # noqa: F401

MODEL, SPARE = "alpha-1024", "alpha-512"
VISITOR, OTHER = "visitor-0123456789", "another-0123456789"
NAME = "2025-01-01/000000-1-000000.png"
EVERYTHING = ExportOrder(format="zip", everybodys=True)


class Process(Painter):
    """Paints as the test wants it, and is started and ended with the studio."""

    state = EngineState()

    def start(self, preload: str | None = None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class FakeImport:
    """An import that ends when it may."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.error: ModelError | None = None

    def __call__(
        self,
        source: Path,
        wanted: ImportOptions,
        settings: Settings,
        *,
        report: Report,
        should_stop: ShouldStop,
    ) -> str | None:
        report(Progress(stage=Stage.COPYING, done=10, total=40))
        while not self.go.wait(0.01):
            if should_stop():
                return None
        if self.error is not None:
            raise self.error
        return "net"


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> FakeImport:
    fake = FakeImport()
    monkeypatch.setattr(import_process, "run", fake)
    return fake


def parts(workspace: Path, finished: int = 999) -> StudioParts:
    settings = Settings(workspace=workspace)
    return assemble(settings, worker=Process(settings.outputs, finished))


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Callable[..., StudioParts]]:
    """Studios of one workspace that has one picture; each is started."""
    made: list[StudioParts] = []
    put(tmp_path / "workspace" / "outputs", NAME, "a red fox")

    def make(finished: int = 999) -> StudioParts:
        made.append(parts(tmp_path / "workspace", finished))
        made[-1].index.sync()
        made[-1].jobs.start()
        return made[-1]

    yield make
    for one in made:
        one.jobs.close()


Make = Callable[..., StudioParts]


def until(holds: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
    return found


def only(jobs: JobQueue, kind: str) -> Job:
    (found,) = [job for job in jobs.jobs() if job.kind == kind]
    return found


def ended(jobs: JobQueue, kind: str) -> Job:
    until(lambda: not only(jobs, kind).active)
    return only(jobs, kind)


def vanish(studio: StudioParts) -> None:
    """As if it was killed: nothing is written any more, and its lock is free."""
    studio.store.close()
    studio.jobs.close()


# --- restarts


def page(workspace: str) -> None:
    """A studio that downloads, in a process of its own."""
    studio = parts(Path(workspace))
    studio.jobs.start()
    studio.models.ask(MODEL)
    until(lambda: (job := studio.models.job) is not None and job.phase == "asked")
    studio.models.download(MODEL)
    studio.jobs.add(DOWNLOAD, Fetch(model=SPARE), COMPUTER)
    print("downloading", flush=True)
    threading.Event().wait()


@pytest.mark.timeout(400)
def test_a_download_goes_on_after_a_kill(tmp_path: Path, hub: FakeHub) -> None:  # noqa: F811
    code = "import sys; from tests.app.jobs.test_kinds import page; page(sys.argv[1])"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "workspace")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    folder = tmp_path / "workspace" / "models" / "hub"
    name = f"{BIG}.part"
    with hub.held(BIG, behind=24_000):
        assert first.stdout.readline() == "downloading\n"
        (file,) = until(
            lambda: [f for f in folder.glob(f"*/*/{name}") if f.stat().st_size > 20_000]
        )
        first.kill()
        first.communicate()
    kept = file.stat().st_size
    assert hub.requests(BIG)[0].range is None
    studio = parts(tmp_path / "workspace")
    downloads = [job for job in studio.jobs.jobs() if job.kind == DOWNLOAD]
    assert [(job.payload.model, job.state) for job in downloads] == [
        (MODEL, JobState.WAITING),
        (SPARE, JobState.WAITING),
    ]
    shown = studio.models.job
    assert shown is not None
    assert (shown.model, shown.phase) == (MODEL, "waiting")
    studio.jobs.start()
    done = studio.jobs.wait(downloads[0].id, COMPUTER, 60)
    studio.jobs.close()
    assert done is not None
    assert done.state is JobState.DONE, done.error
    assert [int(str(one.range).strip("bytes=-")) >= kept for one in hub.requests(BIG)[1:]] == [True]
    assert next(row for row in studio.models.rows(fresh=True) if row.id == MODEL).state == (
        "downloaded"
    )


def arrived(job: Job) -> int:
    """The bytes of the largest file that have arrived."""
    return next((f.done for f in job.result.files if f.path == BIG), 0) if job.result else 0


def test_a_download_that_closing_cut_is_not_done(studio: Make, hub: FakeHub) -> None:  # noqa: F811
    with hub.held(BIG, behind=24_000):
        first = studio()
        first.jobs.add(DOWNLOAD, Fetch(model=MODEL), COMPUTER)
        until(lambda: arrived(only(first.jobs, DOWNLOAD)) > 20_000)
        first.jobs.close()
    second = studio()
    assert ended(second.jobs, DOWNLOAD).state is JobState.DONE
    assert len(hub.requests(BIG)) == 2
    assert hub.requests(BIG)[1].range is not None


@pytest.mark.parametrize("killed", [False, True])
def test_an_import_that_was_cut_says_so_and_what_waited_waits_on(
    tmp_path: Path, studio: Make, importing: FakeImport, killed: bool
) -> None:
    first = studio()
    first.imports.start(str(tmp_path), ImportOptions(title="Net", in_place=True))
    until(lambda: only(first.jobs, IMPORT).progress)
    first.exports.start(EVERYTHING, VISITOR)
    first.exports.start(EVERYTHING, OTHER)
    order = [job.id for job in first.jobs.jobs()]
    vanish(first) if killed else first.jobs.close()
    importing.go.set()
    second = studio()
    until(lambda: not any(job.active for job in second.jobs.jobs()))
    cut = only(second.jobs, IMPORT)
    assert (cut.id, cut.state, cut.may_retry) == (order[0], JobState.INTERRUPTED, True)
    assert str(cut.error) == (
        "The studio was restarted during the import. Retry it; it begins anew."
    )
    waited = [second.jobs.get(job_id, None) for job_id in order[1:]]
    assert [job.state for job in waited if job] == [JobState.DONE] * 2
    assert waited[0] is not None
    assert waited[1] is not None
    assert waited[0].started < waited[1].started  # type: ignore[operator]
    assert second.exports.file(order[1]).is_file()
    shown = second.imports.job
    assert shown is not None
    assert shown.phase == "failed"
    second.jobs.obey("retry", cut.id)
    again = ended(second.jobs, IMPORT)
    assert (again.state, again.result) == (JobState.DONE, "net")
    assert again.payload.options == ImportOptions(title="Net", in_place=True)


def test_an_error_keeps_its_class_and_field_over_a_restart(
    tmp_path: Path, studio: Make, importing: FakeImport
) -> None:
    importing.error = ModelError("It is broken.", "Take another.")
    importing.go.set()
    first = studio()
    first.imports.start(str(tmp_path), ImportOptions())
    before = ended(first.jobs, IMPORT).error
    assert isinstance(before, ModelError)
    assert before.__traceback__ is None, "it would hold every frame that it passed"
    first.jobs.close()
    after = only(studio().jobs, IMPORT).error
    assert isinstance(after, ModelError)
    assert (after.message, after.way_out) == ("It is broken.", "Take another.")


def test_what_was_exported_before_a_restart_is_offered_no_more(studio: Make) -> None:
    first = studio()
    first.exports.start(EVERYTHING, VISITOR)
    assert ended(first.jobs, EXPORT).state is JobState.DONE
    first.jobs.close()
    second = studio()
    assert only(second.jobs, EXPORT).state is JobState.DONE
    assert second.exports.job(VISITOR) is None, "its file has gone with the studio"


def test_what_gets_on_between_deaths_goes_on_for_ever_and_what_does_not_ends(
    tmp_path: Path,
) -> None:
    """As a download does, of which more has arrived each time."""
    deaths: list[int] = []

    def run(control: JobControl) -> bool:
        payload = control.entry.job.payload
        control.give(len(deaths) if payload["gets on"] else 0)
        deaths.append(1)
        if len(deaths) > 9:
            return True
        raise ProcessDeathError("It died.", "Try again.")

    kind = Kind(
        name="fetch",
        lane=Lane.NETWORK,
        resumes=True,
        run=run,
        write=dict,
        read=dict,
        title=str,
    )
    jobs = JobQueue(Painter(tmp_path), kinds=[kind])
    first = jobs.wait(jobs.add("fetch", {"gets on": True}, COMPUTER).id, COMPUTER, 20)
    assert first is not None
    assert (first.state, len(deaths)) == (JobState.DONE, 10)
    deaths.clear()
    second = jobs.wait(jobs.add("fetch", {"gets on": False}, COMPUTER).id, COMPUTER, 20)
    jobs.close()
    assert second is not None
    # The first death comes after something new, the zero.
    assert (second.state, len(deaths)) == (JobState.FAILED, 1 + MAX_INTERRUPTIONS)


# --- owners


def test_each_job_is_told_to_its_owner_only(
    tmp_path: Path, studio: Make, importing: FakeImport
) -> None:
    one = studio(0)
    one.imports.start(str(tmp_path), ImportOptions())
    one.exports.start(EVERYTHING, VISITOR)
    one.exports.start(EVERYTHING, OTHER)
    painting = one.jobs.submit(request(count=1), VISITOR)
    everything = one.jobs.jobs(None)
    assert sorted(job.kind for job in everything) == ["export", "export", "import", "paint"]
    for owner in (VISITOR, OTHER):
        mine = one.jobs.jobs(owner)
        assert {job.owner for job in mine} == {owner}
        for job in everything:
            found = one.jobs.get(job.id, owner)
            assert (found is not None) is (job.owner == owner)
            if found is None:
                for verb in ("stop", "retry", "duplicate", "move"):
                    with pytest.raises(RequestError, match="There is no job"):
                        one.jobs.obey(verb, job.id, "first", owner=owner)
                one.jobs.forget(job.id, owner)
                one.jobs.stop(job.id, owner)
    assert [job.id for job in one.jobs.jobs(None)] == [job.id for job in everything]
    latest = one.jobs.latest(VISITOR)
    assert latest is not None
    assert latest.id == painting.id, "Create shows paintings"
    assert one.jobs.stop_all(VISITOR) == 1
    assert one.exports.job(VISITOR) is not None
    assert only_waiting(one.jobs, VISITOR) == [EXPORT], "Stop in Create is for paintings"
    importing.go.set()


def only_waiting(jobs: JobQueue, owner: str) -> list[str]:
    return [job.kind for job in jobs.jobs(owner) if job.state is JobState.WAITING]


def test_no_browser_can_call_itself_the_computer() -> None:
    assert BrowserSession().identify(COMPUTER) != COMPUTER
    assert BrowserSession().identify(COMPUTER * 3) == COMPUTER * 3, (
        "the length is what keeps it out"
    )


def test_a_visitor_exports_their_own_pictures_whatever_they_name(studio: Make) -> None:
    one = studio()
    painted = one.jobs.submit(request(count=1), VISITOR)
    done = one.jobs.wait(painted.id, VISITOR, 20)
    assert done is not None
    one.index.sync()
    mine = done.pictures[0].name
    for order in (ExportOrder(format="zip"), ExportOrder(format="zip", names=(NAME, mine))):
        one.exports.start(order, VISITOR)
        job = ended(one.jobs, EXPORT)
        assert (job.state, job.result.count) == (JobState.DONE, 1), job.error


def test_a_note_that_was_closed_does_not_come_back_with_an_older_one(
    tmp_path: Path, studio: Make, importing: FakeImport
) -> None:
    """The list of jobs keeps the older one, to be retried; the tab says it no more."""
    importing.go.set()
    importing.error = ModelError("It is broken.")
    one = studio()
    one.imports.start(str(tmp_path), ImportOptions())
    failed = ended(one.jobs, IMPORT)
    importing.error = None
    one.imports.start(str(tmp_path), ImportOptions())
    until(lambda: (job := one.imports.job) is not None and job.phase == "done")
    one.imports.dismiss()
    assert one.imports.job is None
    assert [job.id for job in one.jobs.jobs()] == [failed.id]
    one.jobs.obey("retry", failed.id)
    until(lambda: one.jobs.jobs()[0].state is JobState.DONE)


def test_a_note_that_was_closed_stays_closed_over_a_restart(
    tmp_path: Path,
    studio: Make,
    importing: FakeImport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    importing.go.set()
    importing.error = ModelError("It is broken.")

    def broken(*_: object, **__: object) -> None:
        raise ModelError("It is broken.")

    monkeypatch.setattr(ModelStore, "plan", broken)
    one = studio()
    for number in range(2):
        model = (MODEL, SPARE)[number]
        one.imports.start(str(tmp_path), ImportOptions())
        download = one.jobs.add(DOWNLOAD, Fetch(model=model), COMPUTER)
        until(lambda: not any(job.active for job in one.jobs.jobs()))
        assert one.jobs.get(download.id, None).state is JobState.FAILED  # type: ignore[union-attr]
    one.imports.dismiss()
    one.models.dismiss()
    assert (one.imports.job, one.models.job) == (None, None)
    one.jobs.close()
    second = studio()
    assert sorted(job.kind for job in second.jobs.jobs()) == [DOWNLOAD, IMPORT], "the older ones"
    assert (second.imports.job, second.models.job) == (None, None)
    importing.error = None
    second.imports.start(str(tmp_path), ImportOptions())
    until(lambda: (job := second.imports.job) is not None and job.phase == "done")


def together(count: int, what: Callable[[int], None]) -> list[str]:
    """What became of so many calls that begin at once."""
    barrier, said = threading.Barrier(count), []

    def call(number: int) -> None:
        barrier.wait()
        try:
            what(number)
            said.append("begun")
        except BusyError:
            said.append("busy")

    calls = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for one in calls:
        one.start()
    for one in calls:
        one.join()
    return sorted(said)


@pytest.mark.parametrize("which", ["import", "question"])
def test_of_many_who_begin_at_once_one_does(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = parts(tmp_path / "workspace")
    add = one.jobs.add

    def slowly(*arguments: Any, **how: Any) -> Job:
        time.sleep(0.05)
        return add(*arguments, **how)

    monkeypatch.setattr(one.jobs, "add", slowly)

    def begin(number: int) -> None:
        if which == "import":
            one.imports.start(str(tmp_path), ImportOptions())
        else:
            one.models.ask((MODEL, SPARE)[number % 2])

    said = together(4, begin)
    one.jobs.close()
    assert said == ["begun", "busy", "busy", "busy"]


def test_a_download_that_failed_waits_for_retry_while_others_are_asked_about(
    studio: Make,
    hub: FakeHub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The patience of a studio with the storage behind a hub is half a minute.
    monkeypatch.setattr(store, "_hub", lambda: Hub(patience=FAST))
    hub.fail(BIG, status=404, times=9)
    one = studio()
    one.models.ask(MODEL)
    until(lambda: (job := one.models.job) is not None and job.phase == "asked")
    one.models.download(MODEL)
    assert ended(one.jobs, DOWNLOAD).state is JobState.FAILED
    one.models.ask(SPARE)
    until(lambda: not one.models.job.active)  # type: ignore[union-attr]
    assert one.models.job.model == SPARE  # type: ignore[union-attr]
    one.models.dismiss()
    assert one.models.job is None
    assert only(one.jobs, DOWNLOAD).may_retry
    one.models.ask(MODEL)
    until(lambda: (job := one.models.job) is not None and job.phase == "asked")
    hub.faults.clear()
    one.models.download(MODEL)
    assert ended(one.jobs, DOWNLOAD).state is JobState.DONE, "it takes the place of the one before"
    one.models.remove(MODEL)
    assert one.jobs.jobs() == []


# --- what a list shows


def test_titles_progress_and_time_of_every_kind(
    tmp_path: Path,
    studio: Make,
    importing: FakeImport,
    hub: FakeHub,  # noqa: F811
) -> None:
    (tmp_path / "my\nnet.pth").write_bytes(bytes(1000))
    one = studio()
    one.jobs.pause(True)
    one.models.ask(MODEL)
    # A question is answered though the queue is paused.
    until(lambda: (job := one.models.job) is not None and job.phase == "asked")
    assert [job.kind for job in one.jobs.jobs()] == []
    one.models.download(MODEL)
    one.imports.start(str(tmp_path / "my\nnet.pth"), ImportOptions())
    one.exports.start(ExportOrder(format="html", query="red", everybodys=True), VISITOR)
    told = {job.kind: job for job in one.jobs.jobs()}
    title = next(row.title for row in one.models.rows() if row.id == MODEL)
    assert told[DOWNLOAD].title == f"Download {title}"
    assert told[IMPORT].title == "Import my net.pth"
    assert told[EXPORT].title == "Export “red” (Web page)"
    assert {job.state for job in told.values()} == {JobState.WAITING}
    assert told[DOWNLOAD].place == 1
    assert {told[IMPORT].place, told[EXPORT].place} == {1, 2}, "they wait for the same lane"
    one.jobs.pause(False)
    until(lambda: only(one.jobs, IMPORT).progress)
    job = only(one.jobs, IMPORT)
    assert (job.fraction, job.progress and job.progress.sentence()) == (
        *(0.25, "Copying the rest, 10 bytes of 40 bytes"),
    )
    importing.go.set()
    for kind in (DOWNLOAD, IMPORT, EXPORT):
        assert ended(one.jobs, kind).state is JobState.DONE
    # What this machine took for the bytes of the last one is said of the next one.
    one.jobs.pause(True)
    one.jobs.add(DOWNLOAD, Fetch(model=SPARE, left=10**6), COMPUTER)
    next_one = next(job for job in one.jobs.jobs() if job.state is JobState.WAITING)
    assert next_one.seconds_left is not None
    assert next_one.seconds_left > 0


def test_a_row_that_anybody_wrote_is_no_job(tmp_path: Path, studio: Make) -> None:
    first = studio()
    first.jobs.pause(True)
    first.exports.start(EVERYTHING, VISITOR)
    vanish(first)
    rows = [
        (DOWNLOAD, {"model": "../../etc"}),
        (DOWNLOAD, {"model": MODEL, "left": -1, "check": 7}),
        (DOWNLOAD, ["alpha-1024"]),
        (IMPORT, {"source": "relative.pth", "options": {}}),
        (IMPORT, {"source": "/x\x00", "options": {}}),
        (IMPORT, {"source": "/x", "options": {"title": ["x"]}}),
        (IMPORT, {"source": "/x" * 9000, "options": {}}),
        (EXPORT, {"format": "gif", "query": "", "newest": [], "names": None}),
        (EXPORT, {"format": "zip", "query": "", "newest": [], "names": ["../../x.png"]}),
        (EXPORT, {"format": "zip", "query": "x" * 501, "newest": [], "names": None}),
        (EXPORT, {"format": "zip", "query": 7, "newest": {}, "names": "x"}),
    ]
    connection = sqlite3.connect(tmp_path / "workspace" / "jobs.db")
    with connection:
        for number, (kind, payload) in enumerate(rows):
            copy = "INSERT INTO jobs SELECT :id, :kind, owner, client, :payload, state, priority,"
            copy += "position, created, started, ended, progress, result, error, grace, passing,"
            copy += "interruptions, resumed FROM jobs WHERE kind = 'export' LIMIT 1"
            told = {"id": f"{number:032x}", "kind": kind, "payload": json.dumps(payload)}
            connection.execute(copy, told)
    connection.close()
    second = studio()
    # The second one is sound but for a number, which is not taken.
    sound = f"{1:032x}"
    assert {job.id for job in second.jobs.jobs() if job.id.startswith("0" * 30)} == {sound}
    assert second.jobs.get(sound, None).payload == Fetch(model=MODEL)  # type: ignore[union-attr]
    second.jobs.obey("stop", sound)
    second.jobs.pause(False)
    assert ended(second.jobs, EXPORT).state is JobState.DONE
    assert second.store.problem == ""


# --- faults of the database


@pytest.mark.parametrize("fault", ["noise", "a newer version", "locked", "full"])
def test_faults_of_the_database_stop_no_kind(
    tmp_path: Path, studio: Make, importing: FakeImport, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing.go.set()
    first = studio()
    first.exports.start(EVERYTHING, VISITOR)
    ended(first.jobs, EXPORT)
    first.jobs.close()
    with spoiled(tmp_path / "workspace" / "jobs.db", fault, monkeypatch) as words:
        second = studio()
        second.imports.start(str(tmp_path), ImportOptions())
        # Far more than there is room for where the disk is full.
        second.exports.start(replace(EVERYTHING, names=(NAME,) * 3000), OTHER)
        assert ended(second.jobs, IMPORT).state is JobState.DONE
        until(lambda: all(not job.active for job in second.jobs.jobs()))
        assert second.exports.file(second.jobs.jobs(OTHER)[0].id).is_file()
        assert words in second.store.problem
    second.exports.dismiss(OTHER)
    second.exports.start(EVERYTHING, OTHER)
    until(lambda: all(not job.active for job in second.jobs.jobs()))
    until(lambda: "kept aside" in second.store.problem or second.store.problem == "")
    second.jobs.close()
    third = studio()
    assert only(third.jobs, IMPORT).result == "net"
    assert [job.state for job in third.jobs.jobs(OTHER)] == [JobState.DONE]
    assert third.store.problem == ""


@contextmanager
def spoiled(file: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The database with a fault for the block; what is said of it."""
    if fault == "noise":
        file.write_bytes(os.urandom(20_000))
        yield "was damaged"
        return
    connection = sqlite3.connect(file, isolation_level=None)
    if fault == "a newer version":
        connection.execute(f"PRAGMA user_version = {FORM + 1}")
        connection.close()
        yield "newer version"
        return
    if fault == "locked":
        connection.execute("BEGIN EXCLUSIVE")
        yield "locked by another program"
        connection.execute("ROLLBACK")
        connection.close()
        return
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    connect = sqlite3.connect

    def full(path: Any, *arguments: Any, **how: Any) -> Any:
        made = connect(path, *arguments, **how)
        if Path(str(path).removeprefix("file:")).name.startswith(file.name):
            made.execute(f"PRAGMA max_page_count = {pages}")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", full)
        yield "disk is full"


# --- the device, and a studio that is merely built


def test_another_kind_of_the_device_has_it_for_itself(tmp_path: Path) -> None:
    said: list[str] = []
    painter = Painter(tmp_path / "outputs")
    paint = painter.paint

    def painting(*arguments: Any, **more: Any) -> None:
        said.append("painted")
        paint(*arguments, **more)

    painter.paint = painting  # type: ignore[method-assign]

    @contextmanager
    def lend() -> Iterator[None]:
        said.append("given up")
        try:
            yield
        finally:
            said.append("taken back")

    def caption(control: JobControl) -> bool:
        said.append("captioned")
        if control.entry.job.payload["fails"]:
            raise ModelError("It is broken.")
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
    jobs = JobQueue(painter, kinds=[kind], lend=lend, runs=False)
    jobs.submit(request(count=1), COMPUTER)
    jobs.add("caption", {"fails": False}, COMPUTER)
    jobs.add("caption", {"fails": True}, COMPUTER)
    last = jobs.submit(request(count=1), COMPUTER)
    jobs.start()
    assert jobs.wait(last.id, COMPUTER, 20)
    jobs.close()
    lent = ["given up", "captioned", "taken back"]
    assert said == ["painted", *lent, *lent, "painted"]


def test_a_studio_that_is_merely_built_begins_nothing(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    built = parts(tmp_path)
    job = built.jobs.submit(request(count=1), COMPUTER)
    # One of a test before it may end meanwhile.
    assert set(threading.enumerate()) <= before
    time.sleep(0.1)
    assert built.jobs.get(job.id, COMPUTER).state is JobState.WAITING  # type: ignore[union-attr]
    built.jobs.close()
    started = parts(tmp_path)
    started.jobs.start()
    done = started.jobs.wait(job.id, COMPUTER, 20)
    started.jobs.close()
    assert done is not None
    assert done.state is JobState.DONE
