"""What a person does on the Gallery tab, in a real browser."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.test_gallery_index import put
from tests.app.ui.fake_studio import FakeStudio, gradient
from tests.browser.test_care import sound

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]
Visit = Callable[..., Any]
ANIMALS = ("fox", "owl", "elk", "cat", "dog", "bee")
OPEN = ".look[data-name]"


@pytest.fixture(autouse=True)
def pictures(studio: FakeStudio) -> Iterator[dict[str, Path]]:
    """Six pictures, the newest last; the gallery is as empty as before and after it."""
    outputs = studio.settings.outputs
    shutil.rmtree(outputs, ignore_errors=True)
    found = {}
    for i, animal in enumerate(ANIMALS):
        size = {"width": 160, "height": 96} if i % 2 else {}
        name = f"2025-01-0{i + 1}/00000{i}-1-000000.png"
        file = put(outputs, name, f"a {animal} on a green background", seed=i, **size)
        found[animal] = file
        picture = gradient(i * 7 + 3, 128, 128)
        small = studio.settings.thumbs / name
        small.parent.mkdir(parents=True, exist_ok=True)
        picture.save(small.with_suffix(".webp"))
    yield found
    shutil.rmtree(outputs, ignore_errors=True)
    shutil.rmtree(studio.settings.thumbs, ignore_errors=True)
    studio.index.sync()


def open_gallery(page: Any, count: int = len(ANIMALS)) -> None:
    page.get_by_role("tab", name="Gallery").click()
    many(page, count)


def many(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('.shot').length === {count}")


def picture(page: Any, animal: str) -> Any:
    return page.get_by_role("button", name=f"a {animal} on a green background")


def test_search_look_and_use_again(visit: Visit) -> None:
    page = visit()
    open_gallery(page)
    images = "[...document.querySelectorAll('.open img')]"
    page.wait_for_function(f"{images}.every((one) => one.complete && one.naturalWidth)")
    page.fill("#gallery-search :is(input, textarea)", "owl")
    many(page, 1)
    page.fill("#gallery-search :is(input, textarea)", "whale")
    page.get_by_role("button", name="Show all pictures").click()
    many(page, len(ANIMALS))
    assert page.input_value("#gallery-search :is(input, textarea)") == ""
    page.fill("#gallery-search :is(input, textarea)", "date:never")
    page.wait_for_selector("#gallery-bar .said:has-text('is not a date')")
    page.fill("#gallery-search :is(input, textarea)", "size:160x96")
    many(page, 3)
    picture(page, "cat").click()
    page.wait_for_selector(OPEN)
    assert "a cat on a green background" in page.inner_text(".look .prompt")
    page.get_by_role("button", name="Use these settings").click()
    page.wait_for_selector("#prompt textarea")
    page.wait_for_function(
        "document.querySelector('#prompt textarea').value === 'a cat on a green background'"
    )
    assert page.input_value("#seed input") == "3"
    assert page.is_checked("#size input[value='160x96']")


def test_keys_move_open_and_close(visit: Visit) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "bee").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".look .prompt:has-text('bee')")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".look .prompt:has-text('dog')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".look .prompt:has-text('bee')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".look[data-empty]")
    focused = "document.activeElement.getAttribute('aria-label')"
    page.wait_for_function(f"{focused} === 'a bee on a green background'")


def test_stars_are_kept_and_found(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "elk").click()
    page.get_by_role("button", name="Star", exact=True).click()
    page.wait_for_selector(".shot .starred")
    page.reload()
    page.wait_for_function("window.studioReady === true")
    open_gallery(page)
    page.fill("#gallery-search :is(input, textarea)", "starred:yes")
    many(page, 1)
    picture(page, "elk").click()
    page.get_by_role("button", name="Take the star off").click()
    page.wait_for_selector(".none")


def test_one_is_deleted_after_a_question(visit: Visit, pictures: dict[str, Path]) -> None:
    page = visit(width=390, height=844)
    open_gallery(page)
    picture(page, "fox").click()
    page.wait_for_selector(OPEN)
    # On a phone the picture lies over everything, so the focus goes there.
    page.wait_for_function("document.activeElement.ariaLabel === 'Close'")
    page.get_by_role("button", name="Delete…").click()
    page.wait_for_selector(".look .asks")
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Enter")
    page.wait_for_selector(".look .asks", state="detached")
    assert pictures["fox"].exists()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    many(page, len(ANIMALS) - 1)
    page.wait_for_selector(".look[data-empty]", state="attached")
    assert not pictures["fox"].exists()
    assert "1 picture is deleted." in page.inner_text("#gallery-bar")


def test_a_range_is_selected_exported_and_deleted(
    visit: Visit, pictures: dict[str, Path], tmp_path: Path
) -> None:
    page = visit()
    open_gallery(page)
    boxes = page.locator(".shot input[type=checkbox]")
    boxes.nth(1).click(force=True)
    boxes.nth(3).click(force=True, modifiers=["Shift"])
    page.wait_for_selector("text=3 selected")
    page.locator("summary[data-export]").click()
    assert page.inner_text("summary[data-export]") == "Export 3…"
    page.get_by_role("button", name="Archive").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.endswith(".zip")
    download.value.save_as(tmp_path / "got.zip")
    with zipfile.ZipFile(tmp_path / "got.zip") as archive:
        kept = [name for name in archive.namelist() if name.endswith(".png")]
        assert archive.read(kept[0]) == next(
            file.read_bytes() for file in pictures.values() if str(file).endswith(kept[0])
        )
    assert {name[:10] for name in kept} == {"2025-01-05", "2025-01-04", "2025-01-03"}
    page.get_by_role("button", name="Close", exact=True).click()
    page.wait_for_selector(".work", state="detached")

    assert page.locator("text=3 selected").count() == 1, "a selection outlives an export"
    page.locator("#gallery-bar").get_by_role("button", name="Delete…").click()
    assert "Delete these 3 pictures" in page.wait_for_selector(".tools.asks").inner_text()
    assert page.evaluate("document.activeElement.textContent") == "Keep them"
    page.get_by_role("button", name="Delete", exact=True).click()
    many(page, len(ANIMALS) - 3)
    assert {name for name, file in pictures.items() if file.exists()} == {"bee", "owl", "fox"}
    page.get_by_role("button", name="Select all shown").click()
    page.wait_for_selector("text=3 selected")
    page.get_by_role("button", name="Clear selection").click()
    page.wait_for_selector("[data-count]:has-text('3 pictures')")


def test_what_is_painted_meanwhile_appears(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    page.fill("#prompt textarea", "a new whale")
    page.get_by_role("button", name="Generate").click()
    open_gallery(page, len(ANIMALS) + 1)
    page.get_by_role("button", name="a new whale").click()
    page.wait_for_selector(".look .prompt:has-text('a new whale')")


def test_more_come_on_the_way_down(visit: Visit, studio: FakeStudio) -> None:
    for i in range(80):
        put(studio.settings.outputs, f"2024-01-01/0000{i:02}-1-000000.png", f"old {i}")
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".shot")
    page.locator(".shot").last.scroll_into_view_if_needed()
    many(page, 86)


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_axe(visit: Visit, width: int, height: int, theme: str) -> None:
    page = visit(width=width, height=height, theme=theme)
    open_gallery(page)
    page.locator("summary[data-export]").click()
    sound(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("details[open]", state="detached")
    page.locator(".shot input[type=checkbox]").first.click(force=True)
    page.wait_for_selector("text=1 selected")
    picture(page, "cat").click()
    page.wait_for_selector(OPEN)
    sound(page)
