"""The Gallery tab: what it shows, what its buttons do, and who may press them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin

from app.gallery.metadata import CHUNK
from app.jobs.exports import ExportOrder
from app.jobs.job import Job
from app.ui.build import build
from app.ui.create import fields
from app.ui.create.watch import BrowserSession
from app.ui.gallery import handlers
from app.ui.gallery.browse import Browse
from app.ui.gallery.cards import PAGE
from tests.app.gallery.test_index import put
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio, served

ME, OTHER = "m" * 20, "o" * 20
FOX, OWL = "2025-01-01/000000-1-000000.png", "2025-01-02/000000-2-000000.png"


class Names(HTMLParser):
    """The pictures of a grid, and every tag and attribute that stands in the markup."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values: dict[str, str] = {}
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        self.values |= {name: str(value) for name, value in attrs}
        if tag == "li" and values.get("class") == "shot":
            self.pictures.append(str(values["data-name"]))


class Page:
    """The handlers of the tab, as gradio would call them for one browser tab."""

    def __init__(self, studio: FakeStudio) -> None:
        self.studio, self.browse, self.browser = studio, Browse(), BrowserSession()
        self.demo = build(studio)
        self.shown: dict[str, Any] = {}

    def call(self, name: str, *arguments: Any, request: Any = HERE, owner: str = ME) -> None:
        found: list[Any] = [f for f in self.demo.fns.values() if f.api_name == name]
        answer = found[0].fn(self.browse, self.browser, owner, *arguments, request)
        if isinstance(answer, dict) and "__type__" not in answer:
            self.shown |= {str(k.elem_id or type(k).__name__): v for k, v in answer.items()}

    def open(self, query: str = "", **more: Any) -> list[str]:
        self.call("open_gallery", query, **more)
        return self.pictures

    def search(self, query: str) -> list[str]:
        self.call("search", query)
        return self.pictures

    def press(self, do: str, name: str = "", request: Any = HERE, **data: Any) -> None:
        event = SimpleNamespace(_data={"do": do, "name": name, **data})
        found: list[Any] = [f for f in self.demo.fns.values() if f.api_name == "act_gallery"]
        answer = found[0].fn(self.browse, self.browser, ME, request, event)
        if isinstance(answer, dict) and "__type__" not in answer:
            self.shown |= {str(k.elem_id or type(k).__name__): v for k, v in answer.items()}

    @property
    def pictures(self) -> list[str]:
        return Names(str(self.shown["shots"])).pictures

    @property
    def said(self) -> str:
        """The notice over the lower edge."""
        return str(self.shown["gallery-note"])

    @property
    def bar(self) -> str:
        return str(self.shown["gallery-bar"])

    @property
    def look(self) -> str:
        return str(self.shown["look"])

    @property
    def orders(self) -> Any:
        """What the browser is told to do with its selection."""
        return json.loads(Names(self.bar).values["data-orders"])


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    outputs = tmp_path / "outputs"
    put(outputs, FOX, "a red fox", negative="blurry")
    put(outputs, OWL, "a red owl", style="Anime", seed=7, steps=9)
    with FakeStudio(tmp_path, steps=2, pace=0) as fake:
        yield fake


@pytest.fixture
def page(studio: FakeStudio) -> Page:
    return Page(studio)


def paint(studio: FakeStudio, prompt: str, owner: str) -> Job:
    job = studio.submit(studio.request({"prompt": prompt, "size": "96x160"}), owner)
    done = studio.wait(job.id, owner, 20)
    assert done is not None
    assert done.pictures
    return done


def test_nothing_is_drawn_before_the_tab_is_opened(page: Page) -> None:
    shown = [c for c in page.demo.get_config_file()["components"] if c["type"] == "html"]
    values = {c["props"].get("elem_id"): c["props"].get("value") for c in shown}
    assert values["shots"] == values["look"] == values["gallery-bar"] == ""


