"""What a person does on the Models tab, in a real browser, with a hub on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.app.ui.fake_studio import FakeStudio
from tests.browser.conftest import still
from tests.fake_hub import FakeHub, safetensors
from tests.hub.conftest import ALPHA, BIG, COMMIT, _clean, hub  # noqa: F401

pytestmark = [pytest.mark.timeout(90)]
Visit = Callable[..., Any]
CARD = '[data-model="alpha-1024"]'


def open_models(page: Any) -> None:
    page.get_by_role("tab", name="Models").click()
    page.wait_for_selector(".model-card")


def press(page: Any, do: str) -> None:
    page.click(f"{CARD} [data-do={do}]")


def test_download_stop_reload_go_on_use_remove(
    visit: Visit,
    studio: FakeStudio,
    hub: FakeHub,  # noqa: F811
) -> None:
    hub.put(ALPHA, COMMIT, {BIG: safetensors(2_000_000, 1)})
    page = visit()
    assert "Needs 0.2 GB, 11.2 GB are free" in page.wait_for_selector(".forecast").inner_text()
    open_models(page)
    press(page, "ask")
    page.wait_for_selector(f"{CARD} .ask")
    job = studio.models.job
    assert job is not None
    assert f"{job.left:,} bytes" in page.inner_text(f"{CARD} .ask")
    # It does not come to its end before the stop; afterwards the rest comes at once.
    with hub.held(BIG, behind=200_000):
        press(page, "download")
        page.wait_for_function(f"document.querySelector('{CARD} .said')?.innerText.includes('/s')")

        page.reload()
        page.wait_for_function("window.studioReady === true")
        open_models(page)
        page.wait_for_selector(f"{CARD} [role=progressbar][aria-valuenow]")
        assert "safetensors" in page.inner_text(f"{CARD} .files")
        press(page, "stop")
        page.wait_for_selector(f"{CARD} [data-do=dismiss]")
    assert "are kept" in page.inner_text(f"{CARD} .said")
    press(page, "download")
    page.wait_for_selector(f"{CARD} [data-do=use]")

    press(page, "use")
    page.wait_for_selector("#prompt textarea")
    page.wait_for_function("document.querySelector('#model select').value === 'alpha-1024'")
    assert page.is_checked("#size input[value='1024x1024']")
    assert "PixArt-α 1024" in page.inner_text("#model-badge")

    open_models(page)
    page.wait_for_function(f"document.querySelector('{CARD}').innerText.includes('In use')")
    press(page, "ask-remove")
    press(page, "remove")
    page.wait_for_selector(f"{CARD} [data-do=ask]")
    assert "are free again" in page.inner_text(".shelf-note[role=status]")
    page.get_by_role("tab", name="Create").click()
    page.wait_for_function("document.querySelector('#model select').value === 'nano'")


def test_a_hub_that_refuses_is_a_sentence(visit: Visit, hub: FakeHub) -> None:  # noqa: F811
    hub.fail(f"list {ALPHA}", status=403, times=9)
    page = visit(width=390, height=844)
    open_models(page)
    press(page, "ask")
    page.wait_for_selector(f"{CARD} .said.bad")
    press(page, "dismiss")
    page.wait_for_selector(f"{CARD} [data-do=ask]")


def test_the_forecast_keeps_its_place(visit: Visit, studio: FakeStudio) -> None:
    known = studio.runner.state
    height = "document.querySelector('#frame').getBoundingClientRect().height"
    page = visit()
    page.wait_for_function("document.querySelector('.forecast').innerText !== ''")
    before = page.evaluate(height)
    try:
        studio.runner.state = type(known)()
        page.wait_for_function("document.querySelector('.forecast').innerText === ''")
        assert page.evaluate(height) == before
    finally:
        studio.runner.state = known


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_axe(visit: Visit, width: int, height: int, theme: str, hub: FakeHub) -> None:  # noqa: F811
    page = visit(width=width, height=height, theme=theme)
    open_models(page)
    press(page, "ask")
    page.wait_for_selector(f"{CARD} .ask")
    still(page)
    faults = [
        (violation["id"], node["target"])
        for violation in Axe().run(page).response["violations"]
        for node in violation["nodes"]
    ]
    wide = page.evaluate("document.documentElement.scrollWidth")
    press(page, "dismiss")
    page.wait_for_selector(f"{CARD} [data-do=ask]")
    assert not faults, "\n".join(map(str, faults))
    assert wide <= width
