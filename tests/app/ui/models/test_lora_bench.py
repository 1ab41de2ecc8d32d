"""Selected LoRAs on the Models tab: merged, made smaller, compared, baked, asked about twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.jobs import table
from app.jobs.lora_works import LORA_WORK
from app.models import lora_orders, lora_process
from app.models.lora_orders import LoraOrder, LoraOutcome
from app.models.lora_work_jobs import LoraWorkJob
from app.settings import Settings
from app.ui.models.lora_bench import LoraBench
from app.ui.models.lora_cards import ASKED
from lora_manager import algebra, card, files
from pipelines.errors import BusyError, RequestError, StudioError
from pipelines.progress import Progress, Report, ShouldStop, Stage
from tests import tiny
from tests.app.ui.fake_studio import ELSEWHERE, FakeStudio
from tests.app.ui.models.test_models_tab import Page
from tests.small_loras import lora


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    for seed, name in enumerate(("ink", "gold", "oil")):
        lora(tmp_path / "loras" / f"{name}.safetensors", seed)
    lora(tmp_path / "loras" / "wide.safetensors", 9, wide=96)
    tiny.build(tmp_path / "models" / "tiny")
    with FakeStudio(tmp_path, steps=2, pace=0) as fake:
        yield fake


@pytest.fixture
def page(studio: FakeStudio) -> Page:
    page = Page(studio)
    page.open()
    return page


class FakeWork:
    """Work that ends when it may."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[LoraOrder] = []
        self.outcome = LoraOutcome(name="both", rank=8)

    def __call__(
        self, order: LoraOrder, settings: Settings, *, report: Report, should_stop: ShouldStop
    ) -> LoraOutcome | None:
        self.seen.append(order)
        report(Progress(stage=Stage.BAKING, done=3, total=12))
        while not self.go.wait(0.01):
            if should_stop():
                return None
        return self.outcome


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> FakeWork:
    fake = FakeWork()
    monkeypatch.setattr(lora_process, "run", fake)
    return fake


def pick(page: Page, *names: str, **typed: str) -> str:
    for name in names:
        page.press("pick", ASKED + name, typed=typed)
    return str(page.shown["lora-bench"])


def settled(page: Page) -> LoraWorkJob:
    """The last piece of work, once it has ended and is shown."""
    end = time.monotonic() + 120
    while (job := page.studio.lora_work.job) is None or job.active:
        assert time.monotonic() < end
        time.sleep(0.01)
    page.press("keep")
    return job


def test_what_can_be_done_follows_the_selection(page: Page) -> None:
    assert page.shown["lora-bench"] == ""
    assert page.shown["lora-shelf"].count('aria-pressed="false"') == 4
    one = pick(page, "ink")
    assert page.shown["lora-shelf"].count('aria-pressed="true"') == 1
    assert "1 LoRA selected" in one
    assert [f'data-do="bench-{do}"' in one for do in ("merge", "resize", "compare", "bake")] == [
        *(False, True, False, True),
    ]
    two = pick(page, "gold")
    assert [f'data-do="bench-{do}"' in two for do in ("merge", "resize", "compare", "bake")] == [
        *(True, False, True, True),
    ]
    three = pick(page, "oil")
    assert 'data-do="bench-compare"' not in three
    assert "3 LoRAs selected" in three
    assert "1 LoRA selected" in pick(page, "ink", "gold")
    page.press("bench-clear")
    assert page.shown["lora-bench"] == ""


