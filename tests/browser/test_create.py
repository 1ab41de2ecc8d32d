"""What a person does on the Create tab, in a real browser, with pictures that are gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from pipelines.catalog import Catalog
from tests.app.ui.fake_studio import FakeStudio
from tests.browser.conftest import remembered, settled, still
from tests.small_loras import NANO, lora

pytestmark = [pytest.mark.timeout(90)]
Visit = Callable[..., Any]

RESULT = ".canvas[data-state=result]"
PAINTING = ".canvas[data-state=painting]"
PROMPT = "#prompt textarea"


def paint(page: Any, prompt: str = "a red apple") -> None:
    page.fill(PROMPT, prompt)
    page.get_by_role("button", name="Generate").click()


def box(page: Any, selector: str) -> dict[str, float]:
    return {k: round(v) for k, v in page.locator(selector).first.bounding_box().items()}


def test_prompt_preview_result(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    with studio.runner.held():
        paint(page)
        page.wait_for_selector("img.preview")
        assert "step" in page.inner_text("#status").lower()
        preview = box(page, ".picture")
    page.wait_for_selector(RESULT)
    assert box(page, ".picture") == preview, "nothing jumps between preview and result"
    assert page.get_attribute(".picture img", "alt") == "a red apple"
    assert page.evaluate("document.querySelector('.picture img').decode().then(() => true)")
    assert "Done in" in page.inner_text("#status")
    seed = page.input_value("#seed input")
    assert seed in page.inner_text("#result")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    file = next(studio.settings.outputs.rglob(f"*-{seed}-*.png"))
    assert download.value.suggested_filename == file.name
    assert Path(download.value.path()).read_bytes() == file.read_bytes()


def test_a_picture_is_deleted_with_the_keyboard(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    paint(page)
    page.wait_for_selector(RESULT)
    file = studio.settings.outputs / str(page.get_attribute(".picture", "data-name"))
    assert file.exists()
    page.get_by_role("button", name="Delete…").press("Enter")
    page.wait_for_selector(".asks")
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Enter")
    page.wait_for_selector(".asks", state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Delete…"
    assert file.exists()
    page.keyboard.press("Enter")
    page.wait_for_selector(".asks")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.wait_for_selector(".canvas[data-state=hint]")
    assert not file.exists()
    assert "Ready" in page.inner_text("#status")


def test_stop_keeps_finished_pictures_and_the_next_generate_works(
    visit: Visit, studio: FakeStudio
) -> None:
    page = visit()
    page.fill("#count input[type=number]", "9")
    page.press("#count input[type=number]", "Tab")
    with studio.runner.held(picture=3):
        paint(page)
        page.wait_for_function("document.querySelectorAll('.picture[data-do=pick]').length === 2")
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector(RESULT)
    assert "finished and kept" in page.inner_text("#status")
    assert page.locator(".picture").count() == 2
    with studio.runner.held():
        paint(page)
        page.wait_for_selector(PAINTING)


def test_a_reload_finds_the_job_and_then_the_result(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    with studio.runner.held():
        paint(page)
        page.wait_for_selector("img.preview")
        page.reload()
        page.wait_for_selector(PAINTING)
        assert page.get_by_role("button", name="Generate").is_disabled()
    page.wait_for_selector(RESULT)
    page.reload()
    page.wait_for_selector(RESULT)
    second = visit(context=page.context)
    second.wait_for_selector(RESULT)


def test_settings_survive_a_reload(visit: Visit) -> None:
    page = visit()
    page.fill(PROMPT, "a tractor")
    page.select_option("#style select", "Anime")
    page.select_option("#sampler select", "sa-solver")
    page.wait_for_selector("#eta input[type=number]")
    page.fill("#steps input[type=number]", "31")
    page.press("#steps input[type=number]", "Tab")
    page.fill("#seed input", "77")
    page.wait_for_function("!document.querySelector('#new_seed input').checked")
    remembered(page)
    page.reload()
    page.wait_for_function("window.studioReady === true")
    page.wait_for_function("document.querySelector('#sampler select').value === 'sa-solver'")
    assert page.input_value(PROMPT) == "a tractor"
    assert page.input_value("#style select") == "Anime"
    assert page.input_value("#steps input[type=number]") == "31"
    assert page.input_value("#seed input") == "77"
    assert not page.is_checked("#new_seed input")
    assert page.is_visible("#eta input[type=number]")


def test_a_bad_value_is_told_at_its_field(visit: Visit) -> None:
    page = visit()
    page.fill("#seed input", "abc")
    paint(page, "a cat")
    said = page.wait_for_selector("#seed .field-error").inner_text()
    assert "“abc”" in said
    assert said in page.inner_text("#status")
    assert page.get_attribute("#seed input", "aria-invalid") == "true"
    assert page.input_value(PROMPT) == "a cat"
    page.fill("#seed input", "12")
    assert page.locator(".field-error").count() == 0
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector(RESULT)
    page.fill(PROMPT, "")
    page.get_by_role("button", name="Generate").click()
    assert "empty" in page.wait_for_selector("#prompt .field-error").inner_text()
    assert page.is_visible(RESULT), "the last result stays"


def test_keyboard_only(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    page.focus(PROMPT)
    page.keyboard.type("a rocket")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.closest('[id]')?.id ?? ''"))
        if seen[-1] == "generate":
            break
    order = [seen.index(i) for i in ("style-control", "sampler-control", "generate")]
    assert order == sorted(order)
    page.focus("#style-control")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(RESULT)
    page.focus(".picture")
    outline = "getComputedStyle(document.querySelector('.picture')).outlineStyle"
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(outline) == "solid"
    page.get_by_role("button", name="Same again").focus()
    with studio.runner.held():
        page.keyboard.press("Enter")
        page.wait_for_selector(PAINTING)
    page.wait_for_selector(RESULT)


def test_actions_of_a_result(visit: Visit) -> None:
    page = visit()
    page.fill("#seed input", "41")
    paint(page)
    page.wait_for_selector(RESULT)
    page.get_by_role("button", name="Use as start").click()
    page.wait_for_selector(".start-chip img")
    assert page.is_visible("#strength input[type=range]")
    page.get_by_role("button", name="More like this").click()
    page.wait_for_function("document.querySelectorAll('.picture[data-do=pick]').length === 4")
    page.wait_for_selector(RESULT)
    assert page.input_value("#seed input") != "41"
    page.locator(".picture").nth(2).click()
    page.wait_for_selector(".picture[aria-pressed=true] >> nth=0")
    page.wait_for_function(
        "[...document.querySelectorAll('.picture')].findIndex(p => p.ariaPressed === 'true') === 2"
    )


def test_a_start_picture_comes_and_goes(visit: Visit, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "dog.png"
    Image.new("RGB", (90, 60), "orange").save(file)
    page = visit()
    assert not page.is_visible("#strength")
    page.set_input_files("#start-card input[type=file]", file)
    page.wait_for_selector(".start-chip img")
    paint(page)
    page.wait_for_selector(RESULT)
    assert "Strength" in page.inner_text("#result")
    page.get_by_role("button", name="Remove the start picture").click()
    page.wait_for_selector(".start-chip", state="detached")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page.set_input_files("#start-card input[type=file]", broken)
    page.wait_for_selector(".status[data-tone=bad]")


def test_tokens_and_examples(visit: Visit) -> None:
    page = visit()
    chip = page.locator(".chip").first
    chip.click()
    page.wait_for_function(f"document.querySelector('{PROMPT}').value.length > 5")
    assert page.input_value(PROMPT) == chip.inner_text()
    limit = f"of {Catalog().default.tokens} tokens"
    page.wait_for_function(f"document.querySelector('#token-count').innerText.includes('{limit}')")
    page.fill(PROMPT, "<img src=x onerror=alert(1)> castles " * 12)
    page.wait_for_selector("#token-count del")
    assert page.locator("#token-count img").count() == 0


def test_loras_are_chosen_with_a_weight_and_kept(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    assert not page.is_visible("#lora-card")
    lora(studio.settings.loras / "ink.safetensors", wide=NANO)
    lora(studio.settings.loras / "gold.safetensors", seed=1, wide=NANO)
    page.reload()
    page.wait_for_function("window.studioReady === true")
    page.wait_for_selector("#lora-card .lora")
    row = page.locator("[data-lora=ink]")
    weight = row.locator("input[type=number]")
    assert not weight.is_visible()
    row.locator("label").click()
    weight.fill("0.4")
    weight.press("Tab")
    remembered(page)
    page.reload()
    page.wait_for_function("window.studioReady === true")
    page.wait_for_function("document.querySelector('[data-lora=ink] input').checked")
    assert weight.input_value() == "0.4"
    assert not page.is_checked("[data-lora=gold] input[type=checkbox]")
    paint(page)
    page.wait_for_selector(RESULT)
    job = next(iter(studio.gallery.newest(1)))
    assert [(use.name, use.weight) for use in job.loras] == [("ink", 0.4)]
    weight.fill("9")
    weight.press("Tab")
    page.get_by_role("button", name="Generate").click()
    assert "from -4 to 4" in page.wait_for_selector("#loras .field-error").inner_text()


def test_samplers_bring_their_own_values(visit: Visit) -> None:
    page = visit()
    page.select_option("#sampler select", "lcm")
    page.wait_for_selector("#negative textarea:disabled")
    assert "LCM paints without guidance" in page.inner_text("#negative")
    assert "not one of them" in page.inner_text("#sampler")
    assert page.input_value("#steps input[type=number]") == "4"
    assert not page.is_visible("#eta")
    page.select_option("#sampler select", "dpm-solver++")
    page.wait_for_selector("#negative textarea:enabled")
    page.fill("#guidance input[type=number]", "1")
    page.press("#guidance input[type=number]", "Tab")
    page.wait_for_selector("#negative textarea:disabled")


def test_a_dead_process_is_told_and_nothing_is_lost(visit: Visit, studio: FakeStudio) -> None:
    page = visit()
    studio.runner.die_at = 1
    page.fill("#count input[type=number]", "3")
    page.press("#count input[type=number]", "Tab")
    paint(page)
    page.wait_for_selector(".status[data-tone=bad]")
    assert "ended in the middle" in page.inner_text("#status")
    assert page.locator(".picture img").count() == 1
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelectorAll('.picture[data-do=pick]').length === 3")


def test_the_theme_is_remembered_and_never_flashes(visit: Visit) -> None:
    page = visit()
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(11, 11, 15)"
    page.locator("[data-theme-toggle]").click()
    light = page.evaluate(ground)
    assert light == "rgb(246, 246, 248)"
    page.context.add_init_script(
        "window.seen = []; const look = () => { if (document.body)"
        " seen.push(getComputedStyle(document.body).backgroundColor);"
        " requestAnimationFrame(look) }; look()"
    )
    page.reload()
    page.wait_for_function("window.studioReady === true")
    assert set(page.evaluate("window.seen")) == {light}


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1024, 768), (1440, 900)])
def test_nothing_overflows(visit: Visit, width: int, height: int) -> None:
    page = visit(width=width, height=height)
    paint(page, "supercalifragilistic" * 12)
    page.wait_for_selector(RESULT)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    generate = box(page, "#generate")
    assert generate["y"] + generate["height"] <= height, "Generate is always in sight"
    if width < 900:
        assert box(page, ".canvas")["y"] < box(page, PROMPT)["y"]


@pytest.mark.parametrize(
    ("width", "height", "theme"), [(1440, 900, "dark"), (1440, 900, "light"), (390, 844, "dark")]
)
def test_axe(visit: Visit, width: int, height: int, theme: str) -> None:
    page = visit(width=width, height=height, theme=theme)
    faults = []
    for state in ("hint", "result", "error"):
        if state == "result":
            paint(page)
            page.wait_for_selector(RESULT)
        if state == "error":
            page.fill("#seed input", "x")
            page.get_by_role("button", name="Generate").click()
            page.wait_for_selector(".field-error")
        still(page)
        faults += [
            (state, violation["id"], node["target"], node["html"][:160])
            for violation in Axe().run(page).response["violations"]
            for node in violation["nodes"]
        ]
    assert not faults, "\n".join(map(str, faults))


def test_on_a_phone_the_picture_is_in_view_when_it_is_finished(
    visit: Visit, studio: FakeStudio
) -> None:
    page = visit(width=390, height=844)
    with studio.runner.held():
        paint(page)
        page.wait_for_selector("img.preview")
        settled(page, ".canvas")
        painting = box(page, ".canvas")
    page.wait_for_selector(RESULT)
    settled(page, ".canvas")
    assert box(page, ".canvas") == painting, "the page must not scroll by itself"
    assert 0 <= painting["y"] < 100


def test_a_bad_upload_is_told(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    # One that the browser knows by its name, and one that only the studio knows.
    for name in ("notes. Only two.txt", "fake.png"):
        (tmp_path / name).write_text("no picture")
        page.set_input_files("#start-card input[type=file]", tmp_path / name)
        said = f"“{name}” is not a picture that can be read. Use a PNG, JPEG or WebP file."
        page.wait_for_function(
            "said => [...document.querySelectorAll('[data-testid=toast-text]')]"
            ".some(one => one.innerText === said)",
            arg=said,
        )
    # What begins as a picture is read, and told where it was uploaded.
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page.set_input_files("#start-card input[type=file]", tmp_path / "half.png")
    error = page.wait_for_selector("#start-card .field-error")
    assert error.is_visible()
    assert "not a picture" in error.inner_text()


def test_a_mended_field_leaves_no_old_sentence(visit: Visit) -> None:
    page = visit()
    page.fill("#seed input", "abc")
    paint(page)
    page.wait_for_selector("#seed .field-error")
    page.fill("#seed input", "12")
    assert page.locator(".field-error").count() == 0
    assert page.inner_text("#status [role=status]") == ""
    page.fill("#seed input", "")
    page.wait_for_function("document.querySelector('#new_seed input').checked")


def test_a_studio_that_ended_is_said_and_found_again(visit: Visit) -> None:
    page = visit()
    page.evaluate(
        """() => {
          const real = window.fetch;
          window.gone = true;
          window.fetch = (address, ...more) => window.gone && String(address).includes("alive")
            ? Promise.reject(new Error("gone")) : real(address, ...more);
        }"""
    )
    page.wait_for_selector(".silence")
    assert "does not answer" in page.inner_text(".silence")
    page.evaluate("() => { window.gone = false }")
    page.wait_for_selector(".silence", state="detached")
    assert page.is_visible("#status .status")
