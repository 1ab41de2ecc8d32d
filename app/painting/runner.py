"""What a job needs from whatever paints: one call, two ways (this process, or a worker's)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol, runtime_checkable

from app.gallery.pictures import Gallery, PictureFile
from pipelines.errors import SaveError, StudioError
from pipelines.picture_record import Picture
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest

Keep = Callable[[PictureFile], None]


class Runner(Protocol):
    """Paints one request at a time."""

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        """Paints `request`, calling `keep` for each finished file. Raises StudioError.

        `upcoming` wait behind it: their texts are encoded while the text encoder is there anyway.
        Returns early, without an error, after `should_stop()` became true.
        """


@runtime_checkable
class Lender(Protocol):
    """A runner that can give the device up for a while."""

    def lent(self) -> AbstractContextManager[None]:
        """Nothing of it is on the device in the block; it takes the device back after."""


class Painter(Protocol):
    """The part of the engine that a runner uses (the engine itself is heavy to import)."""

    def generate(
        self,
        request: GenerationRequest,
        report: Report,
        should_stop: ShouldStop,
        *,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> Iterator[Picture]:
        """Yields the pictures of `request`."""


class LocalRunner:
    """Paints in this process: for the command line, and inside the worker."""

    def __init__(self, painter: Painter, gallery: Gallery) -> None:
        self._painter = painter
        self._gallery = gallery

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        """See Runner.paint. Each picture is on disk before the next one is finished.

        `keep` is called by another thread, and `report` never by two at once.
        """
        with _Saver(self._gallery, keep, report) as saver:
            painted = self._painter.generate(
                request,
                saver.tell,
                lambda: should_stop() or saver.has_failed,
                upcoming=upcoming,
            )
            for number, picture in enumerate(painted, start=1):
                saver.wait()
                report(Progress(stage=Stage.SAVING, picture=number, pictures=request.count))
                saver.save(picture)
            saver.wait()


class _Saver:
    """Writes one picture while the next one is painted: a PNG of 1024 px takes 0.1 s."""

    def __init__(self, gallery: Gallery, keep: Keep, report: Report) -> None:
        self._gallery = gallery
        self._keep = keep
        self._report = report
        self._telling = threading.Lock()
        self._busy = False
        self._held: Progress | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None

    def __enter__(self) -> _Saver:
        return self

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        # Also behind a failure of the next picture: this one is finished.
        self._pool.shutdown()
        lost = self._saving.exception() if self._saving else None
        if lost is None or lost is failure or not isinstance(failure, Exception):
            return
        if not isinstance(lost, StudioError):
            raise lost
        # Whoever waits for the job is told one sentence: it has to name both.
        raise SaveError(f"{lost} The next picture failed, too: {failure}") from failure

    def tell(self, progress: Progress) -> None:
        """Reports; what comes of the next picture while one is written is told right after it."""
        with self._telling:
            if not self._busy:
                self._report(progress)
            elif progress.note:
                # What was before it is over.
                self._held = None
                self._report(progress)
            else:
                self._held = _with_preview(progress, self._held)

    @property
    def has_failed(self) -> bool:
        """True once a picture could not be written; `wait` raises why."""
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def save(self, picture: Picture) -> None:
        """Begins to write `picture`."""
        with self._telling:
            self._busy = True
        self._saving = self._pool.submit(self._write, picture)

    def wait(self) -> None:
        """Returns when all is written. Raises SaveError."""
        if self._saving is not None:
            self._saving.result()

    def _write(self, picture: Picture) -> None:
        try:
            self._keep(self._gallery.add(picture))
        finally:
            with self._telling:
                self._busy, held, self._held = False, self._held, None
                if held is not None:
                    self._report(held)


def _with_preview(progress: Progress, before: Progress | None) -> Progress:
    """`progress` with the preview of one that is not told, if it is of the same picture."""
    if progress.preview or before is None or before.picture != progress.picture:
        return progress
    return replace(progress, preview=before.preview)