def test_pictures_are_found_and_looked_at(page: Page) -> None:
    assert page.open() == [OWL, FOX]
    assert "2 pictures" in page.bar
    assert page.search("fox") == [FOX]
    assert page.search("whale") == []
    assert "No picture matches this search." in page.shown["shots"]
    assert page.search("date:never") == []
    assert "is not a date" in page.shown["shots"]
    assert page.search("date:2026-13") == []
    assert "“date:2026-13” is not a date" in page.shown["shots"]
    assert page.search("") == [OWL, FOX]
    page.press("open", OWL)
    page.search("date:never")
    assert "a red owl" in page.look, "a slip of the pen closes nothing"
    page.search("")
    page.press("open", OWL)
    look = str(page.shown["look"])
    assert "a red owl" in look
    assert "<dt>Steps</dt><dd>9</dd>" in look
    assert "<dt>Style</dt><dd>Anime</dd>" in look
    page.press("close")
    assert "Choose a picture" in page.shown["look"]
    page.press("open", "2025-01-01/000000-9-999999.png")
    assert "Choose a picture" in page.shown["look"]
    assert "deleted meanwhile" in page.said


def test_new_pictures_wait_and_old_news_is_not_told_again(page: Page, studio: FakeStudio) -> None:
    page.open()
    page.shown.clear()
    page.call("tick_gallery")
    assert page.shown == {}
    first, second = paint(studio, "a whale", ME), paint(studio, "a wren", ME)
    page.call("tick_gallery")
    assert page.pictures == [OWL, FOX]
    assert "2 new pictures" in page.shown["shots"]
    new = [job.pictures[0].name for job in (second, first)]
    # They are not on the page, so they are none of "all".
    page.press("select-found")
    assert page.orders["select"] == [OWL, FOX]
    page.press("export", format="zip", names=[])
    assert ended(studio).done.count == 2
    assert sorted(page.open(), reverse=True) == sorted([*new, OWL, FOX], reverse=True)
    third = paint(studio, "a wolf", ME)
    page.call("tick_gallery")
    page.press("fresh")
    assert third.pictures[0].name in page.pictures
    assert "new picture" not in page.shown["shots"]
    page.search("a")
    assert len(page.pictures) == 5


def test_what_comes_into_an_empty_gallery_is_shown(page: Page, studio: FakeStudio) -> None:
    page.open()
    page.press("ask-delete", names=[FOX, OWL])
    page.press("delete", names=[FOX, OWL])
    assert page.pictures == []
    assert page.look == "", "nothing can be chosen"
    assert "Export" not in page.bar.replace("data-many hidden>", "").partition("<details")[0]
    paint(studio, "a whale", ME)
    page.call("tick_gallery")
    assert len(page.pictures) == 1


def test_more_are_shown_page_by_page(page: Page, studio: FakeStudio) -> None:
    for i in range(PAGE):
        put(studio.settings.outputs, f"2025-02-01/0000{i:02}-1-000000.png", f"cat {i}")
    assert len(page.open()) == PAGE
    assert "Show 2 more" in page.shown["shots"]
    page.press("more")
    assert len(page.pictures) == PAGE + 2
    assert "more" not in page.shown["shots"].rpartition("</ul>")[2]
    assert len(page.search("cat")) == PAGE


