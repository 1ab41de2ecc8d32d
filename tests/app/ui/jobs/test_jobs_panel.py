"""The Jobs panel: what it lists for whom, what its buttons do, and what a hostile press gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs.job import Job, JobState
from app.ui.build import build
from app.ui.create.watch import BrowserSession
from app.ui.jobs import view
from app.ui.jobs.handlers import PanelState
from pipelines.errors import WorkerError
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio

ME, OTHER = "m" * 20, "o" * 20


class Panel:
    """The handlers of the panel, as gradio would call them for one browser tab."""

    def __init__(self, studio: FakeStudio, owner: str = ME, request: Any = HERE) -> None:
        self.state, self.browser = PanelState(), BrowserSession()
        self._owner, self._request = owner, request
        self._fns: dict[Any, Any] = {f.api_name: f.fn for f in build(studio).fns.values()}
        self.shown: dict[str, Any] = {}

    def press(self, data: Any) -> str:
        """The panel after a press with that data."""
        event = SimpleNamespace(_data=data)
        return self._told(self._call("act_jobs", event))

    def tick(self) -> set[str]:
        """The parts that the timer brought."""
        told = self._call("tick_jobs")
        self._told(told)
        parts = told if isinstance(told, dict) and "__type__" not in told else {}
        return {str(k.elem_id or type(k).__name__) for k in parts}

    def _call(self, name: str, *more: Any) -> Any:
        return self._fns[name](self.state, self.browser, self._owner, self._request, *more)

    def _told(self, answer: Any) -> str:
        if isinstance(answer, dict) and "__type__" not in answer:
            self.shown |= {str(k.elem_id or type(k).__name__): v for k, v in answer.items()}
        return str(self.shown.get("jobs-panel", ""))


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    studio = FakeStudio(tmp_path, steps=2)
    studio.start()
    with studio.runner.held():
        yield studio
    studio.close()


def ask(studio: FakeStudio, prompt: str, owner: str = ME, count: int = 1) -> Job:
    values = {"prompt": prompt, "model": "nano", "count": count}
    return studio.submit(studio.request(values), owner)


def waiting(panel: str) -> list[str]:
    """The titles of what waits, in order; of markup that is not escaped there would be others."""
    rows = panel.split('data-state="waiting"')[1:]
    return [row.split("<bdi>")[1].split("</bdi>")[0] for row in rows]


def test_closed_it_costs_a_count_and_nothing_else(studio: FakeStudio) -> None:
    # So that nothing else happens meanwhile.
    studio.pause_jobs()
    panel = Panel(studio)
    panel.tick()
    ask(studio, "a cat")
    assert panel.tick() == {"jobs-chip"}
    assert "1 job runs or waits" in panel.shown["jobs-chip"]
    assert panel.tick() == set()
    assert not panel.shown.get("jobs-panel")


def test_a_visitor_sees_and_touches_only_their_own(studio: FakeStudio) -> None:
    studio.pause_jobs()
    mine, theirs = ask(studio, "mine"), ask(studio, "theirs", OTHER)
    also = ask(studio, "also mine")
    visitor = Panel(studio, request=ELSEWHERE)
    shown = visitor.press({"do": "open"})
    assert "mine" in shown
    assert "theirs" not in shown
    assert "2 jobs run or wait" in visitor.shown["jobs-chip"]
    assert 'data-do="resume"' not in shown
    for press in ("stop", "duplicate", "retry"):
        refused = visitor.press({"do": press, "name": theirs.id})
        assert "There is no job" in refused
    for press in ("resume", "move", "priority"):
        refused = visitor.press({"do": press, "name": also.id, "value": "up"})
        assert "The queue is paused and given priorities" in refused
    assert studio.paused
    assert {job.id for job in studio.jobs(None)} == {mine.id, theirs.id, also.id}
    visitor.press({"do": "stop", "name": also.id})
    stopped = studio.job(also.id, ME)
    assert stopped is not None
    assert stopped.state is JobState.STOPPED


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "open",
        {"do": ["open"]},
        {"do": "stop", "name": "../../etc/passwd"},
        {"do": "stop"},
        {"do": "move", "name": "x" * 10_000, "value": {"up": 1}},
        {"do": "obey", "name": "x"},
        {"do": "priority", "name": "\ud800", "value": "\x1b[31m"},
    ],
)
def test_a_hostile_press_changes_nothing(studio: FakeStudio, data: Any) -> None:
    studio.pause_jobs()
    ask(studio, "one")
    before = [(job.id, job.state) for job in studio.jobs(None)]
    panel = Panel(studio)
    panel.press({"do": "open"})
    panel.press(data)
    assert [(job.id, job.state) for job in studio.jobs(None)] == before


def test_what_waits_is_put_in_order_and_says_its_place(studio: FakeStudio) -> None:
    studio.pause_jobs()
    jobs = {name: ask(studio, name) for name in ("a", "b", "<i>c</i>")}
    panel = Panel(studio)
    assert waiting(panel.press({"do": "open"})) == ["a", "b", "&lt;i&gt;c&lt;/i&gt;"]
    press = {"do": "move", "name": jobs["b"].id, "value": "up"}
    assert waiting(panel.press(press))[:2] == ["b", "a"]
    press = {"do": "priority", "name": jobs["<i>c</i>"].id, "value": "high"}
    assert waiting(panel.press(press))[0] == "&lt;i&gt;c&lt;/i&gt;"
    panel.press({"do": "resume"})
    assert not studio.paused
    assert "The queue is paused" in panel.press({"do": "pause"})
    assert studio.paused


def test_an_error_is_shown_whole_with_its_way_out() -> None:
    failed = Job(
        id="j",
        owner=ME,
        payload=None,
        kind="download",
        title="Download <b>PixArt</b>",
        state=JobState.FAILED,
        error=WorkerError("The disk is full.", "Free some space & retry."),
    )
    html = view.panel(view.Panel(jobs=[failed], paused=False, all_jobs=True))
    assert "The disk is full. Free some space &amp; retry." in html
    assert "Download &lt;b&gt;PixArt&lt;/b&gt;" in html
    assert 'data-do="retry"' in html


def test_pictures_that_somebody_took_away_are_not_listed(tmp_path: Path) -> None:
    studio = FakeStudio(tmp_path, steps=2)
    studio.start()
    job = ask(studio, "a cat", count=6)
    studio.wait(job.id, ME, 20)
    done = studio.job(job.id, ME)
    assert done is not None
    done.pictures[0].path.unlink()
    html = view.panel(view.Panel(jobs=[done], paused=False, all_jobs=True))
    assert done.pictures[0].name not in html
    assert [html.count(file.name) for file in done.pictures] == [0, 2, 2, 2, 2, 0]
    assert "+1</span>" in html
    studio.close()


def test_no_browser_can_bring_a_name_that_no_database_holds(studio: FakeStudio) -> None:
    for name in ("\ud800" * 20, "a\0" * 10, "é" * 20, "\n" * 20):
        assert BrowserSession().identify(name) != name
    assert BrowserSession().identify(ME) == ME
