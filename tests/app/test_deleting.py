"""A picture is deleted with what only it needed: its encoded prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.jobs import Job, JobState
from pipelines import prompt_files, tokens
from pipelines.catalog import ModelSpec
from pipelines.errors import BusyError, RecipeError, SaveError, UnknownNameError
from tests.app.ui.fake_studio import FakeStudio

ME, OTHER = "owner-0123456789abcdef", "owner-fedcba9876543210"


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    fake = FakeStudio(tmp_path, steps=2, pace=0.001)
    fake.start()
    yield fake
    fake.close()


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
    """Also those of others, and of jobs that are long over."""
    paint(studio, "a cat", OTHER)
    job = paint(studio, "a cat", negative="", guidance=4)
    studio.delete_picture(job.pictures[0].name, ME)
    assert encoded(studio, "a cat").exists()
    assert encoded(studio, "").exists(), "every guided picture needs the empty text"


def test_a_model_that_is_gone_does_not_keep_a_picture(
    studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = paint(studio, "a cat")

    def gone(model_id: str) -> ModelSpec:
        raise UnknownNameError("model", "model", model_id, ("nano",))

    monkeypatch.setattr(studio, "model", gone)
    studio.delete_picture(job.pictures[0].name, ME)
    assert not job.pictures[0].path.exists()


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

    def refused(file: Path) -> None:
        raise SaveError("It cannot be deleted.")

    monkeypatch.setattr(studio.gallery, "remove", refused)
    with pytest.raises(SaveError):
        studio.delete_picture(job.pictures[0].name, ME)
    assert studio.latest(ME) == job
    assert encoded(studio, "a cat").exists()
