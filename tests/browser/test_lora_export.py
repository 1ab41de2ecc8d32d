"""A LoRA goes from its card to a file for another program, in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_manager import algebra, files
from tests.app.ui.fake_studio import FakeStudio
from tests.browser.test_care import sound
from tests.browser.test_models import open_models
from tests.small_loras import NANO, lora

pytestmark = [pytest.mark.timeout(400)]
Visit = Callable[..., Any]
CARD = '[data-model="lora:ink"]'


@pytest.mark.parametrize(("width", "height", "theme"), [(1440, 900, "dark"), (390, 844, "light")])
def test_a_lora_is_exported_and_saved(
    width: int, height: int, theme: str, visit: Visit, studio: FakeStudio, tmp_path: Path
) -> None:
    file = lora(studio.settings.loras / "ink.safetensors", wide=NANO)
    page = visit(width=width, height=height, theme=theme)
    open_models(page)
    card = page.locator(CARD)
    card.get_by_role("button", name="Export…").click()
    page.wait_for_selector("text=For which program?")
    sound(page)
    # Torch is loaded anew for it; a busy machine takes a minute.
    page.set_default_timeout(150_000)
    card.get_by_role("button", name="kohya").click()
    link = card.get_by_role("link", name="Save ink-kohya.safetensors")
    link.wait_for()
    sound(page)
    with page.expect_download() as waiting:
        link.click()
    saved = tmp_path / waiting.value.suggested_filename
    assert saved.name == "ink-kohya.safetensors"
    waiting.value.save_as(saved)
    found = algebra.compared(files.read(file), files.read(saved))
    assert (found.only, found.total.difference < 1e-5) == (((), ()), True)
    card.get_by_role("button", name="Close").click()
    link.wait_for(state="detached")
    assert studio.lora_exports.job is None