@pytest.mark.usefixtures("warm_children")
def test_two_are_merged_exactly_and_to_a_rank(page: Page) -> None:
    library = page.studio.catalog.loras
    pick(page, "ink", "gold")
    page.press("bench-merge")
    assert "nothing is lost: rank 8 or less" in page.shown["lora-bench"]
    typed = {"weight:ink": "0.5", "weight:gold": "-1", "name": "both", "rank": ""}
    page.press("bench-go", typed=typed)
    assert settled(page).error is None
    shown = page.shown["lora-bench"]
    assert "“both” is here, with the rank 8; nothing is lost." in shown
    assert "LoRAs selected" not in shown
    assert 'data-name="lora:both"' in page.shown["lora-shelf"]
    parts = [(n, files.read(library.find(n).file), w) for n, w in (("ink", 0.5), ("gold", -1.0))]
    wanted = algebra.merged(parts)
    found = algebra.compared(wanted, files.read(library.find("both").file))
    assert found.total.difference < 1e-6

    pick(page, "ink", "gold")
    page.press("bench-merge")
    page.press("bench-go", typed=typed | {"name": "both4", "rank": "4"})
    outcome = settled(page).outcome
    assert outcome is not None
    measured = algebra.compared(wanted, files.read(library.find("both4").file))
    assert outcome.error == pytest.approx(measured.total.difference, abs=1e-6)
    assert (
        f"with the rank 4; {100 * outcome.error:.3g} % of the change is lost."
        in (page.shown["lora-bench"])
    )
    page.press("bench-close")
    assert page.shown["lora-bench"] == ""


@pytest.mark.usefixtures("warm_children")
def test_what_a_smaller_rank_loses_is_said_before_and_after(page: Page) -> None:
    pick(page, "ink")
    page.press("bench-resize")
    page.press("bench-losses", typed={"name": "small", "rank": "2"})
    told = settled(page).outcome
    assert told is not None
    assert [rank for rank, _ in told.losses] == [2, 1]
    shown = page.shown["lora-bench"]
    # The form stays as it was typed.
    assert 'value="small"' in shown
    for rank, lost in told.losses:
        assert f'<th scope="row">{rank}</th><td>{100 * lost:.3g} %</td>' in shown
    page.press("bench-go", typed={"name": "small", "rank": "2"})
    after = settled(page).outcome
    assert after is not None
    assert after.error == pytest.approx(dict(told.losses)[2], abs=1e-9)
    assert page.studio.catalog.loras.find("small").rank == 2


@pytest.mark.usefixtures("warm_children")
def test_two_are_compared(page: Page) -> None:
    library = page.studio.catalog.loras
    pick(page, "ink", "gold")
    page.press("bench-compare")
    settled(page)
    found = algebra.compared(*(files.read(library.find(n).file) for n in ("ink", "gold")))
    shown = page.shown["lora-bench"]
    assert f"27 layers that both change they are {100 * found.total.difference:.3g} % apart" in (
        shown
    )
    assert f"cosine {found.total.cosine:.3f}." in shown
    assert shown.count('<th scope="row">') == 27
    assert "2 LoRAs selected" in shown


@pytest.mark.usefixtures("warm_children")
def test_a_model_is_baked_and_can_be_used(page: Page) -> None:
    shown = pick(page, "ink")
    page.press("bench-bake")
    shown = page.shown["lora-bench"]
    assert 'value="tiny"' in shown
    assert 'value="nano"' not in shown, "its layers are of another width"
    typed = {"weight:ink": "0,7", "name": "inked", "model": "tiny", "title": "Inked"}
    page.press("bench-go", typed=typed)
    assert settled(page).error is None
    assert "“Inked” is here." in page.shown["lora-bench"]
    assert 'data-do="use" data-name="inked"' in page.shown["lora-bench"]
    assert 'data-model="inked"' in page.shown["shelf"]
    assert page.studio.model("inked").title == "Inked"
    assert page.press("use", "inked")["model"]["value"] == "inked"


def test_weights_far_from_1_are_pressed_for_twice(page: Page, work: FakeWork) -> None:
    work.go.set()
    pick(page, "ink", "gold")
    page.press("bench-merge")
    typed = {"weight:ink": "3", "weight:gold": "1", "name": "far"}
    page.press("bench-go", typed=typed)
    assert "ink:3 is beyond -2 to 2" in page.shown["lora-bench"]
    assert "Press Merge again to do it all the same." in page.shown["lora-bench"]
    assert work.seen == []
    # Another weight is another question.
    page.press("bench-go", typed=typed | {"weight:gold": "-2.5"})
    assert "ink:3, gold:-2.5 are beyond" in page.shown["lora-bench"]
    assert work.seen == []
    page.press("bench-go", typed=typed | {"weight:gold": "-2.5"})
    assert [one.name for one in work.seen] == ["far"]
    settled(page)
    # What was confirmed once is asked about again the next time.
    pick(page, "ink", "gold")
    page.press("bench-merge")
    page.press("bench-go", typed=typed)
    assert "Press Merge again" in page.shown["lora-bench"]
    assert len(work.seen) == 1