def test_where_no_more_are_shown_that_is_said(
    page: Page, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.ui.gallery import cards

    monkeypatch.setattr(handlers, "MAX_SHOWN", PAGE + 1)
    monkeypatch.setattr(cards, "MAX_SHOWN", PAGE + 1)
    monkeypatch.setattr(handlers, "MAX_SELECTED", PAGE + 2)
    for i in range(PAGE + 1):
        put(studio.settings.outputs, f"2025-02-01/00{i // 60:02}{i % 60:02}-1-000000.png", "cat")
    page.open()
    assert "Show 1 more" in page.shown["shots"]
    page.press("more")
    assert f"The newest {PAGE + 1} of {PAGE + 3} are shown." in page.shown["shots"]
    assert 'data-do="more"' not in page.shown["shots"]
    page.press("select-found")
    assert len(page.orders["select"]) == PAGE + 2


def test_settings_go_back_into_the_form(page: Page) -> None:
    page.open()
    page.press("use", OWL)
    assert page.shown["rail"].selected == "create"
    assert page.shown["prompt"]["value"] == "a red owl"
    assert page.shown["steps"]["value"] == 9
    assert page.shown["seed"]["value"] == "7"
    assert page.shown["new_seed"]["value"] is False


def test_the_words_of_a_model_that_is_gone_are_used(page: Page, studio: FakeStudio) -> None:
    lost = {"model": "lost", "steps": 77, "seed": 5, "init": "0" * 16 + ".png"}
    file = put(
        studio.settings.outputs, "2025-03-01/000000-1-000000.png", "a dodo", style="Anime", **lost
    )
    # A style that only another version has.
    with Image.open(file) as picture:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(CHUNK, picture.info[CHUNK].replace('"Anime"', '"Not ours"'))
        picture.save(file, pnginfo=chunks)
    page.open()
    page.press("open", "2025-03-01/000000-1-000000.png")
    assert "Use its prompt" in page.shown["look"]
    assert "There is no model called “lost”" in page.shown["look"]
    page.press("use", "2025-03-01/000000-1-000000.png")
    assert page.shown["prompt"]["value"] == "a dodo"
    assert page.shown["seed"]["value"] == "5"
    assert page.shown["style"]["value"] == "None"
    assert page.shown["model"]["value"] == studio.catalog.default.id
    assert page.shown["steps"]["value"] == fields.first(studio)["steps"]
    assert page.shown["init"]["value"] == ""


def test_a_picture_to_start_from(page: Page, studio: FakeStudio) -> None:
    page.open()
    page.press("start", FOX)
    assert page.shown["rail"].selected == "create"
    assert studio.find_start(page.shown["init"]).path.is_file()


def test_a_star_comes_and_goes(page: Page) -> None:
    page.open()
    page.press("open", FOX)
    page.press("star", FOX)
    assert "Take the star off" in page.shown["look"]
    assert page.search("starred:yes") == [FOX]
    page.press("unstar", FOX)
    assert page.pictures == []
    page.press("star", "../../etc/passwd")
    assert "deleted meanwhile" in page.said


def test_many_get_a_star(page: Page, studio: FakeStudio) -> None:
    page.open()
    page.press("star", names=[FOX, "2025-01-01/000000-9-000000.png", OWL])
    assert studio.pictures("starred:yes", None).total == 2
    assert page.orders["gone"] == ["2025-01-01/000000-9-000000.png"]
    page.press("unstar", names=[FOX])
    assert page.search("starred:yes") == [OWL]


def test_one_is_deleted_from_beside_and_the_next_is_looked_at(
    page: Page, studio: FakeStudio
) -> None:
    outputs = studio.settings.outputs
    page.open()
    studio.thumb(OWL)
    page.press("star", OWL)
    page.press("open", OWL)
    page.press("ask-delete", OWL)
    assert "for good?" in page.look
    assert "for good?" not in page.bar
    page.press("keep")
    assert "for good?" not in page.look
    assert (outputs / OWL).exists()
    page.press("ask-delete", OWL)
    page.press("delete")
    assert not (outputs / OWL).exists()
    assert page.pictures == [FOX]
    assert "1 picture is deleted." in page.said
    assert "a red fox" in page.look
    assert page.orders["gone"] == [OWL]
    assert not list(studio.settings.thumbs.rglob("*.webp"))
    assert studio.pictures("starred:yes", None).total == 0
    page.press("delete")
    assert (outputs / FOX).exists(), "a question is answered once"
    page.press("ask-delete", FOX)
    page.press("delete")
    assert page.look == ""


@pytest.mark.parametrize("do", ["open", "close", "more", "star", "export", "fresh", "dismiss"])
def test_a_question_does_not_outlive_its_picture(page: Page, do: str) -> None:
    page.open()
    page.press("open", OWL)
    page.press("ask-delete", OWL)
    page.press(do, FOX, format="zip")
    assert "for good?" not in page.look
    assert "for good?" not in page.bar
    page.press("delete", OWL, names=[OWL, FOX])
    assert page.open() == [OWL, FOX]


def test_a_press_that_was_overtaken_changes_nothing(page: Page) -> None:
    page.open()
    page.press("open", OWL, at=2)
    page.press("open", FOX, at=1)
    assert "a red owl" in page.look
    assert 'data-at="2"' in page.look
    page.shown.clear()
    page.press("again")
    assert "a red owl" in page.look
    page.press("close", at=3)
    page.press("open", FOX, at="x")
    assert "a red fox" in page.look


def test_the_question_is_about_the_picture_that_was_seen(page: Page) -> None:
    page.open()
    page.press("open", OWL)
    # Its answer was overtaken: the page shows the other one still.
    page.press("ask-delete", FOX)
    assert "for good?" in page.look
    assert "a red fox" in page.look


def test_many_are_deleted_from_the_bar(page: Page, studio: FakeStudio) -> None:
    page.open()
    mine = paint(studio, "a whale", ME)
    page.open()
    whale = mine.pictures[0].name
    page.press("open", whale)
    page.press("ask-delete", names=[OWL, whale, "../../x.png"])
    assert "these 2 pictures" in page.bar, "it names those that are there"
    assert page.orders["gone"] == ["../../x.png"]
    page.press("more")
    assert "these 2 pictures" in page.bar, "more come by themselves"
    # One of them has no tick any more: it stays.
    page.press("delete", names=[whale])
    assert set(page.pictures) == {OWL, FOX}
    assert "1 picture is deleted." in page.said
    assert "Choose a picture" not in page.look
    page.press("ask-delete", names=[OWL, FOX])
    page.press("delete", names=[OWL, FOX, "2025-01-01/000000-9-000000.png"])
    assert "No pictures yet" in page.shown["shots"]
    assert "2 pictures are deleted." in page.said
    assert studio.latest(ME) is None, "Create does not show what is gone"


@pytest.mark.parametrize("do", ["open", "close", "star", "dismiss", "select-found"])
def test_a_notice_is_about_the_last_press(page: Page, do: str) -> None:
    page.open()
    page.press("ask-delete", OWL)
    page.press("star", "../../etc/passwd")
    assert "deleted meanwhile" in page.said
    page.press(do, OWL)
    assert "deleted meanwhile" not in page.said


def test_a_picture_that_somebody_else_deleted(page: Page, studio: FakeStudio) -> None:
    page.open()
    page.press("open", OWL)
    (studio.settings.outputs / OWL).unlink()
    page.press("missing", OWL)
    assert "That picture was deleted meanwhile." in page.said
    assert "a red owl" not in page.look
    assert page.pictures == [FOX]
    page.press("ask-delete", names=[OWL])
    assert "for good?" not in page.bar
    assert page.orders["gone"] == [OWL]
    page.press("missing", FOX)
    assert page.pictures == [FOX], "what is there stays"


def test_presses_that_come_together_are_all_answered(page: Page) -> None:
    page.open()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: page.press("star", (OWL, FOX)[i % 2]), range(16)))
    assert page.studio.pictures("starred:yes", None).total == 2
    acts = [f for f in page.demo.fns.values() if f.api_name == "act_gallery"]
    assert {f.trigger_mode for f in acts} == {"multiple"}


