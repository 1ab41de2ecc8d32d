"""A real painting process that a test can hold: it waits behind a step while a file says so.

How long a picture takes is that of the machine, so no test may count on a job that still paints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.heavy_imports import before_torch
from pipelines.picture_record import Picture
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest

_MARK = "hold"


@contextmanager
def holding(workspace: Path, *, picture: int = 1, step: int = 1) -> Iterator[None]:
    """While the block lasts, what paints for `workspace` waits behind that step, both from 1.

    It can be stopped, and killed. It must have called `may_be_held`.
    """
    mark = workspace / _MARK
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{picture} {step}", "utf-8")
    try:
        yield
    finally:
        mark.unlink()


def may_be_held(workspace: Path) -> None:
    """To be called in the process that paints, before it makes its engine; loads torch."""
    before_torch()
    from pipelines.engine import Engine

    generate, mark = Engine.generate, workspace / _MARK

    def generating(
        self: Engine,
        request: GenerationRequest,
        report: Report,
        should_stop: ShouldStop,
        *,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> Iterator[Picture]:
        def reporting(progress: Progress) -> None:
            report(progress)
            while _holds(mark, progress) and not should_stop():
                time.sleep(0.01)

        return generate(self, request, reporting, should_stop, upcoming=upcoming)

    Engine.generate = generating  # type: ignore[method-assign]


def _holds(mark: Path, progress: Progress) -> bool:
    try:
        picture, step = map(int, mark.read_text("utf-8").split())
    except (FileNotFoundError, ValueError):
        # Gone, or just being written.
        return False
    behind: Any = (progress.picture, progress.stage) == (picture, Stage.DENOISING)
    return bool(behind and progress.done >= step)
