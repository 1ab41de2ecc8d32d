"""The kind of job that exports pictures to one file, which its owner then fetches from a link.

The id of the job is the secret of the link. Files lie in a folder of this process, so one that was
ended by a restart begins anew.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app import scratch
from app.gallery.exports import export, formats
from app.gallery.exports.export import Exported
from app.gallery.index import IndexedPicture
from app.gallery.pictures import PICTURE_NAME, came_after
from app.gallery.query import MAX_QUERY
from app.jobs.entry import Entry
from app.jobs.job import JOB_ID
from app.jobs.kinds import JobControl, Kind, Lane
from pipelines.errors import RequestError, printable

EXPORT = "export"
MAX_NAMES = 5000
"""So many pictures can be named; a search finds any number."""
Find = Callable[["ExportOrder", str], Sequence[IndexedPicture]]
"""The pictures that an order of this owner means, as far as they may be seen."""


@dataclass(frozen=True, kw_only=True)
class ExportOrder:
    """What is exported: the pictures of those names, or where that is None all that `query` finds.

    Those that came after the listed ones of the second `newest` are left out. `everybodys` pictures
    are meant, or the owner's alone.
    """

    format: str
    names: tuple[str, ...] | None = None
    query: str = ""
    newest: tuple[str, ...] = ()
    strip: bool = False
    everybodys: bool = False

    def means(self, name: str) -> bool:
        """Whether a picture that was found is one of those that were listed."""
        return not came_after(name, self.newest)

    def checked(self) -> ExportOrder:
        """The same. Raises RequestError for what cannot be."""
        formats.find(self.format)
        if len(self.names or ()) > MAX_NAMES or len(self.newest) > MAX_NAMES:
            words = f"These are more than {MAX_NAMES:,} pictures."
            raise RequestError("ids", words, "Select fewer, or export all that a search finds.")
        if not all(map(PICTURE_NAME.fullmatch, (*(self.names or ()), *self.newest))):
            raise RequestError("ids", "There is no such picture.")
        if len(self.query) > MAX_QUERY:
            raise RequestError("query", f"The search has more than {MAX_QUERY} characters.")
        return self


def kind(folder: Path, find: Find) -> Kind:
    """The row of the table. The files go to this process's part of `folder`."""

    def run(control: JobControl) -> bool:
        job, order = control.entry.job, control.entry.job.payload
        suffix = formats.find(order.format).download
        if not JOB_ID.fullmatch(job.id):
            raise RequestError("job", "This is no number of a job.", "Export the pictures again.")
        place = scratch.folder(folder) / job.id
        # Of an earlier try.
        shutil.rmtree(place, ignore_errors=True)
        done = export.export(
            [entry for entry in find(order, job.owner) if order.means(entry.name)],
            place / f"pictures-{datetime.now():%Y%m%d-%H%M%S}{suffix}",
            order.format,
            strip=order.strip,
            report=control.report,
            should_stop=control.should_stop,
        )
        control.give(done)
        return done is not None

    return Kind(
        name=EXPORT,
        lane=Lane.DISK,
        resumes=False,
        run=run,
        write=asdict,
        read=_read,
        title=_title,
        interrupted=("The studio was restarted during the export.", "Retry it; it begins anew."),
        timing=lambda order: f"{platform.node()}|{EXPORT}|{order.format}|{order.strip}",
        units=_units,
        most_each=1,
        for_all=lambda order: order.everybodys,
        forgotten=_discard,
    )


def _title(order: ExportOrder) -> str:
    label = formats.find(order.format).label
    if order.names is None:
        found = f"“{printable(order.query, 80)}”" if order.query.strip() else "all pictures"
        return f"Export {found} ({label})"
    many = "1 picture" if len(order.names) == 1 else f"{len(order.names):,} pictures"
    return f"Export {many} ({label})"


def _units(entry: Entry) -> float | None:
    """The pictures, where they are counted already."""
    names = entry.job.payload.names
    return len(names) if names else None


def _discard(entry: Entry) -> None:
    done: Exported | None = entry.job.result
    if done is not None:
        shutil.rmtree(done.path.parent, ignore_errors=True)


def _read(payload: Any) -> ExportOrder:
    values = payload if isinstance(payload, dict) else {}
    names, newest = values.get("names"), values.get("newest")
    listed = names is None or isinstance(names, list)
    texts = [values.get("format"), values.get("query"), *(names or ()), *(newest or ())]
    if not listed or not isinstance(newest, list) or not all(isinstance(t, str) for t in texts):
        raise RequestError("ids", "This is no export.")
    return ExportOrder(
        format=values["format"],
        names=None if names is None else tuple(names),
        query=values["query"],
        newest=tuple(newest),
        strip=values.get("strip") is True,
        everybodys=values.get("everybodys") is True,
    ).checked()
