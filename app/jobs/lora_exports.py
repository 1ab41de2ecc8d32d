"""The kind of job that writes a LoRA for another program, which is then fetched from a link.

The id of the job is the secret of the link. Files lie in a folder of this process, so one that was
ended by a restart begins anew.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app import scratch
from app.jobs.entry import Entry
from app.jobs.job import JOB_ID
from app.jobs.kinds import JobControl, Kind, Lane
from app.models import lora_export
from app.settings import Settings
from lora_manager import card, forms
from lora_manager.errors import LoraError
from pipelines.errors import RequestError

LORA_EXPORT = "lora-export"


@dataclass(frozen=True, kw_only=True)
class LoraExportOrder:
    """Which LoRA is written, in which of the forms."""

    name: str
    form: str

    def checked(self) -> LoraExportOrder:
        """The same. Raises RequestError for what cannot be."""
        try:
            card.check_name(self.name)
            forms.find(self.form)
        except LoraError as error:
            raise RequestError("loras", error.message, error.way_out) from None
        return self


def kind(settings: Settings) -> Kind:
    """The row of the table. The files go to this process's part of the exports."""

    def run(control: JobControl) -> bool:
        job, order = control.entry.job, control.entry.job.payload
        if not JOB_ID.fullmatch(job.id):
            raise RequestError("job", "This is no number of a job.", "Export the LoRA again.")
        place = scratch.folder(settings.exports) / job.id
        # Of an earlier try.
        shutil.rmtree(place, ignore_errors=True)
        done = lora_export.run(
            order.name, order.form, settings, place, should_stop=control.should_stop
        )
        control.give(done)
        return done is not None

    return Kind(
        name=LORA_EXPORT,
        lane=Lane.DISK,
        resumes=False,
        run=run,
        write=asdict,
        read=_read,
        title=lambda order: f"Export the LoRA {order.name} ({forms.FORMS[order.form].label})",
        interrupted=("The studio was restarted during the export.", "Retry it; it begins anew."),
        most_each=1,
        forgotten=_discard,
    )


def _discard(entry: Entry) -> None:
    done: Path | None = entry.job.result
    if done is not None:
        shutil.rmtree(done.parent, ignore_errors=True)


def _read(payload: Any) -> LoraExportOrder:
    values = payload if isinstance(payload, dict) else {}
    name, form = values.get("name"), values.get("form")
    if not isinstance(name, str) or not isinstance(form, str):
        raise RequestError("loras", "This is no export of a LoRA.")
    return LoraExportOrder(name=name, form=form).checked()
