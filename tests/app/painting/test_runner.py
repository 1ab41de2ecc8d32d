"""Pictures are written while the next one is painted, and none is lost or told out of order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from app.gallery.pictures import Gallery, PictureFile
from app.painting.runner import LocalRunner
from pipelines.catalog import Catalog
from pipelines.errors import ModelError, SaveError
from pipelines.picture_record import Picture
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest, complete


class Painter:
    """Paints in two steps; `before` and `behind` are called around them with the picture's index.

    `note` is told behind the steps; the picture with the index `endless` has no last step.
    """

    def __init__(
        self,
        before: Callable[[int], None] = lambda index: None,
        *,
        behind: Callable[[int], None] = lambda index: None,
        note: str = "",
        endless: int | None = None,
    ) -> None:
        self._before, self._behind, self._note = before, behind, note
        self._endless = endless
        self.done = 0

    def generate(
        self,
        request: GenerationRequest,
        report: Report,
        should_stop: ShouldStop,
        *,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> Iterator[Picture]:
        for index in range(request.count):
            self._before(index)
            for step in count() if index == self._endless else range(2):
                if should_stop():
                    return
                self.done += 1
                report(
                    Progress(
                        stage=Stage.DENOISING,
                        done=step + 1,
                        total=2,
                        picture=index + 1,
                        # Not every step has one.
                        preview=None if step else b"jpeg",
                    )
                )
            if self._note:
                report(Progress(stage=Stage.LOADING, picture=index + 1, note=self._note))
            self._behind(index)
            image = Image.new("RGB", (8, 8))
            yield Picture(image=image, request=request.single(index), seconds=0.1)


class Slow(Gallery):
    """A gallery that writes when it may, and `fails` for one seed."""

    def __init__(self, root: Path, *, fails: int | None = None) -> None:
        super().__init__(root)
        self.may = threading.Event()
        self._fails = fails

    def add(self, picture: Picture) -> PictureFile:
        assert self.may.wait(20)
        if picture.request.seed == self._fails:
            raise SaveError("No space left.")
        return super().add(picture)


def run(
    gallery: Gallery, painter: Painter, *, count: int = 3, report: Report = lambda progress: None
) -> Iterator[int]:
    """The seeds of the pictures as they are kept; then whatever `paint` raises."""
    kept: list[int] = []
    request = complete({"prompt": "x", "seed": 10, "count": count}, Catalog())

    def keep(file: PictureFile) -> None:
        assert file.path.is_file()
        kept.append(file.request.seed)

    try:
        LocalRunner(painter, gallery).paint(
            request, report=report, keep=keep, should_stop=lambda: False
        )
    finally:
        yield from kept


def test_the_next_picture_is_painted_while_one_is_written(tmp_path: Path) -> None:
    gallery = Slow(tmp_path)
    # It may be written only once the second is being painted.
    painter = Painter(lambda index: gallery.may.set() if index == 1 else None)
    assert list(run(gallery, painter)) == [10, 11, 12]


def told_late(tmp_path: Path, note: str) -> tuple[list[Progress], list[Progress]]:
    """What is told before and after the first of two pictures is written, of the second one."""
    gallery = Slow(tmp_path)
    early: list[Progress] = []
    late: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.picture == 2:
            (late if gallery.may.is_set() else early).append(progress)

    # The first one may be written once all is told of the second.
    painter = Painter(behind=lambda index: gallery.may.set() if index == 1 else None, note=note)
    assert list(run(gallery, painter, count=2, report=report)) == [10, 11]
    return early, late


def test_nothing_is_told_of_a_picture_before_the_last_one_is_kept(tmp_path: Path) -> None:
    early, (step, saving) = told_late(tmp_path, "")
    assert early == []
    # What had to wait is told as soon as the picture is kept, with the last preview.
    assert (step.stage, step.done, step.preview) == (Stage.DENOISING, 2, b"jpeg")
    assert saving.stage is Stage.SAVING


def test_what_must_not_be_missed_is_told_at_once(tmp_path: Path) -> None:
    early, late = told_late(tmp_path, "Memory ran out.")
    assert [one.note for one in early] == ["Memory ran out."]
    # What was before it is over.
    assert [one.stage for one in late] == [Stage.SAVING]


def test_a_picture_that_cannot_be_written_ends_the_job_with_its_sentence(tmp_path: Path) -> None:
    gallery = Slow(tmp_path, fails=11)
    gallery.may.set()
    painter = Painter(endless=2)
    kept = run(gallery, painter, count=9)
    assert next(kept) == 10
    with pytest.raises(SaveError, match="No space left"):
        next(kept)
    # In the third one, which has no end of its own.
    assert painter.done >= 4


def test_a_fault_of_ours_while_saving_stays_one(tmp_path: Path) -> None:
    def before(index: int) -> None:
        if index == 1:
            gallery.may.set()
            raise ModelError("It is damaged.")

    class Faulty(Slow):
        def add(self, picture: Picture) -> PictureFile:
            assert self.may.wait(20)
            raise KeyError("a fault of ours")

    gallery = Faulty(tmp_path)
    with pytest.raises(KeyError, match="a fault of ours"):
        next(run(gallery, Painter(before)))


def test_a_lost_picture_is_told_though_the_next_one_fails(tmp_path: Path) -> None:
    gallery = Slow(tmp_path, fails=10)

    def before(index: int) -> None:
        if index == 1:
            threading.Timer(0.2, gallery.may.set).start()
            raise ModelError("It is damaged.")

    with pytest.raises(SaveError, match=r"No space left.*It is damaged") as told:
        next(run(gallery, Painter(before)))
    assert isinstance(told.value.__cause__, ModelError)


def test_a_finished_picture_is_kept_though_the_next_one_fails(tmp_path: Path) -> None:
    gallery = Slow(tmp_path)

    def before(index: int) -> None:
        if index == 1:
            threading.Timer(0.2, gallery.may.set).start()
            raise ModelError("It is damaged.")

    kept = run(gallery, Painter(before))
    assert next(kept) == 10
    with pytest.raises(ModelError):
        next(kept)