def test_pictures_of_a_running_job_stay(page: Page, studio: FakeStudio) -> None:
    with studio.runner.held(picture=2):
        job = studio.submit(studio.request({"prompt": "cats", "size": "96x160", "count": 2}), ME)
        end = time.monotonic() + 60
        while not (now := studio.job(job.id, ME)) or not now.pictures:
            assert time.monotonic() < end
            time.sleep(0.01)
        page.open()
        page.press("ask-delete", names=[now.pictures[0].name])
        page.press("delete", names=[now.pictures[0].name])
        assert page.orders["gone"] == [], "what stays is still selected"
        assert "A job that runs has painted some of them." in page.said
        assert now.pictures[0].path.exists()
        studio.stop(job.id, ME)


def test_a_visitor_sees_and_exports_what_is_theirs(page: Page, studio: FakeStudio) -> None:
    mine, other = paint(studio, "a whale", ME), paint(studio, "a secret", OTHER)
    assert page.open(request=ELSEWHERE) == [mine.pictures[0].name]
    hidden = other.pictures[0].name
    page.press("open", hidden, ELSEWHERE)
    assert "secret" not in str(page.shown)
    for do in ("use", "start"):
        page.press(do, hidden, ELSEWHERE)
        assert "There is no such picture." in page.said
        assert "rail" not in page.shown
    for do in ("star", "ask-delete", "delete"):
        page.press(do, mine.pictures[0].name, ELSEWHERE)
        assert "on the computer that the studio runs on" in page.said
    assert mine.pictures[0].path.exists()
    assert "ask-delete" not in page.bar
    page.press("select-found", request=ELSEWHERE)
    assert page.orders["select"] == [mine.pictures[0].name]
    page.press("export", format="zip", names=[hidden, mine.pictures[0].name], request=ELSEWHERE)
    job = ended(studio)
    assert job.done is not None
    assert job.done.count == 1
    assert hidden not in str(job.done.path.read_bytes())
    page.press("export", format="zip", names=[hidden], request=ELSEWHERE)
    assert "no picture to export" in str(ended(studio).error)


