"""The Train tab: what it shows, what its buttons and fields do, and who may use it."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from app import hosting
from app.training.run_list import ORDER
from app.ui.build import build
from app.ui.create import fields
from app.ui.create.watch import BrowserSession
from app.ui.guards import bodies
from app.ui.train.handlers import TrainVisit
from tests.app.training.test_run_list import config, step, write
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio, served


class Page:
    """The handlers of the tab, and what they showed last, by elem_id."""

    def __init__(self, studio: FakeStudio) -> None:
        self.studio, self.visit, self.browser = studio, TrainVisit(), BrowserSession()
        self._fns: dict[Any, Any] = {f.api_name: f.fn for f in build(studio).fns.values()}
        self.shown: dict[str, Any] = {}

    def call(self, name: str, *arguments: Any) -> str:
        answer = self._fns[name](self.visit, self.browser, "o" * 20, *arguments)
        if isinstance(answer, dict) and "__type__" not in answer:
            self.shown |= {str(k.elem_id or type(k).__name__): v for k, v in answer.items()}
        return str(self.shown.get("train-view", ""))

    def open(self, request: Any = HERE) -> str:
        return self.call("open_train", request)

    def press(self, do: Any, name: Any = "", request: Any = HERE, **more: Any) -> str:
        form = fields.first(self.studio)
        event = SimpleNamespace(_data={"do": do, "name": name, **more})
        return self.call("act_train", request, event, *(form[one] for one in fields.FIELDS))


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    with FakeStudio(tmp_path / "workspace", steps=2, pace=0.01) as fake:
        yield fake


@pytest.fixture
def page(studio: FakeStudio) -> Page:
    page = Page(studio)
    page.open()
    return page


def photo(shade: int = 0, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (shade, 80, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def begun(page: Page, kind: str = "subject", photos: int = 3) -> str:
    """Begins a preparation with photos; its id."""
    page.press("begin", kind)
    key = page.visit.looking.removeprefix("new:")
    for number in range(photos):
        file = page.studio.settings.workspace / f"{number}.png"
        file.write_bytes(photo(40 * number))
        page.studio.trainings.preparations.add(key, file.name, file)
    return key


def test_there_are_three_ways_to_begin(page: Page) -> None:
    shown = page.shown["train-view"]
    assert [shown.count(f'data-name="{kind}"') for kind in ("subject", "style", "scratch")] == [
        1
    ] * 3
    assert "Nothing has been trained here yet." in page.shown["train-runs"]
    for kind, title in (
        ("subject", "Teach it a subject"),
        ("style", "Teach it a style or concept"),
        ("scratch", "Train a model from scratch"),
    ):
        assert title in page.press("begin", kind)
    assert "This is no kind of training." in page.press("begin", "../x")


def test_photos_are_counted_in_words(page: Page) -> None:
    begun(page, photos=1)
    page.press("set", fields={"subject": "dog"})
    assert "Being prepared, 1 photo<" in page.shown["train-runs"]
    begun(page, "style", photos=2)
    page.press("set", fields={"name": "ink"})
    assert "Being prepared, 2 photos<" in page.shown["train-runs"]


def test_a_press_that_does_nothing_yet_begins_no_second_one(page: Page) -> None:
    for _ in range(3):
        page.press("begin", "subject")
        page.press("new")
    assert len(page.studio.trainings.preparations.all()) == 1


def test_what_is_typed_is_kept_and_shown_again(page: Page) -> None:
    key = begun(page)
    shown = page.press(
        "set",
        fields={
            "subject": " <b>dog</b> ",
            "caption:0001.png": 'on a "sofa"',
            "set:steps": "40",
            "set:lora.rank": "16",
            "no-such-field": "x",
            "set:base.model": "other",
            "caption:../../x": "y",
        },
    )
    assert "&lt;b&gt;dog&lt;/b&gt;" in shown
    assert "<b>dog</b>" not in shown
    assert "on a &#34;sofa&#34;" in shown
    made = page.studio.trainings.preparations.get(key)
    # What the recipe says anyway is not a change.
    assert made.settings == {"steps": "40"}
    again = Page(page.studio)
    again.open()
    assert "on a &#34;sofa&#34;" in again.press("show", f"new:{key}")


def test_what_is_typed_belongs_to_the_form_that_it_was_typed_into(page: Page) -> None:
    """The press on another row may arrive before the field that it left."""
    first, second = begun(page), begun(page, "style")
    page.press("set", preparation=first, fields={"subject": "dog"})
    prepared = page.studio.trainings.preparations
    assert (prepared.get(first).subject, prepared.get(second).subject) == ("dog", "")
    assert page.visit.looking == f"new:{second}"
    page.press("new")
    page.press("set", preparation=first, fields={"name": "my-dog"})
    assert prepared.get(first).name == "my-dog"
    for wrong in ("../../x", "0" * 12, ["x"]):
        page.press("set", preparation=wrong, fields={"name": "x"})
    assert prepared.get(second).name == ""


def test_a_model_that_is_gone_is_not_replaced_by_another(page: Page) -> None:
    key = begun(page)
    page.studio.trainings.preparations.change(key, base="mine")
    shown = page.press("set")
    assert '<option value="mine" selected>mine (not there any more)</option>' in shown


def test_photos_are_cropped_and_taken_away(page: Page) -> None:
    key = begun(page)
    prepared = page.studio.trainings.preparations
    page.press("focus", "0001.png", x=0.25, y=0.5)
    crop = prepared.get(key).photos[0].crop
    assert crop is not None
    assert (crop.x, crop.y, crop.zoom) == (0.25, 0.5, 1.25)
    page.press("closer", "0001.png")
    assert getattr(prepared.get(key).photos[0].crop, "zoom", 0) == pytest.approx(1.5625)
    for _ in range(3):
        page.press("wider", "0001.png")
    assert prepared.get(key).photos[0].crop is None
    for wrong in ({"x": "0", "y": 1}, {"x": 2, "y": 0.5}, {"x": float("nan"), "y": 0.5}, {}):
        assert "This is no place in a photo." in page.press("focus", "0001.png", **wrong)
    page.press("drop-photo", "0002.png")
    assert [one.file for one in prepared.get(key).photos] == ["0001.png", "0003.png"]
    assert "not there any more" in page.press("drop-photo", "../../jobs.db")


def test_what_is_missing_is_said_beside_the_button(page: Page) -> None:
    begun(page)
    assert "Say what it is." in page.press("train", fields={"subject": ""})
    assert "no number" in page.press("train", fields={"subject": "dog", "set:steps": "many"})
    assert page.studio.trainings.runs.names() == []
    # Photos whose last one has just come take nothing of it away.
    assert "no number" in page.press("brought", value="")
    assert "too large" in page.press("brought", value="It is too large.")


def test_a_word_that_means_something_is_warned_of(page: Page) -> None:
    begun(page)
    assert "means something" not in page.press("set", fields={"subject": "dog"})
    for word in ("sks", "zwx", "qvk xjy"):
        assert "means something" not in page.press("set", fields={"word": word}), word
    for word in ("cat", "Dog", "the"):
        assert f"“{word}” means something to this model" in page.press("set", fields={"word": word})


def test_a_training_is_begun_and_shown(page: Page, studio: FakeStudio) -> None:
    studio.pause_jobs()
    begun(page)
    shown = page.press("train", fields={"subject": "dog", "name": "my-dog"})
    assert page.visit.looking == "run:my-dog"
    assert "It waits for its turn" in shown
    assert 'data-do="pause"' in shown
    assert "my-dog" in page.shown["train-runs"]
    assert (studio.settings.runs / "my-dog" / "photos" / "0003.png").is_file()
    assert (studio.settings.runs / "my-dog" / ORDER).is_file()
    shown = page.press("pause", "my-dog")
    assert "It has not begun to learn yet." in shown
    assert "nothing yet that could be kept" in page.press("keep", "my-dog")
    assert "way back" in page.press("ask-remove", "my-dog")
    page.press("remove", "my-dog")
    assert studio.trainings.runs.names() == []


def test_on_a_borrowed_gpu_nothing_is_trained(
    page: Page, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.pause_jobs()
    begun(page)
    page.press("train", fields={"subject": "dog", "name": "my-dog"})
    page.press("pause", "my-dog")
    monkeypatch.setattr(hosting, "zero_gpu", lambda: SimpleNamespace())
    for do in ("resume", "keep", "longer"):
        assert "lends its GPU for single pictures only" in page.press(do, "my-dog")
    page.press("new")
    begun(page, "style", 1)
    assert "lends its GPU for single pictures only" in page.press("train", fields={"name": "x"})
    assert studio.trainings.runs.names() == ["my-dog"]
    assert not any(job.active for job in studio.jobs(None))


def test_words_of_any_script_stay_in_their_place(page: Page) -> None:
    key = begun(page)
    typed = "\u202e\N{DOG FACE}\u200d\N{DOG FACE} \u05db\u05dc\u05d1\n<i>\u2066"
    shown = page.press("set", fields={"subject": typed})
    made = page.studio.trainings.preparations.get(key)
    assert made.subject == "\N{DOG FACE}\u200d\N{DOG FACE} \u05db\u05dc\u05d1 <i>"
    assert "<i>" not in shown
    assert "<i>" not in page.shown["train-runs"].replace('<i class="run-bar">', "")


def run(studio: FakeStudio, **more: Any) -> Path:
    """A run of the command line with a curve."""
    folder = studio.settings.runs / "my-dog" / "01-dreambooth"
    (folder / "previews").mkdir(parents=True)
    (folder / "config.json").write_bytes(config())
    for number in (0, 100):
        (folder / "previews" / f"step-{number:08d}.png").write_bytes(photo())
    write(folder, *(step(n, 1 / n) for n in range(20, 120, 20)))
    return folder


def test_a_run_shows_its_curve_and_its_samples(page: Page, studio: FakeStudio) -> None:
    run(studio)
    shown = page.press("show", "run:my-dog")
    assert shown.count("<polyline") == 2
    assert "[20,0.05,0.05,null]" in shown
    assert "studio/runs/my-dog/01-dreambooth/0" in shown
    assert "Before" in shown
    assert "a photo of sks dog on a beach" in shown
    # A loss that has run away leaves the page in its place.
    write(studio.settings.runs / "my-dog" / "01-dreambooth", step(120, 1e30))
    assert "Loss <b>1e+30</b>" in page.press("show", "run:my-dog")
    # What only the page begins, only the page goes on with.
    assert 'data-do="resume"' not in shown


@pytest.mark.parametrize(
    "data",
    [
        {"do": "show", "name": "run:../../etc"},
        {"do": "show", "name": "new:../../etc"},
        {"do": "show", "name": "x" * 100_000},
        {"do": ["train"], "name": {"a": 1}},
        {"do": "remove", "name": "../outputs"},
        {"do": "longer", "name": "my-dog", "fields": {"longer": "1e9"}},
        {"do": "try", "name": "no-such-run"},
        {"do": "publish-checkpoint", "name": "my-dog", "fields": {"checkpoint": "-1"}},
        {"do": "set", "fields": [1, 2]},
        {"do": "train", "fields": {"subject": 5, "caption:0001.png": "x" * 10_000}},
    ],
)
def test_a_hostile_press_changes_nothing(
    page: Page, studio: FakeStudio, data: dict[str, Any]
) -> None:
    run(studio)
    key = begun(page)
    before = studio.trainings.preparations.get(key)
    page.press("show", "run:my-dog")
    page.press(data.pop("do"), data.pop("name", ""), **data)
    assert studio.trainings.runs.names() == ["my-dog"]
    assert studio.trainings.preparations.get(key) == before


def test_visitors_see_and_touch_nothing(page: Page, studio: FakeStudio) -> None:
    run(studio)
    key = begun(page)
    visitor = Page(studio)
    shown = visitor.open(ELSEWHERE)
    assert "Models are trained on the computer that the studio runs on." in shown
    assert visitor.shown["train-runs"] == ""
    for do, name in (("show", "run:my-dog"), ("begin", "style"), ("show", f"new:{key}")):
        assert "my-dog" not in visitor.press(do, name, request=ELSEWHERE)
    visitor.visit.looking = f"new:{key}"
    visitor.press("discard", key, request=ELSEWHERE)
    assert studio.trainings.preparations.get(key)


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> FakeStudio:
    return FakeStudio(tmp_path_factory.mktemp("photos"), steps=2, pace=0.01)


@pytest.fixture(scope="module")
def http(outside: FakeStudio) -> Iterator[httpx.Client]:
    with served(outside) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


VISITOR = {"X-Forwarded-For": "203.0.113.7"}


def test_photos_come_and_are_seen(http: httpx.Client, outside: FakeStudio) -> None:
    key = outside.trainings.preparations.new("subject").id
    address = f"/studio/trainings/{key}"
    assert http.post(address, params={"name": "a/dog.png"}, content=photo()).status_code == 204
    answer = http.get(f"{address}/0001.png")
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(BytesIO(answer.content)) as seen:
        assert seen.size == (96, 64)
    refused = http.post(address, params={"name": "film.mp4"}, content=b"\0" * 100)
    assert (refused.status_code, len(outside.trainings.preparations.get(key).photos)) in (
        (204, 1),
        (415, 1),
    )
    assert http.get(f"{address}/0002.png").status_code == 404
    assert http.get(f"{address}/..%2f..%2fjobs.db").status_code == 404
    assert http.post("/studio/trainings/0123456789ab", content=photo()).status_code == 415
    left = [file for file in outside.settings.uploads.rglob("*") if file.is_file()]
    assert left == []


def test_what_is_too_much_is_refused(
    http: httpx.Client, outside: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = outside.trainings.preparations.new("subject").id
    monkeypatch.setattr(bodies, "MAX_BROUGHT", 10_000)
    answer = http.post(f"/studio/trainings/{key}", content=b"\0" * 30_000)
    assert answer.status_code == 413
    pieces = iter([b"\0" * 9000] * 4)
    assert http.post(f"/studio/trainings/{key}", content=pieces).status_code == 413
    assert outside.trainings.preparations.get(key).photos == ()


def test_visitors_bring_and_fetch_nothing(http: httpx.Client, outside: FakeStudio) -> None:
    prepared = outside.trainings.preparations
    key = prepared.new("subject").id
    address = f"/studio/trainings/{key}"
    assert http.post(address, content=photo()).status_code == 204
    run(outside)
    sheet = "/studio/runs/my-dog/01-dreambooth/100"
    assert http.get(sheet).content == photo()
    for path in (f"{address}/0001.png", sheet):
        assert http.get(path, headers=VISITOR).status_code == 404
    assert http.post(address, content=photo(9), headers=VISITOR).status_code == 403
    assert len(prepared.get(key).photos) == 1
