"""A page in headless Chromium that fails on errors and on requests to anywhere else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.models import own_models
from app.ui.build import prepare
from app.ui.serving import one_loop
from tests.app.ui.fake_studio import FakeStudio, served

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Names of other sites, which lead here as names of an attacker would.
    "--host-resolver-rules=MAP *.example 127.0.0.1, MAP *.example.org 127.0.0.1",
]
# What gradio itself writes to the console, and why it is no fault of the page.
NOISE = (
    # An upload that is no picture is refused; Chromium notes each such answer.
    "status of 415",
    "WebSocket",
    "iframe-resizer",
    "Method not implemented",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whatever lies in this folder needs a browser, and no file has to say so."""
    item.add_marker(pytest.mark.browser)


def still(page: Any) -> None:
    """Waits until nothing on the page moves or fades any more, but for what does so for ever."""
    # What was pressed is answered first.
    page.wait_for_timeout(350)
    page.wait_for_function(
        """document.getAnimations().every((one) => one.playState !== "running"
          || one.effect.getComputedTiming().endTime === Infinity)"""
    )


def settled(page: Any, selector: str) -> None:
    """Waits until that part keeps its place in the window."""
    page.wait_for_function(
        """(selector) => {
          const {top, left} = document.querySelector(selector).getBoundingClientRect();
          const place = `${top} ${left}`;
          window.unmoved = window.place === place ? window.unmoved + 1 : 0;
          window.place = place;
          return window.unmoved > 4;
        }""",
        arg=selector,
        polling=100,
    )


def remembered(page: Any) -> None:
    """Waits until the browser has taken down the form as it is."""
    page.wait_for_function(
        """() => {
          const now = localStorage.getItem("pixart-studio-form");
          window.same = window.last === now ? window.same + 1 : 0;
          window.last = now;
          return window.same > 4;
        }""",
        polling=100,
    )


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}; CI must run the browser tests")
    pytest.skip(what)


@pytest.fixture(scope="session", autouse=True)
def _one_loop() -> Iterator[None]:
    with one_loop():
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    # The shell has no window to draw: half the processor time for the same pages.
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        _missing("no Chromium on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeStudio, str]]:
    studio = FakeStudio(tmp_path_factory.mktemp("browser"), steps=8)
    with served(studio) as address:
        yield studio, address


@pytest.fixture
def studio(_served: tuple[FakeStudio, str]) -> Iterator[FakeStudio]:
    """The one studio behind every test; each browser profile is a person of its own.

    A test that fails midway must not make the next ones fail: models, jobs and notes of it go.
    """
    studio, _ = _served
    # What gradio reads is of the process: a test with a studio of its own has changed it.
    prepare(studio.settings)
    studio.runner.pace = 0.03
    studio.runner.die_at = None
    yield studio
    for job in studio.jobs(None):
        studio.stop(job.id, job.owner)
        studio.wait(job.id, job.owner, 60)
        studio._jobs.forget(job.id, job.owner)
    models = studio.models
    for face in (studio.imports, models):
        face.stop()
        while (work := face.job) is not None and work.active:
            time.sleep(0.01)
        face.dismiss()
    for row in models.rows(fresh=True):
        if row.state == "own":
            own_models.remove(studio.settings.models, row.id)
        elif row.arrived:
            models.remove(row.id)
    shutil.rmtree(studio.settings.loras, ignore_errors=True)
    studio.models_changed()


@pytest.fixture
def address(_served: tuple[FakeStudio, str]) -> str:
    return _served[1]


@pytest.fixture
def visit(browser: Any, address: str, studio: FakeStudio) -> Iterator[Callable[..., Any]]:
    """Opens the page in a fresh browser profile, or in the given one; checks it at the end."""
    faults: list[str] = []
    contexts: list[Any] = []

    def listen(page: Any) -> None:
        def console(message: Any) -> None:
            if message.type == "error" and not any(n in message.text for n in NOISE):
                faults.append(f"console: {message.text} {message.location.get('url', '')}")

        def request(sent: Any) -> None:
            parts = urlsplit(sent.url)
            if parts.scheme in ("http", "https", "ws") and parts.hostname != "127.0.0.1":
                faults.append(f"request to {sent.url}")

        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", console)
        page.on("request", request)

    def open_page(
        *, width: int = 1440, height: int = 900, theme: str = "dark", context: Any = None
    ) -> Any:
        if context is None:
            # The system asks for light, so that a dark page is the studio's own doing.
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="light",
                reduced_motion="reduce",
            )
            context.add_init_script(
                f"localStorage.getItem('pixart-studio-theme') ||"
                f" localStorage.setItem('pixart-studio-theme', '{theme}')"
            )
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        listen(page)
        page.goto(address)
        page.wait_for_function("window.studioReady === true")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
