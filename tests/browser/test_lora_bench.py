"""LoRAs are selected, merged, made smaller, compared and baked into a model, in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_manager import algebra, files
from tests import tiny
from tests.app.ui.fake_studio import FakeStudio
from tests.browser.test_care import sound
from tests.browser.test_models import open_models
from tests.small_loras import lora

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("warm_children")]
Visit = Callable[..., Any]
BENCH = "#lora-bench"
DONE = f"{BENCH} .said.good"


def select(page: Any, *names: str) -> None:
    for name in names:
        button = page.locator(f'[data-do=pick][data-name="lora:{name}"]').first
        button.click()
        page.wait_for_selector(f'#lora-shelf [data-name="lora:{name}"][aria-pressed=true]')


def press(page: Any, words: str) -> None:
    page.locator(BENCH).get_by_role("button", name=words).click()


@pytest.mark.parametrize(("width", "height", "theme"), [(1440, 900, "dark"), (390, 844, "light")])
def test_loras_become_one_smaller_and_a_model(
    width: int, height: int, theme: str, visit: Visit, studio: FakeStudio
) -> None:
    library = studio.catalog.loras
    for seed, name in enumerate(("ink", "gold")):
        lora(studio.settings.loras / f"{name}.safetensors", seed)
    tiny.build(studio.settings.models / "tiny")
    studio.models_changed()
    page = visit(width=width, height=height, theme=theme)
    page.set_default_timeout(150_000)
    open_models(page)
    select(page, "ink", "gold")
    page.wait_for_selector(f"{BENCH} h2:has-text('2 LoRAs selected')")
    sound(page)

    press(page, "Merge into one…")
    # The form is there, and the keyboard in it.
    page.wait_for_function("document.activeElement.dataset.field === 'name'")
    page.keyboard.type("both")
    page.locator(BENCH).get_by_label("Weight of ink").fill("0.5")
    page.locator(BENCH).get_by_label("Weight of gold").fill("-2.5")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{BENCH} [role=alert]:has-text('gold:-2.5 is beyond -2 to 2')")
    assert page.input_value(f"{BENCH} [data-field=name]") == "both"
    sound(page)
    press(page, "Merge")
    page.wait_for_selector(f"{DONE}:has-text('“both” is here, with the rank 8; nothing is lost.')")
    sound(page)
    parts = [(n, files.read(library.find(n).file), w) for n, w in (("ink", 0.5), ("gold", -2.5))]
    found = algebra.compared(algebra.merged(parts), files.read(library.find("both").file))
    assert found.total.difference < 1e-6

    select(page, "both")
    press(page, "Make smaller…")
    page.wait_for_selector(f"{BENCH} [data-field=rank]")
    page.fill(f"{BENCH} [data-field=name]", "small")
    press(page, "What would be lost?")
    page.wait_for_selector(f"{BENCH} table tr:has(th:text-is('4'))")
    lost = page.inner_text(f"{BENCH} tr:has(th:text-is('4')) td")
    page.fill(f"{BENCH} [data-field=rank]", "4")
    press(page, "Make it smaller")
    page.wait_for_selector(f"{DONE}:has-text('with the rank 4; {lost} of the change is lost.')")

    select(page, "both", "small")
    press(page, "Compare")
    page.wait_for_selector(f"{BENCH} .said:has-text('{lost} apart')")
    page.get_by_text("Layer by layer").click()
    sound(page)
    press(page, "Close")

    press(page, "Bake into a model…")
    page.select_option(f"{BENCH} [data-field=model]", "tiny")
    page.fill(f"{BENCH} [data-field=name]", "inked")
    page.fill(f"{BENCH} [data-field=title]", "Inked")
    sound(page)
    press(page, "Bake")
    page.wait_for_selector(f"{DONE}:has-text('“Inked” is here.')")
    page.wait_for_selector('[data-model="inked"]')
    press(page, "Use in Create")
    page.wait_for_function("document.querySelector('#model select').value === 'inked'")
