"""Rows that anybody may have written, owners that no database holds, and orders of the past."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import scratch
from app.cli.main import main
from app.jobs import exports, rows, table
from app.jobs.entry import Entry
from app.jobs.exports import EXPORT, ExportOrder
from app.jobs.job import Job, JobState
from app.jobs.rows import COLUMNS
from app.jobs.store import JobStore
from app.settings import Settings
from pipelines.errors import RequestError
from tests.app.jobs.test_store import OWNER, Studio, request

HALF = "\ud800" * 20
"""Half characters: JSON holds them, a database does not."""
ID = "0123456789abcdef" * 2
ALL = ExportOrder(format="zip", everybodys=True)
EXPORTED = json.dumps(
    {"format": "zip", "names": None, "query": "", "newest": [], "everybodys": True}
)
LARGE = "9" * 400


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Callable[..., Studio]]:
    """Studios of one workspace, with every kind of job."""
    made: list[Studio] = []

    def make(*arguments: Any, **how: Any) -> Studio:
        kinds = table.kinds(Settings(workspace=tmp_path))
        made.append(Studio(tmp_path, *arguments, kinds=kinds, **how))
        return made[-1]

    yield make
    for one in made:
        one.jobs.close()


Make = Callable[..., Studio]


def put(folder: Path, **columns: Any) -> None:
    """A row as anybody may write it."""
    file = folder / "jobs.db"
    store = JobStore(file)
    store.note("any", "note")
    store.close()
    row = {
        "id": ID,
        "kind": "paint",
        "owner": OWNER,
        "client": "",
        "state": "waiting",
        "payload": json.dumps(request(count=1).recipe()),
        "priority": 0,
        "position": 1.0,
        "created": time.time(),
        "started": None,
        "ended": None,
        "progress": "{}",
        "result": "{}",
        "error": None,
        "grace": None,
        "passing": 0,
        "interruptions": 0,
        "resumed": 0,
    } | columns
    connection = sqlite3.connect(file)
    with connection:
        marks = ", ".join("?" * len(COLUMNS))
        sql = f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({marks})"
        connection.execute(sql, [row[name] for name in COLUMNS])
    connection.close()


def until(holds: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return found


# --- what no database holds


def test_an_owner_that_no_database_holds_stops_nobody(tmp_path: Path, studio: Make) -> None:
    one = studio()
    for kind, payload in (("paint", request(count=1)), (EXPORT, ALL)):
        bad = one.jobs.add(kind, payload, HALF)
        assert not one.ended(bad).active
        good = one.ended(one.jobs.submit(request(count=1), OWNER))
        assert good.state is JobState.DONE
    assert one.jobs.latest(HALF) is not None
    assert one.store.problem == ""
    names = {thread.name for thread in threading.enumerate()}
    assert names >= {"jobs-device", "jobs-disk", "jobs-network", "jobs-orders"}
    assert main(["jobs", "pause", "--workspace", str(tmp_path)]) == 0
    one.jobs.close()
    second = studio(runs=False)
    assert {job.owner for job in second.jobs.jobs()} == {OWNER}


def test_a_row_that_cannot_be_made_costs_only_itself(
    studio: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_of = rows.row_of

    def broken(entry: Any, *arguments: Any, **how: Any) -> Any:
        if entry.job.owner == "faulty":
            raise ZeroDivisionError("ours")
        return row_of(entry, *arguments, **how)

    monkeypatch.setattr(rows, "row_of", broken)
    one = studio()
    made = [one.jobs.submit(request(count=1), owner) for owner in ("faulty", OWNER)]
    assert {one.ended(job).state for job in made} == {JobState.DONE}
    one.jobs.close()
    assert [job.id for job in studio(runs=False).jobs.jobs()] == [made[1].id]


@pytest.mark.parametrize("running", [True, False])
def test_a_command_line_that_is_no_text_is_a_sentence(
    tmp_path: Path, studio: Make, capsys: pytest.CaptureFixture[str], running: bool
) -> None:
    one = studio()
    one.ended(one.jobs.submit(request(count=1), OWNER))
    if not running:
        one.jobs.close()
    assert main(["jobs", "stop", "\udcff" * 4, "--workspace", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "There is no job" in line
    assert one.store.problem == ""


# --- numbers of jobs


@pytest.mark.parametrize("name", ["{victim}", "../../victim", ".", "", ID.upper(), ID + "\n"])
def test_a_number_that_leads_elsewhere_is_no_job(tmp_path: Path, studio: Make, name: str) -> None:
    folder = scratch.folder(Settings(workspace=tmp_path).exports)
    victim, file = folder.parents[1] / "victim", folder / "of somebody else"
    victim.mkdir(exist_ok=True)
    for kept in (victim / "file", file):
        kept.touch()
    put(tmp_path, id=name.format(victim=victim), kind=EXPORT, payload=EXPORTED)
    one = studio()
    assert one.jobs.jobs() == []
    assert one.ended(one.jobs.add(EXPORT, ALL, OWNER)).state is JobState.FAILED, "nothing is found"
    assert (victim / "file").exists()
    assert file.exists()


def test_an_export_looks_at_its_number_too(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    kind = exports.kind(tmp_path / "exports", lambda order, owner: ())
    job = Job(id=str(tmp_path / "victim"), owner=OWNER, kind=EXPORT, payload=ALL)
    control: Any = type("Control", (), {"entry": Entry(job=job, position=0.0)})
    with pytest.raises(RequestError, match="no number of a job"):
        kind.run(control)
    assert (tmp_path / "victim").is_dir()


# --- numbers


@pytest.mark.parametrize(
    "columns",
    [
        {"interruptions": 1e300},
        {"interruptions": -(2.0**62), "state": "running"},
        {"interruptions": 1e300, "state": "running"},
        {"priority": 9e999},
        {"priority": -9e999, "state": "running"},
    ],
)
def test_a_studio_begins_with_any_number(
    tmp_path: Path, studio: Make, columns: dict[str, Any]
) -> None:
    put(tmp_path, **columns)
    one = studio()
    assert one.ended(one.jobs.submit(request(count=1), OWNER)).state is JobState.DONE
    until(lambda: not any(job.active for job in one.jobs.jobs()))
    assert one.store.problem == ""


@pytest.mark.parametrize(
    "columns",
    [
        {"priority": 9e999},
        {"result": '{"pictures": 5}'},
        {"result": '{"pictures": {"name": 5}, "title": [1, 2]}'},
        {"created": 9e999, "started": 9e999, "ended": -9e999},
        {"kind": "download", "progress": f'{{"done": {"9" * 4299}, "total": 1}}'},
        {"kind": "download", "progress": '{"done": -1, "total": true}'},
    ],
)
def test_any_row_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any]
) -> None:
    put(tmp_path, **columns)
    for words in (["list"], ["list", "--json"]):
        assert main(["jobs", *words, "--workspace", str(tmp_path)]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert ID[:8] in line
    told = json.loads(line)
    assert (told["done"], told["priority"] in (0, 9)) == (0, True)


@pytest.mark.parametrize("state", ["waiting", "failed"])
@pytest.mark.parametrize(
    ("kind", "payload", "result", "taken"),
    [
        ("download", f'{{"model": "alpha-512", "left": {LARGE}}}', "{}", True),
        ("download", f'{{"model": "alpha-512", "left": {2**53 + 1}}}', "{}", True),
        ("download", '{"model": "alpha-512"}', f'{{"files": [["a", {LARGE}, 0]]}}', False),
        ("download", '{"model": "alpha-512"}', '{"files": [["a", -1, 0]]}', False),
        ("download", '{"model": "alpha-512"}', f'{{"spare": {LARGE}}}', False),
        ("import", f'{{"source": "/x", "options": {{}}, "size": {LARGE}}}', "{}", True),
        ("import", f'{{"source": "/x", "options": {{"tokens": {LARGE}}}}}', "{}", False),
        ("import", '{"source": "/x", "options": {"tokens": NaN}}', "{}", False),
    ],
)
def test_a_number_that_is_too_large_is_not_taken(
    tmp_path: Path, studio: Make, state: str, kind: str, payload: str, result: str, taken: bool
) -> None:
    ended = None if state == "waiting" else time.time()
    put(tmp_path, kind=kind, payload=payload, result=result, state=state, ended=ended)
    settings = Settings(workspace=tmp_path)
    (download, imported) = (
        one for one in table.kinds(settings) if one.name in ("download", "import")
    )
    store = JobStore(settings.jobs)
    for one in (download, imported):
        store.learn(
            one.timing(one.read(json.loads(payload))) if one.name == kind and taken else "x", 1e-8
        )
    store.close()
    jobs = studio(runs=False).jobs.jobs()
    assert len(jobs) == taken
    for job in jobs:
        assert job.seconds_left is None, "it is not known"
        assert getattr(job.payload, "left", None) is None
        assert getattr(job.payload, "size", 0) == 0
