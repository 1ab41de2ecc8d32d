"""The Models tab: what its cards say, what its buttons do, and who may press them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.hardware import Hardware
from app.models.download_jobs import FileState, ModelJob
from app.models.store import ModelRow
from app.painting.worker import EngineState
from app.tokens import AccessTokens
from app.ui import choices
from app.ui.build import build
from app.ui.create import fields
from app.ui.create.watch import BrowserSession
from app.ui.guards import access
from app.ui.models import cards
from app.ui.models.cards import Shelf
from app.ui.models.handlers import Visit
from pipelines.memory.planning import Machine
from tests import sparse
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio, served
from tests.fake_hub import FakeHub
from tests.hub.conftest import _clean, hub  # noqa: F401

MODEL = "alpha-1024"


@pytest.fixture
def studio(tmp_path: Path, hub: FakeHub) -> Iterator[FakeStudio]:  # noqa: F811
    with FakeStudio(tmp_path / "workspace", steps=2, pace=0.01) as fake:
        yield fake


class Page:
    """The handlers of the tab, and what they answered last, by elem_id."""

    def __init__(self, studio: FakeStudio) -> None:
        self.studio, self.visit, self.browser = studio, Visit(), BrowserSession()
        self.demo = build(studio)
        self.shown: dict[str, Any] = {}

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        found: list[Any] = [f for f in self.demo.fns.values() if f.api_name == name]
        answer = found[0].fn(*arguments)
        if not isinstance(answer, dict) or "__type__" in answer:
            return {}
        told = {str(k.elem_id or type(k).__name__): v for k, v in answer.items()}
        self.shown |= told
        return told

    def open(self, request: Any = HERE) -> dict[str, Any]:
        return self.call("open_models", self.visit, "nano", request)

    def press(
        self, do: str, name: str = MODEL, request: Any = HERE, typed: Any = None
    ) -> dict[str, Any]:
        form = fields.first(self.studio)
        event = SimpleNamespace(_data={"do": do, "name": name, "typed": typed})
        raw = [form[field] for field in fields.FIELDS]
        return self.call("act_models", self.visit, request, event, *raw)

    def settle(self) -> str:
        """The shelf after the thread has ended."""
        end = time.monotonic() + 120
        while (job := self.studio.models.job) is not None and job.active:
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.01)
        self.call("tick_models", self.visit, "nano", HERE)
        return str(self.shown["shelf"])


@pytest.fixture
def page(studio: FakeStudio) -> Page:
    return Page(studio)


def card(shelf: str, model: str = MODEL) -> str:
    return shelf.partition(f'data-model="{model}"')[2].partition("</li><li class=")[0]


def test_nothing_is_drawn_before_the_tab_is_opened(page: Page) -> None:
    shown = [c for c in page.demo.get_config_file()["components"] if c["type"] == "html"]
    values = {c["props"].get("elem_id"): c["props"].get("value") for c in shown}
    assert values["shelf"] == values["hardware"] == ""


def test_every_model_has_a_card(page: Page) -> None:
    shelf = str(page.open()["shelf"])
    assert "In use" in card(shelf, "nano")
    assert "about 21.8 GB" in card(shelf)
    assert "openrail++" in card(shelf)
    assert 'data-do="ask"' in card(shelf)
    assert shelf.count('class="model-card"') == len(page.studio.models.rows())
    assert page.call("tick_models", page.visit, "nano", HERE).keys() <= {"hardware"}


def test_files_of_other_programs_are_shown_to_whoever_sits_here(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfy = tmp_path / "Comfy <UI>"
    t5 = comfy / "models" / "text_encoders" / "t5xxl_fp16.safetensors"
    sparse.write(t5, sparse.t5_xxl())
    monkeypatch.setenv("PIXART_STUDIO_MODEL_FOLDERS", str(comfy))
    shelf = str(page.open()["shelf"])
    assert "T5-XXL text encoder (9.5 GB) in " in shelf
    assert f"TRANSFORMER --text &#34;{escape(str(t5))}&#34;" in shelf
    assert "<UI>" not in shelf
    assert "text_encoders" not in str(page.open(ELSEWHERE)["shelf"])


def test_ask_download_use_remove(page: Page) -> None:
    page.open()
    page.press("ask")
    asked = card(page.settle())
    job = page.studio.models.job
    assert job is not None
    assert f"{job.left:,} bytes" in asked
    assert str(page.studio.settings.models / "hub") in asked
    assert "Free on the disk" in asked
    assert "<dt>Memory</dt>" in asked
    page.press("download")
    done = card(page.settle())
    assert 'data-do="use"' in done
    assert page.press("use")["model"]["value"] == MODEL
    assert page.shown["rail"].selected == "create"
    page.press("ask-remove")
    assert "Delete its transformer" in card(page.shown["shelf"])
    assert "What other models read, your own too, stays." in card(page.shown["shelf"])
    page.press("keep")
    assert 'data-do="ask-remove"' in card(page.shown["shelf"])
    page.press("ask-remove")
    page.press("remove")
    assert "are free again" in page.shown["shelf"]
    assert 'data-do="ask"' in card(page.shown["shelf"])


@pytest.mark.parametrize("do", ["ask", "repair", "download", "stop", "ask-remove", "remove"])
def test_visitors_change_nothing(page: Page, do: str) -> None:
    shelf = str(page.open(ELSEWHERE)["shelf"])
    assert 'data-do="ask"' not in shelf
    page.press(do, request=ELSEWHERE)
    assert "on the computer that the studio runs on" in page.shown["shelf"]
    assert page.studio.models.job is None
    assert not page.studio.settings.models.exists()


def test_a_visitor_sees_no_question_and_no_folder(page: Page) -> None:
    page.open()
    page.press("ask")
    page.settle()
    visitor = Page(page.studio)
    shelf = str(visitor.open(ELSEWHERE)["shelf"])
    assert str(page.studio.settings.models) not in shelf
    visitor.press("download", request=ELSEWHERE)
    job = page.studio.models.job
    assert job is not None
    assert job.phase == "asked"


@pytest.mark.parametrize(
    ("client", "headers", "space", "may"),
    [
        ("127.0.0.1", {}, False, True),
        ("::1", {}, False, True),
        ("::ffff:127.0.0.1", {}, False, True),
        ("192.0.2.7", {}, False, False),
        (None, {}, False, False),
        ("testclient", {}, False, False),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, False, False),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7"}, False, False),
        ("127.0.0.1", {}, True, False),
    ],
)
def test_who_is_at_the_computer(
    client: str | None,
    headers: dict[str, str],
    space: bool,
    may: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    if space:
        monkeypatch.setenv("SPACE_ID", "somebody/studio")
    assert access.is_at_the_computer(client, headers) is may


def test_programs_of_visitors_cannot_start_downloads(studio: FakeStudio) -> None:
    form = list(fields.first(studio).values())
    tokens = AccessTokens(share="token-of-visitors", admin="token-of-the-owner")
    with (
        served(studio, tokens=tokens) as address,
        httpx.Client(base_url=address, timeout=30) as http,
    ):
        visitor, owner = (
            {"Authorization": f"Bearer {one}"} for one in (tokens.share, tokens.admin)
        )
        config = http.get("/config", headers=visitor).json()
        found = next(d for d in config["dependencies"] if d["api_name"] == "act_models")
        body = {
            "data": [None, *form],
            "event_data": {"do": "ask", "name": MODEL},
            "fn_index": found["id"],
            "session_hash": "program",
        }

        def post(headers: dict[str, str]) -> int:
            return http.post("/gradio_api/run/predict", json=body, headers=headers).status_code

        assert post({}) == 401
        # From this machine, as through a tunnel that adds no header: a visitor all the same.
        assert post(visitor) == 200
        assert post(visitor | {"X-Forwarded-For": "192.0.2.7"}) == 200
        assert studio.models.job is None
        assert post(owner) == 200
        # The same call does it now: what was refused above is the visitor.
        assert studio.models.job is not None


def view(job: ModelJob | None = None, **changes: Any) -> Shelf:
    row = ModelRow(
        id=MODEL,
        title="A <b>model</b>",
        licence="openrail++",
        state="known",
        kind="model",
        size=10**9,
        left=10**9,
        exact=True,
        summary="Good at <i>cats</i>.",
    )
    values: dict[str, Any] = {
        "rows": [row],
        "job": job,
        "usable": frozenset(),
        "chosen": "",
        "admin": True,
    }
    return Shelf(**{**values, "folder": "/models", "free": 10**12, **changes})


def test_paths_of_models_that_cannot_be_used_are_for_the_owner_alone(studio: FakeStudio) -> None:
    broken = studio.settings.models / "broken"
    broken.mkdir(parents=True)
    (broken / "model.toml").write_text("nothing = true\n")
    studio.catalog.reload()
    assert any("broken" in text for text in studio.catalog.problems), studio.catalog.problems
    for request, told in ((HERE, True), (ELSEWHERE, False)):
        shelf = str(Page(studio).open(request)["shelf"])
        assert ("broken" in shelf) is told
    assert "broken" not in choices.model_select(studio.catalog, studio.model("nano"))


def test_names_of_models_are_no_markup() -> None:
    shelf = cards.shelf(view(problems=["<script>"]))
    assert "<b>" not in shelf
    assert "<i>cats" not in shelf
    assert "<script>" not in shelf


def test_progress_says_files_speed_and_time() -> None:
    job = ModelJob(
        model=MODEL,
        phase="downloading",
        files=(
            FileState(path="config.json", size=500, done=500),
            FileState(path="transformer/model.safetensors", size=10**9, done=25 * 10**7),
        ),
        total=10**9 + 500,
        done=25 * 10**7 + 500,
        speed=2e6,
        seconds_left=375.0,
    )
    shelf = cards.shelf(view(job))
    assert "250 MB of 1.0 GB, 2.0 MB/s, about 6 min 15 s left" in shelf
    assert 'aria-valuenow="25"' in shelf
    assert "transformer/model.safetensors" in shelf
    assert "1 small files" not in shelf
    assert 'data-do="stop"' in shelf
    assert 'data-do="stop"' not in cards.shelf(view(job, admin=False))


def test_a_full_disk_is_said_before_the_download() -> None:
    job = ModelJob(model=MODEL, phase="asked", left=10**9, total=10**9)
    shelf = cards.shelf(view(job, free=10**8))
    assert "too little room" in shelf
    assert 'data-do="download" data-name="alpha-1024" disabled' in shelf


def test_a_conversion_is_said_before_and_while() -> None:
    asked = ModelJob(model=MODEL, phase="asked", left=10**9, total=10**9, spare=9 * 10**8)
    shelf = cards.shelf(view(asked))
    assert "converted; 900 MB more until that is done" in shelf
    # The download would fit, the conversion would not.
    assert "too little room" in cards.shelf(view(asked, free=15 * 10**8))
    again = ModelJob(model=MODEL, phase="asked", total=10**9, spare=9 * 10**8)
    assert "Convert it, nothing to fetch" in cards.shelf(view(again))
    now = ModelJob(
        model=MODEL,
        phase="downloading",
        converting=True,
        done=3 * 10**8,
        total=9 * 10**8,
        seconds_left=9,
    )
    shelf = cards.shelf(view(now))
    assert "Converting to diffusers&#39; layout, 300 MB of 900 MB, about 9 s left" in shelf
    assert 'data-do="stop"' in shelf


def test_a_failure_can_be_tried_again() -> None:
    job = ModelJob(model=MODEL, phase="failed", error="The hub does not answer.")
    shelf = cards.shelf(view(job))
    assert "The hub does not answer." in shelf
    assert "Try again" in shelf


def test_the_card_of_the_computer() -> None:
    gpu = Machine(
        device="cuda", name="NVIDIA X", bf16=True, vram_total=24 * 10**9, vram_free=20 * 10**9
    )
    found = Hardware(machine=gpu, ram_total=32 * 10**9, ram_free=16 * 10**9, disk_free=10**12)
    html = cards.hardware(found, "PixArt nano", "128x128", "needs 0.2 GB, 20.0 GB are free")
    assert "NVIDIA X" in html
    assert "20.0 GB of 24.0 GB free" in html
    assert "16.0 GB of 32.0 GB free" in html
    assert "PixArt nano at 128 × 128 px needs 0.2 GB, 20.0 GB are free." in html
    unknown = cards.hardware(
        Hardware(machine=None, ram_total=0, ram_free=0, disk_free=0), "PixArt nano", "128x128", ""
    )
    assert "Not known yet" in unknown


def test_the_plan_follows_the_chosen_model(page: Page) -> None:
    assert "PixArt nano at 128 × 128 px needs 0.2 GB" in str(page.open()["hardware"])


def tick(page: Page, **values: Any) -> dict[str, Any]:
    form = fields.first(page.studio) | values
    raw = [form[name] for name in fields.FIELDS]
    return page.call("tick", page.browser, "owner-0123456789abcdef", *raw)


def test_the_forecast_follows_size_and_guidance(page: Page) -> None:
    assert "Needs 0.2 GB, 11.2 GB are free" in tick(page)["forecast"]
    assert "forecast" not in tick(page), "nothing new is not sent"
    large = page.call("reforecast", "nano", "dpm-solver++", 4.5, "256x256", False)
    assert large == {}, "a plain value"
    handler = next(f for f in page.demo.fns.values() if f.api_name == "reforecast").fn
    assert handler is not None
    assert "Needs" in handler("nano", "dpm-solver++", 4.5, "256x256", False)
    for model, size in (("nobody", "128x128"), ("nano", "wide"), ("nano", None)):
        assert handler(model, "dpm-solver++", 4.5, size, False) == '<p class="forecast"></p>'


def test_there_is_no_forecast_before_the_engine_has_told(page: Page) -> None:
    page.studio.runner.state = EngineState()
    assert tick(page)["forecast"] == '<p class="forecast"></p>'


def test_the_picker_follows_downloads_and_removals(page: Page) -> None:
    page.call("open", page.browser, "owner-0123456789abcdef", None)
    assert "model" not in tick(page)
    page.open()
    page.press("ask")
    page.settle()
    page.press("download")
    page.settle()
    assert f'value="{MODEL}"' in tick(page)["model"]["markup"]
    assert "model" not in tick(page)
    page.press("remove")
    gone = tick(page, model=MODEL)
    assert gone["model"]["value"] == "nano"
    assert gone["size"]["value"] == "128x128"
    assert MODEL not in gone["model"]["markup"]
