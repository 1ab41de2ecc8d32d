"""The Jobs panel in a browser: from every tab, by keyboard, on a telephone, for visitors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.jobs.job import Job, JobState
from tests.app.ui.fake_studio import FakeStudio

pytestmark = pytest.mark.timeout(180)
OTHERS = "somebody-at-another-browser"
TOGGLE = "[data-jobs-toggle]"


def queue(studio: FakeStudio, prompt: str, count: int = 1) -> Job:
    """One more job of another browser of this computer."""
    values = {"prompt": prompt, "model": "nano", "steps": 8, "count": count}
    return studio.submit(studio.request(values), OTHERS)


@pytest.fixture
def release(studio: FakeStudio) -> Iterator[Callable[[], None]]:
    """What paints waits behind its first step until this is called; nothing is left behind."""
    with ExitStack() as held:
        held.enter_context(studio.runner.held())
        yield held.close
        studio.resume_jobs()
        studio.stop_all(OTHERS)


def states(page: Any, state: str) -> list[str]:
    """The titles of the jobs in one state, from top to bottom."""
    found: list[str] = page.locator(f".job[data-state={state}] .title").all_inner_texts()
    return found


def until(page: Any, state: str, titles: list[str]) -> None:
    """Waits until the panel lists just these jobs in that state."""
    page.wait_for_function(
        """([state, titles]) => JSON.stringify([...document.querySelectorAll(
          `.job[data-state=${state}] .title`)].map((one) => one.innerText)) === titles""",
        arg=[state, json.dumps(titles, separators=(",", ":"))],
    )


def test_the_queue_is_seen_and_put_in_order_from_any_tab(
    visit: Callable[..., Any], studio: FakeStudio, release: Callable[[], None]
) -> None:
    page = visit()
    queue(studio, "the first", count=2)
    for prompt in ("b", "c", "d"):
        queue(studio, prompt)
    page.get_by_role("tab", name="Models").click()
    page.wait_for_selector(f"{TOGGLE}:has-text('4')")
    page.click(TOGGLE)
    until(page, "running", ["the first"])
    until(page, "waiting", ["b", "c", "d"])
    page.click("[aria-label='Move up: d']")
    until(page, "waiting", ["b", "d", "c"])
    page.select_option(".job:has-text('c') select", "high")
    until(page, "waiting", ["c", "b", "d"])
    page.click("[aria-label='Take out of the queue: b']")
    until(page, "waiting", ["c", "d"])
    page.click("text=Pause the queue")
    page.wait_for_selector("text=Resume the queue")
    release()
    page.wait_for_selector(".job[data-state=done]:has-text('the first') .thumbs img")
    assert states(page, "waiting") == ["c", "d"]
    page.click("text=Resume the queue")
    page.wait_for_function("document.querySelectorAll('.job[data-state=done]').length >= 3")
    until(page, "waiting", [])


def test_what_failed_says_why_and_is_tried_again(
    visit: Callable[..., Any], studio: FakeStudio, release: Callable[[], None]
) -> None:
    page = visit()
    studio.runner.die_at = 0
    release()
    job = queue(studio, "a storm & <b>more</b>")
    studio.wait(job.id, OTHERS, 20)
    page.keyboard.press("Alt+j")
    row = page.locator(f"[data-job='{job.id}']")
    row.locator(".error").wait_for()
    assert "ended in the middle of the work" in row.inner_text()
    assert "a storm & <b>more</b>" in row.inner_text()
    row.get_by_role("button", name="Retry").click()
    page.wait_for_selector(f"[data-job='{job.id}'][data-state=done]")
    page.click(f"[data-job='{job.id}'] [data-do=duplicate]")
    page.wait_for_function("document.querySelectorAll('.job[data-state=done]').length >= 2")


def test_a_job_that_is_stopped_in_the_panel_keeps_what_is_done(
    visit: Callable[..., Any], studio: FakeStudio, release: Callable[[], None]
) -> None:
    page = visit(width=390, height=844)
    job = queue(studio, "three", count=3)
    page.click(TOGGLE)
    until(page, "running", ["three"])
    box = page.locator("#jobs-panel").bounding_box()
    assert (box["x"], box["width"]) == (0, 390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # What waits behind a step is stopped there; let go, it might be done before the press comes.
    page.click("[aria-label='Stop: three']")
    page.wait_for_selector(f"[data-job='{job.id}'][data-state=stopped]")
    last = studio.job(job.id, OTHERS)
    assert last is not None
    assert last.state is JobState.STOPPED


def test_the_panel_opens_and_closes_by_keyboard(
    visit: Callable[..., Any], studio: FakeStudio
) -> None:
    page = visit()
    page.focus("#prompt textarea")
    page.keyboard.press("Alt+j")
    page.wait_for_function("document.activeElement.id === 'jobs-title'")
    assert page.get_attribute(TOGGLE, "aria-expanded") == "true"
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.matches('[data-jobs-toggle]')")
    assert not page.is_visible("#jobs-title")
    page.keyboard.press("Enter")
    page.wait_for_selector("#jobs-title")


def test_a_second_tab_and_a_reload_show_the_same(
    visit: Callable[..., Any], studio: FakeStudio, release: Callable[[], None]
) -> None:
    first = visit()
    queue(studio, "one", count=2)
    queue(studio, "two")
    for page in (first, visit(context=first.context)):
        page.click(TOGGLE)
        until(page, "running", ["one"])
        until(page, "waiting", ["two"])
    first.reload()
    first.wait_for_function("window.studioReady === true")
    first.wait_for_selector(f"{TOGGLE}:has-text('2')")
    first.click(TOGGLE)
    until(first, "waiting", ["two"])
