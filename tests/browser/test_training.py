"""Photos become a LoRA in a browser: dropped, trained on, watched, tried. The model that ships
learns for real, only shortly; what paints is not real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.app.ui.fake_studio import FakeStudio
from tests.browser.test_care import sound

pytestmark = [pytest.mark.timeout(600)]
Visit = Callable[..., Any]
SHORT = {
    "steps": "400",
    "accumulate": "1",
    "preview.every": "5",
    "preview.steps": "2",
    "preview.prompts": "a photo of {subject}",
    "log_every": "1",
    "checkpoints.every": "5",
}


def photos(folder: Path) -> list[str]:
    folder.mkdir()
    for number in range(4):
        picture = Image.new("RGB", (140, 128), (40 * number, 120, 200))
        ImageDraw.Draw(picture).ellipse((30 + 5 * number, 30, 90, 90), fill="orange")
        picture.save(folder / f"{number}.jpg")
    return [str(file) for file in sorted(folder.iterdir())]


def open_train(page: Any) -> None:
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector("#train-title")


def updates(page: Any) -> int:
    """How far the curve goes."""
    told: int = page.evaluate(
        "JSON.parse(document.querySelector('.plot').dataset.points).at(-1)[0]"
    )
    return told


def further(page: Any, than: int) -> None:
    page.wait_for_function(
        "(than) => JSON.parse(document.querySelector('.plot')?.dataset.points ?? '[[0]]')"
        ".at(-1)[0] > than",
        arg=than,
    )


def test_photos_become_a_lora(visit: Visit, studio: FakeStudio, tmp_path: Path) -> None:
    page = visit()
    # The first training loads torch anew, and a busy machine takes its time.
    page.set_default_timeout(150_000)
    open_train(page)
    page.click("[data-do=begin][data-name=subject]")
    page.wait_for_selector(".train-new")
    page.set_input_files("[data-bring]", photos(tmp_path / "photos"))
    page.wait_for_function("document.querySelectorAll('.photo').length === 4")
    page.fill("#train-subject", "ball")
    page.fill("#train-name", "my-ball")
    page.click(".train-advanced summary")
    for key, value in SHORT.items():
        page.fill(f"[id='set-{key}']", value)
    sound(page)
    page.click("[data-do=train]")
    # The curve and the samples move.
    page.wait_for_selector(".train-run .plot")
    page.wait_for_selector(".sample-row img[alt='Samples after 5 updates']")
    seen = updates(page)
    sound(page)
    # Another look at the same address finds the run where it is.
    page.reload()
    page.wait_for_function("window.studioReady === true")
    open_train(page)
    further(page, seen)
    page.focus(".plot")
    page.keyboard.press("Home")
    page.wait_for_selector(".plot output:has-text('Update 1:')")
    # It ends here, and what it has learned can be used.
    page.click("[data-do=keep]")
    page.wait_for_selector(".train-run .tag[data-state=done]")
    sound(page)
    page.click(".train-run [data-do=try]")
    page.wait_for_selector("#prompt textarea")
    assert page.input_value("#prompt textarea") == "a photo of sks ball"
    assert page.is_checked("[data-lora=my-ball] input[type=checkbox]")
    assert studio.catalog.loras.find("my-ball").trigger == "sks ball"
    studio.trainings.remove("my-ball")
    for made in studio.trainings.preparations.all():
        studio.trainings.preparations.remove(made.id)


@pytest.mark.parametrize(("width", "height", "theme"), [(390, 844, "light"), (1440, 900, "dark")])
def test_a_photo_is_cropped_and_captioned_on_any_screen(
    width: int, height: int, theme: str, visit: Visit, studio: FakeStudio, tmp_path: Path
) -> None:
    page = visit(width=width, height=height, theme=theme)
    open_train(page)
    page.click("[data-do=begin][data-name=style]")
    page.wait_for_selector(".train-new")
    page.set_input_files("[data-bring]", photos(tmp_path / "photos")[:2])
    page.wait_for_function("document.querySelectorAll('.photo').length === 2")
    before = page.get_attribute(".photo img", "src")
    page.click("[data-focus='0001.jpg']", position={"x": 20, "y": 20})
    page.wait_for_function(
        "(before) => document.querySelector('.photo img').getAttribute('src') !== before",
        arg=before,
    )
    page.fill("[aria-label='Caption of 0.jpg']", "a ball on a beach")
    page.click("[data-do=train]")
    page.wait_for_selector("[role=alert]:has-text('“1.jpg” has no caption yet.')")
    sound(page)
    # Nothing of it is lost with the page.
    page.reload()
    page.wait_for_function("window.studioReady === true")
    open_train(page)
    page.click(".run-row[data-state=new]")
    page.wait_for_selector("[aria-label='Caption of 0.jpg']")
    assert page.input_value("[aria-label='Caption of 0.jpg']") == "a ball on a beach"
    page.click("[data-do=discard]")
    page.wait_for_selector(".train-kinds")
    assert studio.trainings.preparations.all() == []
