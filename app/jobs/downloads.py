"""The kinds of jobs that download: what a download would fetch, to the byte, and the fetching.

What has arrived stays on disk, so one that was stopped, cut or ended by a restart goes on where it
was.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from app.jobs.entry import Entry
from app.jobs.kinds import JobControl, Kind, Lane, announce, count_of, with_result
from app.models.store import ModelStore
from pipelines.errors import RequestError, printable
from pipelines.models import hub_rows
from pipelines.progress import Progress, Stage

if TYPE_CHECKING:
    from pipelines.models.downloads import DownloadPlan
    from pipelines.models.transfer import Reading

DOWNLOAD, QUESTION = "download", "question"
_MAX_FILES, _MAX_NAME = 1000, 200


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A file of a download: its path in the repository, its bytes, and how many have arrived."""

    path: str
    size: int
    done: int


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """What is asked for: a released model. `check` reads what is there, and repairs it; `left` are
    the bytes to fetch, None where that is not known yet."""

    model: str
    check: bool = False
    left: int | None = None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """How far a download is, file by file, in the order of fetching.

    `speed` in bytes per second is None while unknown. `spare` are the bytes that converting takes
    beside the files until the original is deleted.
    """

    files: tuple[FileState, ...] = ()
    speed: float | None = None
    spare: int = 0

    @property
    def total(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def done(self) -> int:
        """The bytes that are there."""
        return sum(file.done for file in self.files)


def question(store: ModelStore) -> Kind:
    """What a download would fetch: asked of the hub, or by reading what is there."""

    def run(control: JobControl) -> bool:
        fetch: Fetch = control.entry.job.payload
        return _planned(control, store, check=fetch.check) is not None

    return Kind(
        name=QUESTION,
        lane=Lane.NETWORK,
        resumes=False,
        fleeting=True,
        run=run,
        write=asdict,
        read=_read,
        title=lambda fetch: f"{'Check' if fetch.check else 'Look up'} {_title(fetch.model)}",
    )


def kind(store: ModelStore, changed: Callable[[], None]) -> Kind:
    """Downloads. `changed` is called after models came, before the end is told."""

    def run(control: JobControl) -> bool:
        try:
            # Anew: what is left may have changed since it was asked, or since the last try.
            plan = _planned(control, store)
            return plan is not None and _download(control, store, plan)
        finally:
            announce(changed)

    return Kind(
        name=DOWNLOAD,
        lane=Lane.NETWORK,
        resumes=True,
        run=run,
        write=asdict,
        read=_read,
        title=lambda fetch: f"Download {_title(fetch.model)}",
        interrupted=("The studio was restarted during the download.", "Retry it; it goes on."),
        keep=_kept,
        restore=_restore,
        timing=lambda fetch: f"{platform.node()}|{DOWNLOAD}",
        units=_left,
    )


def _title(model: str) -> str:
    known = hub_rows.known().get(model)
    return known.title if known is not None else printable(model, 80)


def _read(payload: Any) -> Fetch:
    values = payload if isinstance(payload, dict) else {}
    model, left = values.get("model"), values.get("left")
    if not isinstance(model, str) or model not in hub_rows.known():
        raise RequestError("model", "This is no released model.")
    return Fetch(model=model, check=values.get("check") is True, left=count_of(left))


def _kept(entry: Entry) -> dict[str, Any]:
    made: Fetched = entry.job.result or Fetched()
    files = [[file.path, file.size, file.done] for file in made.files]
    return {"files": files, "spare": made.spare}


def _restore(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    rows = kept.get("files", [])[:_MAX_FILES]
    files = tuple(
        FileState(path=str(path)[:_MAX_NAME], size=_bytes(size), done=_bytes(done))
        for path, size, done in rows
    )
    return with_result(entry, Fetched(files=files, spare=_bytes(kept.get("spare", 0))))


def _bytes(value: Any) -> int:
    known = count_of(value)
    if known is None:
        raise ValueError("this is no number of bytes")
    return known


def _left(entry: Entry) -> float | None:
    """The bytes that a download still fetches."""
    made: Fetched | None = entry.job.result
    if made is not None and made.files:
        return made.total - made.done
    left: int | None = entry.job.payload.left
    return left


def _planned(control: JobControl, store: ModelStore, *, check: bool = False) -> DownloadPlan | None:
    """The plan, given to the job as its files; None where it was stopped."""

    def report(reading: Reading) -> None:
        if reading.checking:
            control.report(_progress(reading))

    model: str = control.entry.job.payload.model
    plan = store.plan(model, check=check, report=report, should_stop=control.should_stop)
    if plan is not None:
        # The order in which they are fetched.
        items = sorted(plan.items, key=lambda item: item.entry.size)
        files = tuple(
            FileState(path=item.entry.path, size=item.entry.size, done=item.there) for item in items
        )
        control.give(Fetched(files=files, spare=plan.spare))
    return plan


def _download(control: JobControl, store: ModelStore, plan: DownloadPlan) -> bool:
    def report(reading: Reading) -> None:
        if not reading.file:
            return
        made: Fetched = control.entry.job.result
        converting = reading.stage is Stage.CONVERTING
        if converting:
            files = tuple(replace(file, done=file.size) for file in made.files)
        else:
            files = _advanced(made.files, reading)
        made = replace(made, files=files, speed=None if converting else reading.speed)
        control.give(made)
        progress = _progress(reading)
        if not converting:
            progress = replace(progress, done=made.done, total=made.total)
        control.report(progress)

    return store.download(plan, report=report, should_stop=control.should_stop)


def _progress(reading: Reading) -> Progress:
    # Not above: it loads what speaks HTTP.
    from pipelines.models.downloads import as_progress

    return as_progress(reading)


def _advanced(files: tuple[FileState, ...], reading: Reading) -> tuple[FileState, ...]:
    """The files as of `reading`: those before the one that is fetched now have arrived."""
    now = next(
        (
            index
            for index, file in enumerate(files)
            if file.path == reading.file and file.size == reading.file_total
        ),
        None,
    )
    if now is None:
        return files
    before = tuple(replace(file, done=file.size) for file in files[:now])
    # While it is checked, it is read from its beginning, but it is all there.
    done = files[now].size if reading.checking else min(reading.file_done, files[now].size)
    return (*before, replace(files[now], done=done), *files[now + 1 :])
