"""What a job needs from whatever paints: one call, two ways (this process, or a worker's)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from app.gallery import Gallery, Painted, PictureFile
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


class Painter(Protocol):
    """The part of the engine that a runner uses (the engine itself is heavy to import)."""

    def generate(
        self,
        request: GenerationRequest,
        report: Report,
        should_stop: ShouldStop,
        *,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> Iterator[Painted]:
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
        """See Runner.paint. Each picture is on disk before the next one is begun."""
        painted = self._painter.generate(request, report, should_stop, upcoming=upcoming)
        for number, picture in enumerate(painted, start=1):
            report(Progress(stage=Stage.SAVING, picture=number, pictures=request.count))
            keep(self._gallery.add(picture))
