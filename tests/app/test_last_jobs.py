"""What was shown before a restart is shown again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from app.gallery import Gallery, PictureFile
from app.jobs import JobQueue, JobState
from app.last_jobs import LastJobs
from app.runner import Keep
from pipelines.catalog import Catalog
from pipelines.progress import Report, ShouldStop
from pipelines.request import GenerationRequest, complete

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


def painted(folder: Path, *, finished: int) -> tuple[PictureFile, ...]:
    """The pictures of a job of three in a studio that is then closed."""
    queue = JobQueue(Painter(folder / "outputs", finished), LastJobs(folder / "jobs"))
    request = complete({"prompt": "a cat", "seed": 5, "count": 3}, Catalog())
    job = queue.wait(queue.submit(request, OWNER).id, OWNER, 5)
    queue.close()
    assert job is not None
    return job.pictures


@pytest.mark.parametrize("finished", [3, 1, 0])
def test_a_new_studio_shows_what_the_last_one_finished(tmp_path: Path, finished: int) -> None:
    pictures = painted(tmp_path, finished=finished)
    queue = JobQueue(Painter(tmp_path, 0), LastJobs(tmp_path / "jobs"))
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
    kept = LastJobs(tmp_path / "jobs").load(OWNER)
    assert kept is not None
    assert kept[1] == (third,)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request": {}, "pictures": []}', "[" * 9999])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    painted(tmp_path, finished=1)
    (file,) = (tmp_path / "jobs").iterdir()
    file.write_text(text, "utf-8")
    assert LastJobs(tmp_path / "jobs").load(OWNER) is None


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("in the way")
    assert len(painted(tmp_path, finished=2)) == 2
