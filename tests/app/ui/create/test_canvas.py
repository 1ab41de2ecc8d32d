"""The HTML that the page is made of: what it says, and that nothing typed becomes markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gallery.pictures import PictureFile
from app.jobs.job import Job, JobState
from app.painting.worker import EngineState
from app.ui.create import canvas
from app.ui.create.canvas import Notice
from pipelines.errors import StudioError
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest
from pipelines.text.tokens import Tokens

HOSTILE = "<script>alert(1)</script>\" onload='x' &amp; ${7*7} {{x}} `"
READY = EngineState(phase="ready", device="CPU")


def request(count: int = 1, prompt: str = "a red apple") -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt,
        model="nano",
        sampler="dpm-solver++",
        steps=20,
        guidance=4.5,
        width=128,
        height=128,
        seed=7,
        count=count,
    )


def job(state: JobState, *, count: int = 1, done: int = 0, prompt: str = "a red apple") -> Job:
    wish = request(count, prompt)
    files = tuple(
        PictureFile(
            path=Path(f"/x/2026-01-02/101530-{i}-a1b2c3.png"), request=wish.single(i), seconds=1
        )
        for i in range(done)
    )
    return Job(id="j", owner="o", payload=wish, state=state, pictures=files)


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    return Tags(html).tags


def test_without_a_job_the_canvas_invites() -> None:
    assert "Your pictures appear here" in canvas.canvas(None, "")


def test_preview_and_result_have_the_same_nodes() -> None:
    progress = Progress(stage=Stage.DENOISING, done=3, total=20, preview=b"jpeg")
    live = canvas.canvas(replace(job(JobState.RUNNING), progress=progress), "")
    done = canvas.canvas(job(JobState.DONE, done=1), "")
    assert [tag for tag, _ in tags(live)] == [tag for tag, _ in tags(done)]
    assert "data:image/jpeg;base64,anBlZw==" in live
    assert "studio/pictures/2026-01-02/101530-0-a1b2c3.png" in done


@pytest.mark.parametrize(
    ("count", "across"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (16, 4), (64, 6)]
)
def test_the_grid_is_near_a_square(count: int, across: int) -> None:
    assert canvas.columns(count) == across


def test_pictures_that_were_finished_before_a_failure_stay() -> None:
    failed = replace(job(JobState.FAILED, count=4, done=2), error=StudioError("The process ended."))
    html = canvas.canvas(failed, "")
    assert html.count("<img") == 2
    said = canvas.status(failed, READY, None)
    assert "The process ended. 2 of 4 pictures are finished and kept." in said
    assert 'data-tone="bad"' in said


def test_a_running_job_shows_its_bar_and_is_heard_once_per_picture() -> None:
    progress = Progress(
        stage=Stage.DENOISING, done=10, total=20, picture=2, pictures=4, seconds_left=3
    )
    html = canvas.status(replace(job(JobState.RUNNING, count=4), progress=progress), READY, None)
    assert "Picture 2 of 4: step 10 of 20, about 3 s left" in html
    heard = html.split('aria-live="polite"')[1].split("</span>")[0]
    assert "Painting picture 2 of 4." in heard
    assert "step 10" not in heard
    assert 'role="progressbar"' in html
    assert 'aria-valuenow="37"' in html


def test_the_queue_is_told() -> None:
    waiting = replace(job(JobState.WAITING), ahead=2)
    assert "2 jobs ahead" in canvas.status(waiting, READY, None)


def test_what_waits_for_a_training_says_so() -> None:
    waiting = replace(job(JobState.WAITING), ahead=1)
    training = replace(job(JobState.RUNNING), kind="train", seconds_left=130.0)
    told = canvas.status(waiting, READY, None, training)
    assert "A training has the device; you are next. It takes about 2 min 10 s." in told
    told = canvas.status(replace(waiting, ahead=3), READY, None, training)
    assert "A training has the device, and 3 jobs are before you." in told
    assert "training" not in canvas.status(job(JobState.RUNNING), READY, None, training)


def test_a_notice_names_its_field() -> None:
    html = canvas.status(None, READY, Notice(text="No.", field="steps"))
    assert 'data-field="steps"' in html


@pytest.mark.parametrize("phase", ["starting", "loading", "lost"])
def test_the_engine_is_told_while_nothing_is_painted(phase: str) -> None:
    html = canvas.status(None, EngineState(phase=phase), None)  # type: ignore[arg-type]
    assert "Ready" not in html


def test_actions_that_paint_rest_while_painting() -> None:
    file = job(JobState.DONE, done=1).pictures[0]
    buttons = {a["data-do"]: a for t, a in tags(canvas.result(file, busy=True)) if t == "button"}
    assert "disabled" in buttons["again"]
    assert "disabled" in buttons["more"]
    assert "disabled" not in buttons["start"]


def everything(text: str) -> str:
    """All markup that can hold something that a person or a file wrote."""
    shown = job(JobState.DONE, done=1, prompt=text or "x")
    tokens = Tokens(ids=(1,), used=30, limit=24, kept=text, cut=text)
    engine = EngineState(phase="ready", device=text, message=text)
    failed = replace(shown, state=JobState.FAILED, error=StudioError(text))
    return "".join(
        (
            canvas.canvas(shown, ""),
            canvas.status(failed, engine, None),
            canvas.status(None, engine, Notice(text=text, field=text)),
            canvas.result(shown.pictures[0], busy=False),
            canvas.token_count(tokens, empty=False, unseen=(text, text)),
            canvas.sentence(text),
            canvas.examples((text,)),
            canvas.engine_chip(engine),
            canvas.model_chip(text),
        )
    )


def structure(html: str) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attributes)) for tag, attributes in tags(html)]


def test_the_memory_it_took_stands_beside_the_forecast() -> None:
    (file,) = job(JobState.DONE, done=1).pictures
    assert "Memory" not in canvas.result(file, busy=False)
    known = replace(file, peak=3_120_000_000, forecast=3_300_000_000)
    assert "<dd>3.1 GB, 3.3 forecast</dd>" in canvas.result(known, busy=False)


def test_hostile_text_stays_text() -> None:
    html = everything(HOSTILE)
    assert structure(html) == structure(everything("plain"))
    assert "<script" not in html


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40))
def test_no_text_changes_the_structure(text: str) -> None:
    assert structure(everything("x" + text)) == structure(everything("plain"))
