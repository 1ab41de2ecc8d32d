"""What a person does on the Gallery tab, in a real browser."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.gallery.test_index import put
from tests.app.ui.fake_studio import FakeStudio, gradient
from tests.browser.test_care import sound

pytestmark = [pytest.mark.timeout(90)]
Visit = Callable[..., Any]
BOX = "#gallery-search :is(input, textarea)"
LOADED = (
    "[...document.querySelectorAll('.open img')].every((one) => one.complete && one.naturalWidth)"
)
FOCUSED = "document.activeElement"
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
    page.wait_for_function(LOADED)
    page.fill(BOX, "owl")
    many(page, 1)
    page.fill(BOX, "whale")
    page.get_by_role("button", name="Show all pictures").click()
    many(page, len(ANIMALS))
    assert page.input_value(BOX) == ""
    page.fill(BOX, "date:never")
    page.wait_for_selector("#shots :text('is not a date')")
    page.fill(BOX, "size:160x96")
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
    # The keys go on working wherever the focus is, but for fields and questions.
    page.click(".look [data-do=star]")
    page.wait_for_selector(".shot .starred")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".look .prompt:has-text('dog')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".look .prompt:has-text('bee')")
    assert page.get_attribute(".open[aria-current]", "aria-current") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector(".look[data-empty]")
    focused = "document.activeElement.getAttribute('aria-label')"
    page.wait_for_function(f"{focused} === 'a bee on a green background, starred'")


def test_stars_are_kept_and_found(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "elk").click()
    page.get_by_role("button", name="Star", exact=True).click()
    page.wait_for_selector(".shot .starred")
    page.reload()
    page.wait_for_function("window.studioReady === true")
    open_gallery(page)
    page.fill(BOX, "starred:yes")
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
    assert not pictures["fox"].exists()
    page.wait_for_selector(".toast:has-text('1 picture is deleted.')")
    # It was the last one, so the one before it follows.
    page.wait_for_selector(".look .prompt:has-text('owl')")
    page.wait_for_function("document.activeElement.ariaLabel === 'Close'")


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
    page.wait_for_function(f"{FOCUSED}.textContent === 'Download'")
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
    page.wait_for_function(f"{FOCUSED}.matches('summary[data-export]')")

    assert page.locator("text=3 selected").count() == 1, "a selection outlives an export"
    page.locator("#gallery-bar").get_by_role("button", name="Delete…").click()
    assert "Delete these 3 pictures" in page.wait_for_selector(".tools.asks").inner_text()
    assert page.evaluate("document.activeElement.textContent") == "Keep them"
    page.get_by_role("button", name="Delete", exact=True).click()
    many(page, len(ANIMALS) - 3)
    page.wait_for_selector(".toast:has-text('3 pictures are deleted.')")
    page.wait_for_function(f"{FOCUSED}.matches('.open')")
    assert {name for name, file in pictures.items() if file.exists()} == {"bee", "owl", "fox"}
    page.get_by_role("button", name="Select all shown").click()
    page.wait_for_selector("text=3 selected")
    page.get_by_role("button", name="Clear selection").click()
    page.wait_for_selector("[data-count]:has-text('3 pictures')")
    assert page.evaluate(f"{FOCUSED} === document.querySelector('.open')")


def tick(page: Any, *animals: str) -> None:
    for animal in animals:
        page.get_by_label(f"Select: a {animal} on a green background").click(force=True)


def sure(page: Any) -> None:
    """Everything that was pressed is answered: a question about the studio itself has come back."""
    page.evaluate("fetch('studio/alive')")
    page.wait_for_timeout(600)


def test_who_unticks_is_asked_again(visit: Visit, pictures: dict[str, Path]) -> None:
    page = visit()
    open_gallery(page)
    tick(page, "bee", "dog", "cat")
    page.click("#gallery-bar [data-do=ask-delete]")
    page.wait_for_selector(".asks:has-text('these 3 pictures')")
    tick(page, "dog")
    page.wait_for_selector(".asks", state="detached")
    page.click("#gallery-bar [data-do=ask-delete]")
    page.wait_for_selector(".asks:has-text('these 2 pictures')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".asks", state="detached")
    page.wait_for_function(f"{FOCUSED}.matches('#gallery-bar [data-do=ask-delete]')")
    page.keyboard.press("Enter")
    page.click(".asks [data-do=delete]")
    many(page, len(ANIMALS) - 2)
    assert pictures["dog"].exists()


def test_a_question_stays_with_its_picture(visit: Visit, pictures: dict[str, Path]) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "cat").click()
    page.click(".look [data-do=ask-delete]")
    page.wait_for_selector(".look .asks")
    page.keyboard.press("Escape")
    page.wait_for_selector(".look .asks", state="detached")
    page.wait_for_function(f"{FOCUSED}.matches('.look [data-do=ask-delete]')")
    page.keyboard.press("Enter")
    page.wait_for_selector(".look .asks")
    picture(page, "dog").click()
    page.wait_for_selector(".look .prompt:has-text('dog')")
    assert page.locator(".asks").count() == 0
    # Whoever deletes in a row goes on with the next one.
    for animal, following in (("dog", "cat"), ("cat", "elk")):
        page.click(".look [data-do=ask-delete]")
        page.click(".look [data-do=delete]")
        page.wait_for_selector(f".look .prompt:has-text('{following}')")
        assert not pictures[animal].exists()
        page.wait_for_function(f"{FOCUSED}.ariaLabel === 'a {following} on a green background'")


def bodies(routes: list[Any]) -> list[str]:
    return [route.request.post_data or "" for route in routes]


def test_no_press_is_lost_on_a_slow_line(visit: Visit) -> None:
    page = visit()
    open_gallery(page)

    waiting: list[Any] = []
    page.route("**/gradio_api/**", lambda route: waiting.append(route))
    picture(page, "bee").click()
    while not waiting:
        page.wait_for_timeout(20)
    picture(page, "elk").click()
    while not any("2025-01-03" in press for press in bodies(waiting)):
        page.wait_for_timeout(20)
    # The second one is faster than the first.
    for route in reversed(waiting.copy()):
        route.continue_()
        page.wait_for_timeout(100)
    page.unroute("**/gradio_api/**")
    page.wait_for_selector(".look .prompt:has-text('elk')")
    page.wait_for_function(
        "document.querySelector('.open[aria-current]').dataset.name"
        " === document.querySelector('.look').dataset.name"
    )


def test_the_bar_and_notices_stay_in_sight_and_move_nothing(visit: Visit, studio: Any) -> None:
    for i in range(80):
        put(studio.settings.outputs, f"2024-01-01/0000{i:02}-1-000000.png", f"old {i}")
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".shot")
    page.locator(".shot").nth(30).scroll_into_view_if_needed()
    page.locator(".shot input").nth(30).click(force=True)
    assert page.evaluate("document.querySelector('#gallery-bar').getBoundingClientRect().top") == 0
    place = "document.querySelectorAll('.shot')[30].getBoundingClientRect().top"
    before = page.evaluate(place)
    page.locator("summary[data-export]").click()
    page.get_by_role("button", name="Archive").click()
    page.get_by_role("link", name="Download").wait_for()
    assert page.evaluate(place) == before
    page.keyboard.press("Enter")
    # Another tab has a place of its own, and this one is found again as it was left.
    at = page.evaluate("scrollY")
    assert at > 0
    page.get_by_role("tab", name="Models").click()
    page.wait_for_function("scrollY === 0")
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_function(f"scrollY === {at}")


def test_a_selection_outlives_searches_and_pages(visit: Visit, studio: FakeStudio) -> None:
    for i in range(80):
        put(studio.settings.outputs, f"2024-01-01/0000{i:02}-1-000000.png", f"old {i}")
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".shot")
    tick(page, "bee", "cat")
    page.fill(BOX, "cat")
    many(page, 1)
    page.wait_for_selector("[data-count]:has-text('2 selected, 1 not shown')")
    page.fill(BOX, "no such thing")
    many(page, 0)
    page.wait_for_selector("[data-count]:has-text('2 selected, 2 not shown')")
    page.fill(BOX, "old")
    many(page, 60)
    page.click("[data-do=select-none]")
    page.wait_for_function(f"{FOCUSED}.matches('.open')")
    page.get_by_role("button", name="Select all shown").click()
    page.get_by_role("button", name="Select all 80 found").click()
    page.wait_for_selector("[data-count]:has-text('80 selected')")
    page.click("#gallery-bar [data-do=ask-delete]")
    page.wait_for_selector(".asks:has-text('these 80 pictures')")
    page.click(".asks [data-do=delete]")
    many(page, 0)
    page.wait_for_selector(".toast:has-text('80 pictures are deleted.')")
    page.wait_for_function(f"{FOCUSED}.closest('#gallery-search') !== null")
    page.get_by_role("button", name="Show all pictures").click()
    many(page, len(ANIMALS))
    assert page.input_value(BOX) == ""


def test_while_selecting_a_press_ticks(visit: Visit) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "bee").click(modifiers=["Control"])
    picture(page, "cat").click(modifiers=["Shift"])
    page.wait_for_selector("text=3 selected")
    picture(page, "dog").click()
    page.wait_for_selector("text=2 selected")
    assert page.locator(OPEN).count() == 0
    page.click("#gallery-bar [data-do=star]")
    page.wait_for_function("document.querySelectorAll('.starred').length === 2")
    page.get_by_role("button", name="Take stars off").click()
    page.wait_for_function("document.querySelectorAll('.starred').length === 0")
    page.get_by_role("button", name="Clear selection").click()
    # One stop for Tab: then comes the panel.
    assert page.evaluate("document.querySelectorAll('#shots [tabindex=\"0\"]').length") == 1
    page.keyboard.press("Space")
    page.wait_for_selector("text=1 selected")
    page.keyboard.press("ArrowRight")
    assert page.locator(OPEN).count() == 0, "while selecting the keys only move"
    page.keyboard.press("Space")
    page.wait_for_selector("text=2 selected")
    page.get_by_role("button", name="Clear selection").click()
    page.keyboard.press("Enter")
    page.wait_for_selector(OPEN)
    page.keyboard.press("Tab")
    assert page.evaluate(f"{FOCUSED}.closest('.look') !== null")


def test_a_finger_that_stays_selects(visit: Visit, browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = visit(context=context)
    open_gallery(page)
    box = picture(page, "cat").bounding_box()
    touch = context.new_cdp_session(page)
    at = [{"x": box["x"] + 50, "y": box["y"] + 80}]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": at})
    page.wait_for_selector("text=1 selected")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    sure(page)
    assert page.locator(OPEN).count() == 0
    assert page.locator("text=1 selected").count() == 1
    picture(page, "dog").tap()
    page.wait_for_selector("text=2 selected")
    # What is done with them is at the thumb, and covers neither notices nor the last pictures.
    tools = page.locator("#gallery-bar .tools").bounding_box()
    assert round(tools["y"] + tools["height"]) == 844
    page.locator("#gallery-bar [data-do=ask-delete]").tap()
    page.locator(".asks [data-do=keep]").tap()
    page.locator("#gallery-bar [data-do=select-none]").tap()
    picture(page, "dog").tap()
    page.wait_for_selector(".look .prompt:has-text('dog')")
    large = page.locator(".look .large").bounding_box()
    for kind, x in (("touchStart", 300), ("touchMove", 200), ("touchMove", 100)):
        points = [{"x": x, "y": large["y"] + 100}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_selector(".look .prompt:has-text('cat')")
    context.close()


def test_on_a_phone_the_picture_is_a_dialog_that_back_closes(visit: Visit) -> None:
    page = visit(width=390, height=844)
    address = page.url
    open_gallery(page)
    picture(page, "cat").click()
    page.wait_for_selector(".look[role=dialog][aria-modal=true]")
    for _ in range(14):
        page.keyboard.press("Tab")
        assert page.evaluate(f"{FOCUSED} === document.body || !!{FOCUSED}.closest('.look')")
    page.get_by_role("button", name="Next picture").click()
    page.wait_for_selector(".look .prompt:has-text('elk')")
    page.go_back()
    page.wait_for_selector(OPEN, state="detached")
    assert page.url == address
    page.wait_for_function(f"{FOCUSED}.matches('.open')")
    picture(page, "cat").click()
    page.get_by_role("button", name="Close", exact=True).click()
    page.wait_for_selector(OPEN, state="detached")
    assert page.evaluate("history.state?.picture") is None
    picture(page, "cat").click()
    page.get_by_role("button", name="Use these settings").click()
    # Nothing of the page stays out of reach behind a dialog that is not seen.
    page.wait_for_function(f"{FOCUSED}.matches('#prompt textarea')")
    assert page.locator("[inert]").count() == 0


def test_escape_empties_the_search_first(visit: Visit) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "cat").click()
    page.wait_for_selector(OPEN)
    page.fill(BOX, "fox")
    many(page, 1)
    page.focus(BOX)
    page.keyboard.press("Escape")
    many(page, len(ANIMALS))
    page.keyboard.press("Escape")
    sure(page)
    assert page.locator(OPEN).count() == 1
    page.fill(BOX, "fox")
    many(page, 1)
    page.get_by_role("button", name="Clear the search").click()
    many(page, len(ANIMALS))
    page.get_by_role("button", name="Starred", exact=True).click()
    many(page, 0)
    assert page.input_value(BOX) == "starred:yes"
    page.get_by_role("button", name="Starred", exact=True).click()
    many(page, len(ANIMALS))


def test_the_start_picture_is_seen_in_create(visit: Visit) -> None:
    page = visit(width=390, height=844)
    open_gallery(page)
    picture(page, "cat").click()
    page.get_by_role("button", name="Use as start").click()
    page.wait_for_function(f"{FOCUSED}.matches('.start-chip')")
    place = page.locator(".start-chip").bounding_box()
    assert 0 <= place["y"] <= 844


def test_a_picture_that_somebody_else_deleted(visit: Visit, pictures: dict[str, Path]) -> None:
    page = visit()
    open_gallery(page)
    page.wait_for_function(LOADED)
    pictures["cat"].unlink()
    # A picture that is not there is no fault of the page, so the console is not told.
    page.route("**/2025-01-04/**", lambda route: route.fulfill(body=b"", content_type="image/png"))
    picture(page, "cat").click()
    page.wait_for_selector(".toast:has-text('That picture was deleted meanwhile.')")
    page.wait_for_selector(OPEN, state="detached")
    page.get_by_role("button", name="Close the notice").click()
    page.wait_for_selector(".toast p:empty", state="attached")


def test_a_long_prompt_leaves_the_buttons_in_sight(visit: Visit, studio: FakeStudio) -> None:
    prompt = "a newt with very many words " * 20
    put(studio.settings.outputs, "2025-02-01/000000-1-000000.png", prompt, seed=77)
    page = visit(width=1024, height=768)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_gallery(page, len(ANIMALS) + 1)
    page.get_by_role("button", name="a newt").click()
    page.wait_for_selector(OPEN)
    page.wait_for_function("document.querySelector('.look .large img').naturalWidth > 0")
    button = page.locator(".look [data-do=ask-delete]").bounding_box()
    assert button["y"] + button["height"] <= 768
    low = page.locator(".look .prompt").bounding_box()["height"]
    page.get_by_role("button", name="Show all", exact=True).click()
    assert page.locator(".look .prompt").bounding_box()["height"] > low
    page.get_by_role("button", name="Show less").click()
    assert page.locator(".look .prompt").bounding_box()["height"] == low
    page.get_by_role("button", name="Copy prompt").click()
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()").strip() == prompt.strip()
    page.get_by_role("button", name="Copy the seed").click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text === '77')")


def test_the_full_window(visit: Visit) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "cat").dblclick()
    page.wait_for_selector("dialog.viewer[open]")
    shown = "document.querySelector('.viewer img').src.includes('%s')"
    page.wait_for_function(shown % "2025-01-04")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(shown % "2025-01-03")
    page.click(".viewer [data-step='-1']")
    page.wait_for_function(shown % "2025-01-04")
    page.click(".viewer [data-mark]")
    page.wait_for_selector(".viewer [data-mark]:has-text('Take the star off')")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.viewer:not([open])", state="attached")
    assert page.locator(OPEN).count() == 1, "Escape leaves one thing at a time"
    page.click(".look .large")
    page.wait_for_selector("dialog.viewer[open]")
    sound(page)
    page.get_by_role("button", name="Back to the gallery").click()
    picture(page, "cat").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.viewer[open]")


def test_what_is_painted_meanwhile_appears(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    page.fill("#prompt textarea", "a new whale")
    page.get_by_role("button", name="Generate").click()
    open_gallery(page, len(ANIMALS) + 1)
    page.get_by_role("button", name="a new whale").click()
    page.wait_for_selector(".look .prompt:has-text('a new whale')")


def test_what_is_new_waits_while_somebody_is_among_the_pictures(
    visit: Visit, studio: FakeStudio
) -> None:
    page = visit()
    open_gallery(page)
    picture(page, "dog").focus()
    place = page.evaluate(f"{FOCUSED}.getBoundingClientRect().left")
    for i in range(2):
        put(studio.settings.outputs, f"2025-02-01/00000{i}-1-000000.png", f"a new whale {i}")
    page.wait_for_selector("[data-do=fresh]:has-text('2 new pictures')")
    many(page, len(ANIMALS))
    assert page.evaluate(f"{FOCUSED}.getBoundingClientRect().left") == place
    page.click("[data-do=fresh]")
    many(page, len(ANIMALS) + 2)
    page.wait_for_function(f"{FOCUSED}.ariaLabel === 'a new whale 1'")
    # What comes or goes before it takes the focus from no picture.
    picture(page, "dog").focus()
    (studio.settings.outputs / "2025-02-01/000000-1-000000.png").unlink()
    many(page, len(ANIMALS) + 1)
    assert page.evaluate(f"{FOCUSED}.ariaLabel") == "a dog on a green background"


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
    picture(page, "cat").click()
    page.wait_for_selector(OPEN)
    sound(page)
    page.keyboard.press("Escape")
    page.wait_for_selector(OPEN, state="detached")
    page.locator(".shot input[type=checkbox]").first.click(force=True)
    page.wait_for_selector("text=1 selected")
    sound(page)
    page.click("#gallery-bar [data-do=ask-delete]")
    page.wait_for_selector(".asks")
    sound(page)
