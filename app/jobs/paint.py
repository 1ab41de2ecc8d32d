"""The kind of job that paints: how it goes on after an interruption, and what the database keeps.

Pictures are kept by their names in the gallery: a workspace may be copied or moved.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from app.gallery import metadata
from app.gallery.pictures import Gallery, PictureFile
from app.jobs.entry import Entry
from app.jobs.job import PAINT
from app.jobs.kinds import JobControl, Kind, Lane
from app.painting.runner import Runner
from pipelines.errors import RequestError, StudioError, printable
from pipelines.progress import Progress
from pipelines.request import GenerationRequest, from_mapping
from pipelines.request_values import MAX_COUNT

# Clocks of file systems are coarser than that of the processor.
_SLACK_SECONDS = 2.0
_MAX_TITLE = 200


def kind(runner: Runner, gallery: Gallery | None, *, resumes: bool = True) -> Kind:
    """The row of the table."""

    def run(control: JobControl) -> bool:
        _run(control, runner)
        # A picture that was deleted meanwhile counts as never asked for.
        job = control.entry.job
        return len(job.pictures) == job.request.count

    def recover(entry: Entry, known: Collection[str]) -> None:
        if gallery is not None:
            _recover(entry, gallery, set(known))

    def restore(entry: Entry, kept: Mapping[str, Any]) -> Entry | None:
        return _restore(entry, kept, gallery)

    return Kind(
        name=PAINT,
        lane=Lane.DEVICE,
        paints=True,
        resumes=resumes,
        run=run,
        write=lambda request: request.recipe(),
        read=_read,
        title=lambda request: printable(request.prompt, _MAX_TITLE),
        interrupted=("The studio was restarted while it painted", "Press Generate again."),
        keep=_kept,
        restore=restore,
        total=lambda request: request.count,
        copied=lambda entry: entry.job.request.model_copy(update={"count": entry.total}),
        recover=recover,
        timing=_timing,
        units=lambda entry: entry.total - entry.painted,
    )


def _read(payload: Any) -> GenerationRequest:
    if not isinstance(payload, dict):
        raise RequestError("request", "This is no request.")
    return from_mapping(payload)


def _timing(request: GenerationRequest) -> str:
    """What the time of one picture depends on; a workspace may go to another computer."""
    size = f"{request.width}x{request.height}"
    guided = "guided" if request.guided else "plain"
    return f"{platform.node()}|{request.model}|{size}|{request.steps}|{request.sampler}|{guided}"


def _run(control: JobControl, runner: Runner) -> None:
    """Paints what is not there yet."""
    entry, first = control.entry, control.entry.painted
    left = entry.total - first
    if left <= 0:
        return
    request: GenerationRequest = entry.job.request
    rest = request.model_copy(update={"seed": request.seed + first, "count": left})

    def report(progress: Progress) -> None:
        if first:
            progress = replace(
                progress, picture=progress.picture + first, pictures=progress.pictures + first
            )
        control.report(progress)

    runner.paint(
        rest,
        report=report,
        keep=control.keep,
        should_stop=control.should_stop,
        upcoming=control.upcoming(),
    )


def _recover(entry: Entry, gallery: Gallery, known: set[str]) -> None:
    """Takes in pictures that were written when nobody was there any more to hear of it; one that
    was only half written goes."""
    if entry.started is not None:
        gallery.sweep(_first_day(entry.started))
    while entry.painted < entry.total:
        request = entry.job.request
        wanted = request.model_copy(update={"seed": request.seed + entry.painted, "count": 1})
        found = next(_painted(wanted, entry.started or math.inf, gallery, known), None)
        if found is None:
            return
        known.add(found.name)
        entry.take(found)


def _first_day(since: float) -> str:
    """The folder of the first pictures that can have been written since then."""
    return datetime.fromtimestamp(since - _SLACK_SECONDS).strftime("%Y-%m-%d")


def _painted(
    wanted: GenerationRequest, since: float, gallery: Gallery, known: Collection[str]
) -> Iterator[PictureFile]:
    """The pictures of exactly this request that were written after `since`."""
    if not math.isfinite(since):
        return
    for path in gallery.named(f"-{wanted.seed}-", _first_day(since)):
        name = f"{path.parent.name}/{path.name}"
        with suppress(OSError, StudioError):
            if name not in known and path.stat().st_mtime >= since - _SLACK_SECONDS:
                record = metadata.read(path)
                if record.request == wanted:
                    yield PictureFile.of(record, path)


def _kept(entry: Entry) -> dict[str, Any]:
    """What was painted, as JSON."""
    pictures = [{"name": picture.name, **picture.figures()} for picture in entry.job.pictures]
    return {"pictures": pictures, "total": entry.total, "painted": entry.painted}


def _restore(entry: Entry, kept: Mapping[str, Any], gallery: Gallery | None) -> Entry | None:
    """The job with its pictures; None where it has ended and all of them were deleted."""
    total, painted = int(kept.get("total", 1)), int(kept.get("painted", 0))
    if not 0 <= painted <= total <= MAX_COUNT or total < 1:
        raise ValueError(total)
    entry.total, entry.painted = total, painted
    if gallery is None:
        return entry
    pictures, deleted = _restored(kept.get("pictures", []), gallery)
    if deleted and not pictures and not entry.job.active:
        return None
    # What was deleted since counts as never asked for, as in `JobQueue.drop`.
    request = entry.job.request
    request = request.model_copy(update={"count": max(1, request.count - deleted)})
    entry.job = replace(entry.job, payload=request, pictures=tuple(pictures))
    return entry


def _restored(rows: Any, gallery: Gallery) -> tuple[list[PictureFile], int]:
    """The pictures that `_kept` described, and how many were deleted since.

    One that is there and cannot be read is left out. Raises what damaged JSON raises.
    """
    found, deleted = [], 0
    for row in rows:
        try:
            path: Path = gallery.path(str(row["name"]))
        except StudioError:
            continue
        if not path.exists():
            deleted += 1
            continue
        with suppress(StudioError):
            found.append(PictureFile.of(metadata.read(path).with_figures(row), path))
    return found, deleted
