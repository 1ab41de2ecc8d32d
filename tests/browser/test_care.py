"""The report, encoded prompts, and a model of one's own from its file to its end, in a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from app.models import import_process
from app.models.rows import ImportOptions
from app.settings import Settings
from pipelines.progress import Progress, Report, ShouldStop, Stage
from tests import original
from tests.app.ui.fake_studio import FakeStudio
from tests.browser.conftest import still
from tests.browser.test_models import open_models

pytestmark = [pytest.mark.timeout(400)]
Visit = Callable[..., Any]
CARD = '[data-model="net"]'


def sound(page: Any) -> None:
    """axe finds nothing, and nothing is wider than the window."""
    still(page)
    faults = [
        (violation["id"], node["target"])
        for violation in Axe().run(page).response["violations"]
        for node in violation["nodes"]
    ]
    assert not faults, "\n".join(map(str, faults))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def open_form(page: Any) -> None:
    # Torch is loaded anew for each import; a busy machine takes a minute for it.
    page.set_default_timeout(150_000)
    page.get_by_role("button", name="Import a model of your own").click()
    page.wait_for_selector("#import-start", state="visible")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_report_is_read_copied_and_closed(
    visit: Visit, studio: FakeStudio, width: int, height: int, theme: str
) -> None:
    studio.settings.prompts.mkdir(parents=True, exist_ok=True)
    (studio.settings.prompts / "x.safetensors").write_bytes(bytes(2_000_000))
    page = visit(width=width, height=height, theme=theme)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_models(page)
    page.get_by_role("button", name="Check this computer").click()
    page.wait_for_selector(".report")
    assert page.evaluate("document.activeElement.closest('.report') !== null")
    open_form(page)
    sound(page)
    page.get_by_role("button", name="Copy").click()
    page.wait_for_selector("text=Copied")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].strip() == "studio: 0.1.0"
    assert any(line.strip().startswith("nano: 128x128 needs") for line in lines)
    page.get_by_role("button", name="Close the report").click()
    page.wait_for_selector(".report", state="detached")
    assert "2.0 MB of 256 MB" in page.inner_text(".care-row")
    page.get_by_role("button", name="Clear encoded prompts").click()
    page.wait_for_selector("text=2.0 MB are free")
    assert studio.prompt_bytes() == 0


def test_a_file_becomes_a_model_and_goes_again(
    visit: Visit, studio: FakeStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.pth"
    # As wide as a net must be whose heads are known, with the text width of the model that ships.
    state = original.state(width=384, layers=1, captions=256)
    torch.save({"state_dict": state}, file)
    page = visit()
    open_models(page)
    open_form(page)
    page.fill("#import-path :is(input, textarea)", str(file))
    page.fill("#import-title :is(input, textarea)", "My net")
    page.get_by_role("button", name="Import", exact=True).click()
    page.wait_for_selector("#imported .said.bad")
    assert "Choose a model to take T5 and VAE from." in page.inner_text("#imported")
    assert page.input_value("#import-title :is(input, textarea)") == "My net"
    sound(page)

    page.select_option("#import-parts select", "nano")
    importing, seen = import_process.run, threading.Event()

    def once_it_is_seen(*arguments: Any, report: Report, **more: Any) -> str | None:
        report(Progress(stage=Stage.TENSORS, done=0, total=1))
        assert seen.wait(120)
        return importing(*arguments, report=report, **more)

    monkeypatch.setattr(import_process, "run", once_it_is_seen)
    page.get_by_role("button", name="Import", exact=True).click()
    page.wait_for_selector("#imported [role=progressbar]")
    seen.set()
    page.wait_for_selector("#imported .said.good")
    assert "“My net” is here." in page.inner_text("#imported")
    assert page.input_value("#import-path :is(input, textarea)") == ""
    page.click("#imported [data-do=use]")
    page.wait_for_function("document.querySelector('#model select').value === 'net'")
    assert "My net" in page.inner_text("#model-badge")

    open_models(page)
    # The card of the last visit is shown until the news of this one has come.
    page.wait_for_function(f"document.querySelector('{CARD}').innerText.includes('In use')")
    page.click(f"{CARD} [data-do=ask-remove]")
    assert str(studio.settings.models / "net") in page.inner_text(f"{CARD} .said")
    sound(page)
    page.click(f"{CARD} [data-do=remove]")
    page.wait_for_selector(CARD, state="detached")
    assert not (studio.settings.models / "net").exists()
    page.get_by_role("tab", name="Create").click()
    page.wait_for_function("document.querySelector('#model select').value === 'nano'")


def test_an_import_can_be_stopped(
    visit: Visit, studio: FakeStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(
        source: Path,
        wanted: ImportOptions,
        settings: Settings,
        *,
        report: Report,
        should_stop: ShouldStop,
    ) -> None:
        report(Progress(stage=Stage.COPYING, done=3_100_000_000, total=19_000_000_000))
        while not should_stop():
            time.sleep(0.02)

    monkeypatch.setattr(import_process, "run", slowly)
    page = visit(width=390, height=844)
    open_models(page)
    open_form(page)
    page.fill("#import-path :is(input, textarea)", str(tmp_path))
    page.get_by_role("button", name="Import", exact=True).click()
    page.wait_for_selector("text=Copying the rest, 3.1 GB of 19.0 GB")
    sound(page)
    page.click("#imported [data-do=stop-import]")
    page.wait_for_selector(f"text=Nothing of {tmp_path.name} was left behind")
    page.get_by_role("button", name="Close the note on the import").click()
    page.wait_for_selector("#imported section", state="detached")
