"""The painting process at its ends: a GPU that fails, and a page that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.gallery import metadata
from app.gallery.pictures import Gallery, PictureFile
from app.painting import process
from app.painting.worker import WorkerRunner
from app.settings import Settings
from pipelines.errors import StudioError
from pipelines.picture_record import Picture
from pipelines.processes.inside import ParentPipe
from pipelines.progress import Progress, Stage
from tests.app.painting.held import holding, may_be_held
from tests.app.painting.test_worker import paint, request, until

real_main = process.main
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]


class AcceleratorError(RuntimeError):
    """As torch names it."""


def _lose_the_gpu(pipe: ParentPipe, workspace: str, preload: str | None) -> None:
    from pipelines.engine import Engine

    def generate(*_: Any, **__: Any) -> Iterator[Any]:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    Engine.generate = generate  # type: ignore[method-assign]
    real_main(pipe, workspace, preload)


def test_a_process_that_lost_its_gpu_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "main", _lose_the_gpu)
    runner = WorkerRunner(Settings(workspace=tmp_path))
    runner.start()
    until(lambda: runner.state.phase == "ready")
    with pytest.raises(StudioError, match="illegal memory access"):
        paint(runner, request())
    until(lambda: runner.state.restarts == 1)
    runner.close()


def test_only_a_failure_of_the_gpu_itself_ends_the_process() -> None:
    mapped = StudioError("its vae does not load")
    mapped.__cause__ = AcceleratorError("CUDA error: unspecified launch failure")
    assert process._is_lost_gpu(mapped)
    assert not process._is_lost_gpu(AcceleratorError("CUDA error: out of memory"))
    assert not process._is_lost_gpu(StudioError("no such model"))
    assert not process._is_lost_gpu(RuntimeError("shapes do not match"))


def _save_when_the_page_is_gone(pipe: ParentPipe, workspace: str, preload: str | None) -> None:
    may_be_held(Path(workspace))
    painter = process._PaintingProcess(pipe, Settings(workspace=Path(workspace)))
    add = Gallery.add

    def later(gallery: Gallery, picture: Picture) -> PictureFile:
        painter._leaving.wait()
        return add(gallery, picture)

    Gallery.add = later  # type: ignore[method-assign, assignment]
    painter.run(preload)


def test_a_finished_picture_is_written_though_the_page_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "main", _save_when_the_page_is_gone)
    settings = Settings(workspace=tmp_path)
    runner = WorkerRunner(settings)
    runner.start()
    saving = threading.Event()

    def report(progress: Progress) -> None:
        if progress.stage is Stage.SAVING:
            saving.set()

    def work() -> None:
        with pytest.raises(StudioError):
            runner.paint(
                request(count=3), report=report, keep=lambda file: None, should_stop=lambda: False
            )

    thread = threading.Thread(target=work)
    # The next one is not finished before the page goes away.
    with holding(settings.workspace, picture=2):
        thread.start()
        assert saving.wait(90)
        runner.close()
        thread.join(60)
    (file,) = settings.outputs.rglob("*.png")
    assert metadata.read(file).request.seed == 5
