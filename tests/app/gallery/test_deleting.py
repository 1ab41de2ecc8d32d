"""A picture is deleted with what only it needed: its encoded prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.jobs.job import Job, JobState
from pipelines.errors import BusyError, RecipeError, SaveError
from pipelines.text import prompt_files, styles, tokens
from tests import tiny
from tests.app.ui.fake_studio import FakeStudio

ME, OTHER = "owner-0123456789abcdef", "owner-fedcba9876543210"


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    with FakeStudio(tmp_path, steps=2, pace=0.001) as fake:
        yield fake


def paint(studio: FakeStudio, prompt: str, owner: str = ME, **values: object) -> Job:
    job = studio.submit(studio.request({"prompt": prompt, "size": "96x160", **values}), owner)
    done = studio.wait(job.id, owner, 20)
    assert done is not None
    assert done.pictures
    # What the painting process leaves behind, which is not here.
    for text in done.request.texts:
        encoded(studio, text).parent.mkdir(parents=True, exist_ok=True)
        encoded(studio, text).write_bytes(b"features")
    return done


def encoded(studio: FakeStudio, text: str) -> Path:
    ids = tokens.tokenize(text, studio.catalog.default).ids
    return prompt_files.file(studio.settings.prompts, ids, "t5")


def test_the_prompt_goes_with_its_last_picture(studio: FakeStudio) -> None:
    job = paint(studio, "a cat", count=2, negative="a dog", style="None", guidance=4)
    for picture, left in zip(job.pictures, (True, False), strict=True):
        studio.delete_picture(picture.name, ME)
        assert not picture.path.exists()
        assert encoded(studio, "a cat").exists() is left
        assert encoded(studio, "a dog").exists() is left
    assert studio.latest(ME) is None


def test_what_other_pictures_were_painted_from_stays(studio: FakeStudio) -> None:
    """Also those of others, and of jobs that are long over; models do not see capital letters."""
    paint(studio, "A  Cat", OTHER, guidance=1)
    job = paint(studio, "a cat", negative="", guidance=4)
    studio.delete_picture(job.pictures[0].name, ME)
    assert encoded(studio, "a cat").exists()
    assert encoded(studio, "").exists(), "every guided picture needs the empty text"


def test_every_model_that_read_the_prompt_forgets_it(studio: FakeStudio, tmp_path: Path) -> None:
    tiny.build(tmp_path / "models" / "tiny")
    studio.catalog.reload()
    job = paint(studio, "a cat")
    ids = tokens.tokenize("a cat", studio.model("tiny")).ids
    other = prompt_files.file(studio.settings.prompts, (*ids[:-2], 1), "t5")
    shorter = replace(tokens.tokenize("a cat", studio.model("tiny")), ids=(*ids[:-2], 1))
    assert shorter.ids != ids
    other.write_bytes(b"features")
    read = tokens.tokenize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tokens, "tokenize", lambda t, m, *how: shorter if m.id == "tiny" else read(t, m, *how)
        )
        studio.delete_picture(job.pictures[0].name, ME)
    assert not other.exists()
    assert not encoded(studio, "a cat").exists()


def test_a_style_that_is_gone_is_in_nobodys_way(
    studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another picture, and in the one that goes."""
    named = next(name for name in styles.all_styles() if name != styles.NO_STYLE)
    theirs = paint(studio, "a dog", OTHER, style=named)
    mine = paint(studio, "a cat")
    left = {k: v for k, v in styles.all_styles().items() if k != named}
    monkeypatch.setattr(styles, "all_styles", lambda: left)
    studio.delete_picture(mine.pictures[0].name, ME)
    assert not encoded(studio, "a cat").exists()
    studio.delete_picture(theirs.pictures[0].name, OTHER)
    assert not theirs.pictures[0].path.exists()


def test_nobody_deletes_what_is_not_theirs(studio: FakeStudio) -> None:
    theirs = paint(studio, "a cat", OTHER).pictures[0]
    paint(studio, "a dog")
    for name in (theirs.name, "../../etc/passwd", "", "2026-01-01/120000-1-abcdef.png"):
        with pytest.raises(RecipeError, match="no such picture"):
            studio.delete_picture(name, ME)
    assert theirs.path.exists()


def test_a_running_job_is_left_alone(studio: FakeStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(paint(studio, "a cat"), state=JobState.RUNNING)
    monkeypatch.setattr(studio, "latest", lambda owner: job)
    with pytest.raises(BusyError, match="still running"):
        studio.delete_picture(job.pictures[0].name, ME)
    assert job.pictures[0].path.exists()


def test_a_file_that_stays_stays_in_its_job(
    studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = paint(studio, "a cat")

    def refused(name: str) -> None:
        raise SaveError("It cannot be deleted.")

    monkeypatch.setattr(studio.gallery, "remove", refused)
    with pytest.raises(SaveError):
        studio.delete_picture(job.pictures[0].name, ME)
    assert studio.latest(ME) == job
    assert encoded(studio, "a cat").exists()