def ended(studio: FakeStudio) -> Any:
    end = time.monotonic() + 60
    while (job := studio.exports.job(ME)) is None or job.active:
        assert time.monotonic() < end
        time.sleep(0.01)
    return job


def test_an_export_is_offered_and_closed(page: Page, studio: FakeStudio) -> None:
    page.open("owl")
    page.press("export", format="zip", strip=False, names=[])
    job = ended(studio)
    page.call("tick_gallery")
    assert f'href="studio/exports/{job.token}"' in page.shown["gallery-work"]
    assert "1 picture is in pictures-" in page.shown["gallery-work"]
    page.press("close-export")
    assert page.shown["gallery-work"] == ""
    page.press("export", format="gif")
    assert "There is no format called “gif”" in page.said


@pytest.mark.parametrize("data", [{}, {"do": None}, {"do": "delete"}, {"do": "open", "name": 7}])
def test_strange_events_do_nothing(page: Page, data: dict[str, Any]) -> None:
    page.open()
    page.press(**{"do": "", **data})
    page.press("ask-delete", names="no list")
    page.press("delete")
    page.press("delete", names=[OWL])
    assert page.open() == [OWL, FOX]


def test_prompts_are_text_and_nothing_else(page: Page, studio: FakeStudio) -> None:
    hostile = '</button><script>alert(1)</script><img src=x onerror="alert(1)">"\' ' * 3
    name = "2025-03-01/000000-1-000000.png"
    put(studio.settings.outputs, name, hostile, negative=hostile, model="nano")
    page.open(hostile[:200])
    page.open()
    page.press("open", name)
    for markup in page.shown.values():
        seen = Names(str(markup))
        assert "script" not in seen.tags
        assert "onerror" not in seen.attributes


def test_a_picture_without_a_recipe_can_be_had_and_deleted(page: Page, studio: FakeStudio) -> None:
    name = "2025-03-01/000000-1-000000.png"
    file = studio.settings.outputs / name
    file.parent.mkdir()
    Image.new("RGB", (8, 8)).save(file)
    page.open()
    page.press("open", name)
    look = str(page.shown["look"])
    assert "holds no recipe of this studio" in look
    assert 'data-do="use"' not in look
    page.press("use", name)
    assert "rail" not in page.shown
    page.press("ask-delete", name)
    page.press("delete")
    assert not file.exists()


def test_thumbnails_and_exports_over_http(studio: FakeStudio) -> None:
    with served(studio) as address, httpx.Client(base_url=address, timeout=30) as http:
        small = http.get(f"/studio/thumbs/{FOX}")
        assert small.headers["content-type"] == "image/webp"
        assert small.content[8:12] == b"WEBP"
        assert "immutable" in small.headers["cache-control"]
        for path in (
            "/studio/thumbs/2025-01-01/x.png",
            "/studio/thumbs/2025-01-01/000000-9-000000.png",
            "/studio/thumbs/..%2f..%2fsecret/000000-1-000000.png",
            "/studio/exports/" + "0" * 32,
            "/studio/exports/..%2f..",
        ):
            assert http.get(path).status_code == 404, path
        studio.index.sync()
        studio.exports.start(ExportOrder(format="html", everybodys=True), ME)
        job = ended(studio)
        page = http.get(f"/studio/exports/{job.token}")
        assert page.headers["content-type"] == "application/octet-stream"
        assert page.headers["content-disposition"].startswith("attachment; filename=")
        assert b"a red owl" in page.content
