"""What was shown before a restart is shown again."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.gallery.pictures import Gallery, PictureFile
from app.jobs.job import JobState
from app.jobs.last_jobs import MAX_KEPT, LastJobs
from app.jobs.queue import JobQueue
from app.painting.runner import Keep
from pipelines.catalog import Catalog
from pipelines.progress import Report, ShouldStop
from pipelines.request import GenerationRequest, complete, from_mapping

OWNER = "../../somebody"


@dataclass(frozen=True)
class Painted:
    image: Image.Image
    request: GenerationRequest
    seconds: float = 0.5
    weights: str = "a1"
    peak: int = 7_000
    forecast: int = 6_000
    notes: tuple[str, ...] = ()


class Painter:
    """Paints the first `finished` pictures of a job and then ends it."""

    def __init__(self, folder: Path, finished: int) -> None:
        self._gallery = Gallery(folder)
        self._finished = finished

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        for index in range(min(self._finished, request.count)):
            single = request.single(index)
            keep(self._gallery.add(Painted(Image.new("RGB", (8, 8)), single)))


def memory_of(folder: Path) -> LastJobs:
    return LastJobs(folder / "jobs", Gallery(folder / "outputs"))


def painted(folder: Path, *, finished: int) -> tuple[PictureFile, ...]:
    """The pictures of a job of three in a studio that is then closed."""
    queue = JobQueue(Painter(folder / "outputs", finished), memory_of(folder))
    request = complete({"prompt": "a cat", "seed": 5, "count": 3}, Catalog())
    job = queue.wait(queue.submit(request, OWNER).id, OWNER, 5)
    queue.close()
    assert job is not None
    return job.pictures


@pytest.mark.parametrize("finished", [3, 1, 0])
def test_a_new_studio_shows_what_the_last_one_finished(tmp_path: Path, finished: int) -> None:
    pictures = painted(tmp_path, finished=finished)
    queue = JobQueue(Painter(tmp_path, 0), memory_of(tmp_path))
    job = queue.latest(OWNER)
    assert job is not None
    assert job.pictures == pictures
    assert not job.active
    if finished == 3:
        assert (job.state, job.error) == (JobState.DONE, None)
    else:
        assert job.state is JobState.FAILED
        assert job.error is not None
        assert "restarted" in job.error
    again = queue.latest(OWNER)
    assert again is not None
    assert again.id == job.id
    assert queue.latest("somebody else") is None
    queue.close()


def test_pictures_that_are_gone_or_were_replaced_are_left_out(tmp_path: Path) -> None:
    first, second, third = painted(tmp_path, finished=3)
    first.path.unlink()
    Image.new("RGB", (8, 8)).save(second.path)
    kept = memory_of(tmp_path).load(OWNER)
    assert kept is not None
    assert kept[1] == (third,)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request": {}, "pictures": []}', "[" * 9999])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    painted(tmp_path, finished=1)
    (file,) = (tmp_path / "jobs").iterdir()
    file.write_text(text, "utf-8")
    assert memory_of(tmp_path).load(OWNER) is None


@pytest.mark.parametrize("name", ["seconds", "peak", "forecast"])
@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "null", '"x"', "[]"])
def test_a_hostile_number_is_no_memory(tmp_path: Path, name: str, value: str) -> None:
    painted(tmp_path, finished=1)
    (file,) = (tmp_path / "jobs").iterdir()
    told = json.loads(file.read_text("utf-8"))
    told["pictures"][0][name] = "HERE"
    file.write_text(json.dumps(told).replace('"HERE"', value), "utf-8")
    assert memory_of(tmp_path).load(OWNER) is None


def test_a_job_is_remembered_from_its_start(tmp_path: Path) -> None:
    """While the one before it ran it was not the latest."""
    started, go_on = threading.Event(), threading.Event()

    class Waiting(Painter):
        def paint(self, request: GenerationRequest, **told: Any) -> None:
            if request.seed == 6:
                started.set()
                assert go_on.wait(20)
            super().paint(request, **told)

    queue = JobQueue(Waiting(tmp_path / "outputs", 1), memory_of(tmp_path))
    for seed in (5, 6):
        queue.submit(complete({"prompt": "a cat", "seed": seed}, Catalog()), OWNER)
    assert started.wait(20)
    kept = memory_of(tmp_path).load(OWNER)
    go_on.set()
    queue.close()
    assert kept is not None
    assert (kept[0].seed, kept[1]) == (6, ())


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("in the way")
    assert len(painted(tmp_path, finished=2)) == 2


def test_a_copied_workspace_has_its_own_pictures(tmp_path: Path) -> None:
    pictures = painted(tmp_path / "first", finished=2)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    kept = memory_of(tmp_path / "second").load(OWNER)
    assert kept is not None
    assert [p.name for p in kept[1]] == [p.name for p in pictures]
    assert all(p.path.is_relative_to(tmp_path / "second") for p in kept[1])


@pytest.mark.parametrize("name", ["{outside}", "../outside.png", "2026-01-01/../../outside.png"])
def test_a_name_that_leads_elsewhere_is_no_picture(tmp_path: Path, name: str) -> None:
    (inside,) = painted(tmp_path, finished=1)
    outside = tmp_path / "outside.png"
    shutil.copy(inside.path, outside)
    (file,) = (tmp_path / "jobs").iterdir()
    told = json.loads(file.read_text("utf-8"))
    told["pictures"][0]["name"] = name.format(outside=outside)
    file.write_text(json.dumps(told), "utf-8")
    kept = memory_of(tmp_path).load(OWNER)
    assert kept is not None
    assert kept[1] == ()


def test_what_was_deleted_is_not_remembered(tmp_path: Path) -> None:
    queue = JobQueue(Painter(tmp_path / "outputs", 2), memory_of(tmp_path))
    request = complete({"prompt": "a cat", "seed": 5, "count": 4}, Catalog())
    job = queue.wait(queue.submit(request, OWNER).id, OWNER, 5)
    assert job is not None
    queue.drop(job.pictures[0].name)
    queue.close()
    again = JobQueue(Painter(tmp_path, 0), memory_of(tmp_path)).latest(OWNER)
    assert again is not None
    assert again.pictures == job.pictures[1:]
    assert again.request.count == 3
    assert again.error == "The studio was restarted while it painted."


def test_what_was_deleted_while_the_studio_was_closed_was_never_asked_for(tmp_path: Path) -> None:
    pictures = painted(tmp_path, finished=3)
    pictures[1].path.unlink()
    kept = memory_of(tmp_path).load(OWNER)
    assert kept is not None
    before = from_mapping(json.loads(next((tmp_path / "jobs").iterdir()).read_text())["request"])
    assert kept[0].count == before.count - 1
    assert [p.name for p in kept[1]] == [pictures[0].name, pictures[2].name]
    for picture in pictures[::2]:
        picture.path.unlink()
    assert memory_of(tmp_path).load(OWNER) is None


def test_a_look_in_the_middle_of_a_deletion_sees_no_ghost(tmp_path: Path) -> None:
    """Between the end of the job and the end of its memory there is nothing to be seen."""
    looked: list[object] = []

    class Slow(LastJobs):
        def forget(self, owner: str) -> None:
            other = threading.Thread(target=lambda: looked.append(queue.latest(owner)))
            other.start()
            other.join(0.2)
            super().forget(owner)

    queue = JobQueue(
        Painter(tmp_path / "outputs", 1), Slow(tmp_path / "jobs", Gallery(tmp_path / "outputs"))
    )
    request = complete({"prompt": "a cat", "seed": 5}, Catalog())
    job = queue.wait(queue.submit(request, OWNER).id, OWNER, 5)
    assert job is not None
    job.pictures[0].path.unlink()
    queue.drop(job.pictures[0].name)
    while not looked:
        time.sleep(0.01)
    assert looked == [None]
    assert queue.latest(OWNER) is None
    queue.close()


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    pictures = painted(tmp_path, finished=1)
    (file,) = (tmp_path / "jobs").iterdir()
    told = json.loads(file.read_text("utf-8"))
    told["pictures"][0] = {"path": str(pictures[0].path), "seconds": 0.5}
    file.write_text(json.dumps(told), "utf-8")
    kept = memory_of(tmp_path).load(OWNER)
    assert kept is not None
    assert [p.name for p in kept[1]] == [pictures[0].name]


def test_calls_of_the_api_do_not_push_out_what_browsers_saw(tmp_path: Path) -> None:
    kept = memory_of(tmp_path)
    jobs = JobQueue(Painter(tmp_path / "outputs", 1), kept)
    request = complete({"prompt": "a cat"}, Catalog())

    def paint(owner: str, *, passing: bool) -> None:
        job = jobs.submit(request, owner, passing=passing)
        ended = jobs.wait(job.id, owner, 20)
        assert ended is not None
        assert ended.state is JobState.DONE

    paint("a browser of somebody", passing=False)
    first = jobs.latest("a browser of somebody")
    for number in range(MAX_KEPT + 5):
        paint(f"api-{number}", passing=True)
    assert jobs.latest("a browser of somebody") == first
    assert jobs.latest("api-0") is None
    jobs.close()
    again = JobQueue(Painter(tmp_path / "outputs", 1), memory_of(tmp_path))
    found = again.latest("a browser of somebody")
    again.close()
    assert found is not None
    assert first is not None
    assert [p.name for p in found.pictures] == [p.name for p in first.pictures]
    assert len(list(tmp_path.rglob("*.json"))) == 1
