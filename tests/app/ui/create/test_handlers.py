"""What the handlers answer, without a browser and without a server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.ui.build import build
from app.ui.create import fields
from app.ui.create.watch import BrowserSession
from pipelines.errors import RequestError, SaveError
from pipelines.text import styles
from tests import tiny
from tests.app.ui.fake_studio import HERE, FakeStudio
from tests.small_loras import NANO, lora

OWNER = "owner-0123456789abcdef"


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    with FakeStudio(tmp_path, steps=4, pace=0.01) as fake:
        yield fake


class Page:
    """The handlers of a page by name, and their answers by elem_id."""

    def __init__(self, studio: FakeStudio) -> None:
        self.demo = build(studio)
        self.studio = studio
        self.browser = BrowserSession()

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        found: list[Any] = [f for f in self.demo.fns.values() if f.api_name == name]
        answer = found[0].fn(*arguments)
        if not isinstance(answer, dict) or "__type__" in answer:
            return {}
        return {str(k.elem_id or type(k).__name__): v for k, v in answer.items()}

    def paint(self, **values: Any) -> dict[str, Any]:
        form = fields.first(self.studio) | {"prompt": "a cat"} | values
        return self.call(
            "paint", self.browser, OWNER, HERE, *(form[name] for name in fields.FIELDS)
        )

    def act(self, do: str, name: str) -> dict[str, Any]:
        return self.call(
            "act", self.browser, OWNER, True, HERE, SimpleNamespace(_data={"do": do, "name": name})
        )

    def finish(self) -> Any:
        job = self.studio.latest(OWNER)
        assert job is not None
        return self.studio.wait(job.id, OWNER, 20)


@pytest.fixture
def page(studio: FakeStudio) -> Page:
    return Page(studio)


def test_generate_paints_and_shows_the_seed(page: Page) -> None:
    with page.studio.runner.held():
        answer = page.paint()
        assert 'data-state="painting"' in answer["canvas"]
        assert answer["generate"]["interactive"] is False
        assert answer["stop"]["interactive"] is True
    job = page.finish()
    assert answer["seed"] == str(job.request.seed)
    told = page.call("tick", page.browser, OWNER)
    assert 'data-state="result"' in told["canvas"]
    assert told["generate"]["interactive"] is True


def test_nothing_new_is_not_sent(page: Page) -> None:
    page.call("tick", page.browser, OWNER)
    assert page.call("tick", page.browser, OWNER) == {}


def test_a_bad_value_is_one_sentence_at_its_field(page: Page) -> None:
    answer = page.paint(seed="abc", new_seed=False)
    assert 'data-field="seed"' in answer["status"]
    assert "seed" not in answer
    assert page.studio.latest(OWNER) is None
    assert page.call("tick", page.browser, OWNER) == {}, "the sentence stays until the next try"
    assert "data-field" not in page.paint()["status"]


@pytest.mark.parametrize("value", [{}, [], {"path": "/etc/passwd"}, 1e400, -1, "\x00", True, None])
def test_hostile_values_never_raise(page: Page, value: Any) -> None:
    for field in fields.FIELDS:
        page.paint(**{field: value})
        form = fields.first(page.studio) | {"prompt": "x", field: value}
        for name in ("retune", "remodel"):
            page.call(name, *(form[each] for each in fields.FIELDS))
        page.call("reguide", value, value)
        page.call("keep_upload", page.browser, value if value != "\x00" else None)


def test_a_default_model_without_its_tokenizer_lets_the_page_open(tmp_path: Path) -> None:
    studio = FakeStudio(tmp_path)
    shutil.rmtree(tiny.build(studio.settings.models / "broken") / "tokenizer")
    studio.catalog.reload()
    assert studio.catalog.default.id == "broken"
    page = Page(studio)
    told = page.call("open", page.browser, OWNER, None)
    assert "tokenizer" in told["token-count"]
    studio.close()


def test_a_second_click_does_not_paint_twice(page: Page) -> None:
    with page.studio.runner.held():
        page.paint()
        first = page.studio.latest(OWNER)
        answer = page.paint()
        assert "already" in answer["status"]
        assert page.studio.latest(OWNER).id == first.id  # type: ignore[union-attr]


def test_stop_keeps_what_is_finished(page: Page) -> None:
    with page.studio.runner.held(picture=2):
        page.paint(count=8)
        deadline = time.monotonic() + 60
        while not page.studio.latest(OWNER).pictures:  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        page.call("stop", page.browser, OWNER)
        job = page.finish()
    told = page.call("tick", page.browser, OWNER)
    assert len(job.pictures) == 1
    assert told["canvas"].count("<img") == len(job.pictures)
    assert "finished and kept" in told["status"]


def test_a_dead_process_is_said_and_pictures_stay(page: Page) -> None:
    page.studio.runner.die_at = 1
    page.paint(count=3)
    page.finish()
    told = page.call("tick", page.browser, OWNER)
    assert "ended in the middle" in told["status"]
    assert told["canvas"].count("<img") == 1
    page.paint()
    assert page.finish().error is None


def test_another_tab_of_the_same_browser_sees_the_job(page: Page) -> None:
    page.paint()
    page.finish()
    opened = page.call("open", BrowserSession(), OWNER, {"prompt": "kept"})
    assert 'data-state="result"' in opened["canvas"]
    assert opened["prompt"]["value"] == "kept"


def test_another_browser_sees_nothing(page: Page) -> None:
    page.paint()
    page.finish()
    opened = page.call("open", BrowserSession(), "", None)
    assert 'data-state="hint"' in opened["canvas"]
    assert opened["BrowserState"] != OWNER


def test_same_again_paints_the_same_recipe(page: Page) -> None:
    page.paint(seed="41", new_seed=False, count=2)
    second = page.finish().pictures[1]
    answer = page.act("again", second.name)
    assert answer["seed"]["value"] == "42"
    assert answer["new_seed"]["value"] is False
    assert page.finish().pictures[0].request == second.request


def test_more_like_this_paints_four_with_new_seeds(page: Page) -> None:
    page.paint(seed="41", new_seed=False)
    file = page.finish().pictures[0]
    page.act("more", file.name)
    job = page.finish()
    assert len(job.pictures) == 4
    assert job.request.seed != 41
    assert job.request.prompt == file.request.prompt


def test_use_as_start_puts_the_picture_into_the_form(page: Page) -> None:
    page.paint()
    file = page.finish().pictures[0]
    name = page.act("start", file.name)["init"]
    assert page.studio.find_start(name).width == 128
    page.paint(init=name, strength=0.4)
    assert page.finish().request.strength == 0.4


def test_a_picked_picture_is_shown_below(page: Page) -> None:
    page.paint(count=3)
    third = page.finish().pictures[2]
    page.call("tick", page.browser, OWNER)
    answer = page.act("pick", third.name)
    assert f"<dd>{third.request.seed}</dd>" in answer["result"]


@pytest.mark.parametrize("data", [None, 3, {}, {"do": "start", "name": "../../etc/passwd"}])
def test_a_strange_event_does_nothing(page: Page, data: Any) -> None:
    page.call("act", page.browser, OWNER, True, HERE, SimpleNamespace(_data=data))
    page.call("example", "nano", SimpleNamespace(_data=data))


def test_an_upload_that_is_no_picture_is_told(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"nothing")
    answer = page.call("keep_upload", page.browser, str(file))
    assert 'data-field="start-card"' in answer["status"]
    assert "init" not in answer


def test_another_sampler_brings_its_defaults(page: Page) -> None:
    form = fields.first(page.studio) | {"sampler": "dmd", "prompt": "half a sen"}
    answer = page.call("retune", *(form[name] for name in fields.FIELDS))
    assert answer["steps"]["value"] == 1
    assert answer["guidance"]["value"] == 0
    assert answer["negative"]["interactive"] is False
    assert "prompt" not in answer, "what is being typed is left alone"
    assert "value" not in answer["negative"]


def test_tokens_are_counted_and_escaped(page: Page) -> None:
    found: Any = next(f for f in page.demo.fns.values() if f.api_name == "recount")
    html = found.fn("<b>castle</b> " * 40, "None", "nano", False)
    assert "<del>" in html
    assert "<b>castle" not in html
    assert "characters" in found.fn("x" * 20_000, "None", "nano", False)
    assert "no model called" in found.fn("x", "None", "nope", False)


def test_tokens_are_counted_after_the_cleaning(page: Page) -> None:
    found: Any = next(f for f in page.demo.fns.values() if f.api_name == "recount")
    plain = found.fn("a red apple", "None", "nano", False)
    assert found.fn("a (red) apple", "None", "nano", True) == plain
    assert found.fn("a (red) apple", "None", "nano", False) != plain


def test_words_that_the_model_has_never_seen_are_told(page: Page) -> None:
    found: Any = next(f for f in page.demo.fns.values() if f.api_name == "recount")
    html = found.fn("Two Fishermen and a red apple, please", "None", "nano", False)
    assert "This model has never seen: fishermen<" in html
    assert "tokens" in html
    assert "never seen" not in found.fn(
        "two red apples on a yellow background", "None", "nano", False
    )
    # A style is not what somebody typed.
    style = list(styles.all_styles())[-1]
    assert "never seen" not in found.fn("a red apple", style, "nano", False)
    assert "<b>yacht" not in found.fn("<b>yacht</b>", "None", "nano", False)
    # What stands behind the end is told as not read, not as unknown.
    assert "never seen" not in found.fn("castle " * 60 + "fisherman", "None", "nano", False)


def test_a_seat_takes_only_a_plausible_owner() -> None:
    browser = BrowserSession()
    mine = browser.identify(None)
    assert len(mine) == 32
    odd: Any
    for odd in ("", "short", "x" * 65, 7, {}):
        assert browser.identify(odd) == mine
    assert browser.identify(OWNER) == OWNER


def test_width_and_height_are_told_at_the_size() -> None:
    browser = BrowserSession()
    browser.complain(RequestError("width", "Too wide."))
    assert browser.notice is not None
    assert browser.notice.field == "size"


def test_views_differ_only_where_something_changed(page: Page, studio: FakeStudio) -> None:
    stage = {"canvas", "status", "result", "engine", "generate", "stop"}
    first = page.call("tick", page.browser, OWNER)
    assert stage | {"Timer"} == set(first)
    page.browser.complain(RequestError("width", "Too wide."))
    assert set(page.call("tick", page.browser, OWNER)) == {"status"}
    # Whoever loads the page anew has nothing of it.
    assert stage <= set(page.call("open", page.browser, OWNER, None))


def test_every_output_of_a_handler_is_declared(page: Page) -> None:
    assert isinstance(page.demo, gr.Blocks)
    for function in page.demo.fns.values():
        assert function.api_visibility in ("private", "public")


def test_a_picture_is_deleted_after_a_question(page: Page) -> None:
    page.paint(count=2)
    first, second = page.finish().pictures
    page.act("pick", second.name)
    asked = page.act("ask-delete", second.name)["result"]
    assert "for good?" in asked
    assert 'data-do="ask-delete"' not in asked
    # Looking at another picture is an answer, too.
    page.act("pick", first.name)
    assert "for good?" not in page.act("pick", second.name)["result"]
    page.act("ask-delete", second.name)
    assert 'data-do="ask-delete"' in page.act("keep", second.name)["result"]
    assert second.path.exists()
    page.act("ask-delete", second.name)
    told = page.act("delete", second.name)
    assert not second.path.exists()
    assert second.name not in told["canvas"]
    assert first.name in told["result"]
    page.act("delete", first.name)
    assert page.act("delete", first.name) == {}, "a late click does nothing"
    assert page.studio.latest(OWNER) is None


def test_a_picture_that_cannot_be_deleted_is_said(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.paint()
    (picture,) = page.finish().pictures

    def refused(name: str) -> None:
        raise SaveError("It cannot be deleted.")

    monkeypatch.setattr(page.studio.gallery, "remove", refused)
    told = page.act("delete", picture.name)
    assert "It cannot be deleted." in told["status"]
    assert picture.path.exists()


def test_weights_far_from_1_are_asked_about_again(studio: FakeStudio, tmp_path: Path) -> None:
    lora(tmp_path / "loras" / "ink.safetensors", wide=NANO)
    page = Page(studio)
    told = page.paint(loras="ink:3")
    assert studio.latest(OWNER) is None
    assert "ink:3 is beyond -2 to 2" in told["status"]
    assert "Press Generate again" in told["status"]
    # Another weight is another question, and a usual one takes it back.
    assert "ink:-2.5 is beyond" in page.paint(loras="ink:-2.5")["status"]
    assert studio.latest(OWNER) is None
    page.paint(loras="ink:2")
    assert page.finish().pictures
    assert "ink:-2.5 is beyond" in page.paint(loras="ink:-2.5")["status"]
    page.paint(loras="ink:-2.5")
    job = page.finish()
    assert (job.request.loras[0].weight, len(job.pictures)) == (-2.5, 1)


@pytest.mark.parametrize("do", ["again", "more"])
def test_painting_again_says_when_a_lora_is_another_one(
    do: str, studio: FakeStudio, tmp_path: Path
) -> None:
    file = lora(tmp_path / "loras" / "ink.safetensors", wide=NANO)
    studio.runner.lora_hashes = (("ink", studio.catalog.loras.content_hash("ink")),)
    page = Page(studio)
    page.paint(loras="ink")
    name = page.finish().pictures[0].name
    told = page.act(do, name)
    assert "another one" not in told.get("status", "")
    name = page.finish().pictures[0].name
    lora(file, seed=5, wide=NANO)
    told = page.act(do, name)
    assert "The LoRA “ink” is another one than when that picture was painted" in told["status"]
    name = page.finish().pictures[0].name
    file.unlink()
    told = page.act(do, name)
    assert "There is no LoRA called “ink”" in told["status"]