def test_work_is_followed_and_stopped_and_one_at_a_time(page: Page, work: FakeWork) -> None:
    pick(page, "ink")
    page.press("bench-bake")
    page.press("bench-go", typed={"name": "x", "model": "tiny"})
    end = time.monotonic() + 60
    while (job := page.studio.lora_work.job) is None or job.progress is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    page.press("keep")
    shown = page.shown["lora-bench"]
    assert "Bake ink into tiny" in shown
    assert "Baking the transformer, 3 of 12" in shown
    assert 'aria-valuenow="25"' in shown
    with pytest.raises(BusyError, match="is not done yet"):
        page.studio.lora_work.start(job.order)
    page.press("bench-close")
    assert page.studio.lora_work.job is not None, "what runs is not forgotten"
    page.press("bench-stop")
    while page.studio.lora_work.job is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
    page.press("keep")
    assert page.shown["lora-bench"] == ""
    assert not (page.studio.settings.models / "x").exists()


@pytest.mark.parametrize(
    ("picked", "verb", "typed", "said"),
    [
        (("ink", "gold"), "merge", {"name": ""}, "It has no name yet."),
        (("ink", "gold"), "merge", {"name": "Ink"}, "There is a LoRA called “ink”."),
        (("ink", "gold"), "merge", {"name": "../x"}, "no name of a LoRA"),
        (("ink", "gold"), "merge", {"name": "x", "rank": "-1"}, "“-1” is no rank."),
        (("ink", "gold"), "merge", {"name": "x", "rank": "1e3"}, "“1e3” is no rank."),
        (("ink", "gold"), "merge", {"name": "x", "rank": "99999"}, "cannot have the rank 99999"),
        (("ink", "gold"), "merge", {"name": "x", "weight:ink": "9"}, "from -4 to 4"),
        (("ink", "gold"), "merge", {"name": "x", "weight:ink": "nan"}, "which is no number"),
        (("ink", "gold"), "merge", {"name": "x", "weight:ink": "1, b"}, "which is no number"),
        (("ink",), "resize", {"name": "x"}, "It has no rank yet."),
        (("ink",), "resize", {"name": "x", "rank": "4"}, "would not become smaller"),
        (("ink",), "bake", {"name": "tiny", "model": "tiny"}, "Give another id."),
        (("ink",), "bake", {"name": "x", "model": "nano"}, "was made for layers that are 48 wide"),
        (("ink",), "bake", {"name": "x", "model": "lost"}, "There is no model called “lost”"),
        (("ink",), "bake", {"name": "x", "model": "tiny", "weight:ink": "0"}, "No LoRA has a"),
        (("wide",), "bake", {"name": "x", "model": "tiny"}, "made for layers that are 96 wide"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    picked: tuple[str, ...], verb: str, typed: dict[str, str], said: str, page: Page, work: FakeWork
) -> None:
    pick(page, *picked)
    page.press(f"bench-{verb}")
    page.press("bench-go", typed=typed)
    shown = page.shown["lora-bench"]
    assert said in shown
    assert 'role="alert"' in shown
    assert "--" not in shown.partition('role="alert"')[2].partition("</p>")[0]
    assert work.seen == []
    # What was typed is still there.
    assert f'data-field="name" value="{typed["name"]}"' in shown


@pytest.mark.usefixtures("warm_children")
def test_a_failure_says_why_and_leaves_nothing(page: Page) -> None:
    pick(page, "ink", "wide")
    page.press("bench-merge")
    page.press("bench-go", typed={"name": "x"})
    assert settled(page).error is not None
    assert "were made for models of other sizes" in page.shown["lora-bench"]
    names = sorted(path.name for path in page.studio.settings.loras.iterdir())
    assert [name for name in names if not name.startswith(".")] == [
        *("gold.safetensors", "ink.safetensors", "oil.safetensors", "wide.safetensors"),
    ]


@pytest.mark.parametrize(
    "typed",
    [
        None,
        7,
        ["name"],
        {"name": 7, "rank": None, "model": ["tiny"]},
        {7: "x", "name": "x" * 10_000},
        {f"weight:{n}": "1" for n in range(5000)},
        {"__class__": "x", "verb": "bake", "name": "\ud800\x00<script>"},
    ],
)
def test_hostile_fields_change_nothing(typed: Any, page: Page, work: FakeWork) -> None:
    pick(page, "ink", "gold")
    page.press("bench-merge")
    page.press("bench-go", typed=typed)
    assert work.seen == []
    assert "<script>" not in page.shown["lora-bench"]
    assert len(page.visit.bench.typed) < 50
    for do in ("bench-", "bench-go-on", "bench-__init__", "pick"):
        page.press(do, "../../x", typed=typed)
    assert page.visit.bench.picked == ("ink", "gold")


def test_no_more_than_can_be_used_together_are_selected(page: Page, tmp_path: Path) -> None:
    names = [f"l{n}" for n in range(card.MAX_USES + 1)]
    for name in names:
        lora(tmp_path / "loras" / f"{name}.safetensors")
    shown = pick(page, *names)
    assert f"At most {card.MAX_USES} LoRAs can be used together." in shown
    assert f"{card.MAX_USES} LoRAs selected" in shown
    # One that is removed meanwhile is selected no more.
    page.studio.remove_lora("l0")
    page.press("keep")
    assert f"{card.MAX_USES - 1} LoRAs selected" in page.shown["lora-bench"]


def test_visitors_select_nothing(studio: FakeStudio, work: FakeWork) -> None:
    page = Page(studio)
    assert 'data-do="pick"' not in str(page.open(ELSEWHERE)["lora-shelf"])
    for do in ("pick", "bench-merge", "bench-go", "bench-stop"):
        page.press(do, f"{ASKED}ink", ELSEWHERE, {"name": "x"})
    assert "on the computer that the studio runs on" in page.shown["shelf"]
    assert page.shown.get("lora-bench", "") == ""
    assert page.visit.bench == LoraBench()
    assert work.seen == []


# --- the job itself


def order(**changes: Any) -> LoraOrder:
    values: dict[str, Any] = {"verb": "merge", "uses": card.parse("ink:0.3, gold"), "name": "both"}
    return LoraOrder(**values | changes)


@pytest.mark.parametrize(
    "one",
    [
        order(),
        order(rank=4),
        order(verb="bake", model="tiny", title="T", name="x", precision="fp16"),
        order(verb="losses", uses=card.parse("ink"), name=""),
    ],
)
def test_an_order_survives_the_database(one: LoraOrder) -> None:
    assert lora_orders.of_json(one.to_json()) == one
    kind = next(k for k in table.kinds(Settings(workspace=Path("/x"))) if k.name == LORA_WORK)
    assert kind.read(kind.write(one)) == one


@pytest.mark.parametrize(
    "changes",
    [
        {"verb": "rm"},
        {"verb": ["merge"]},
        {"uses": "../x"},
        {"uses": "ink:99"},
        {"uses": 7},
        {"uses": ""},
        {"uses": "a,b,c", "verb": "compare"},
        {"rank": 0},
        {"rank": 1.5},
        {"rank": True},
        {"name": "x" * 81},
        {"model": None},
        {"title": "x" * 9000},
    ],
)
def test_an_order_of_anybody_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(StudioError):
        lora_orders.of_json(order().to_json() | changes)
    strange: tuple[Any, ...] = (None, [], "merge")
    for payload in strange:
        with pytest.raises(RequestError):
            lora_orders.of_json(payload)
