"""The kind of job that imports a model or a LoRA, in a process of its own.

Nothing is left of one that was stopped, failed or was ended by a restart: it begins anew.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from app.jobs.entry import Entry
from app.jobs.kinds import MAX_NUMBER, JobControl, Kind, Lane, announce, count_of, with_result
from app.models import import_process
from app.models.rows import ImportOptions
from app.settings import Settings
from pipelines.errors import RequestError, printable

IMPORT = "import"
_MAX_PATH, _MAX_TEXT = 4096, 1000


@dataclass(frozen=True, kw_only=True)
class ImportOrder:
    """What is imported: a file or folder, what is said of it, and its bytes, 0 where unknown."""

    source: Path
    options: ImportOptions
    size: int = 0

    @property
    def name(self) -> str:
        """The name of the file or folder, for people."""
        return printable(self.source.name or self.source, 80)


def kind(settings: Settings, changed: Callable[[], None]) -> Kind:
    """The row of the table. `changed` is called after a model came, before the end is told."""

    def run(control: JobControl) -> bool:
        order: ImportOrder = control.entry.job.payload
        model = import_process.run(
            order.source,
            order.options,
            settings,
            report=control.report,
            should_stop=control.should_stop,
        )
        if model is not None:
            control.give(model)
        announce(changed)
        return model is not None

    return Kind(
        name=IMPORT,
        lane=Lane.DISK,
        resumes=False,
        run=run,
        write=lambda order: asdict(order) | {"source": str(order.source)},
        read=_read,
        title=lambda order: f"Import {order.name}",
        interrupted=("The studio was restarted during the import.", "Retry it; it begins anew."),
        keep=lambda entry: {"model": entry.job.result or ""},
        restore=_restore,
        timing=_timing,
        units=lambda entry: entry.job.payload.size or None,
    )


def _timing(order: ImportOrder) -> str:
    """What the time of a byte depends on."""
    way = "in place" if order.options.in_place else "copied"
    return f"{platform.node()}|{IMPORT}|{order.source.suffix.lower()}|{way}"


def _restore(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    model = kept.get("model", "")
    return with_result(entry, model[:_MAX_TEXT] if isinstance(model, str) and model else None)


def _read(payload: Any) -> ImportOrder:
    values = payload if isinstance(payload, dict) else {}
    source, given, size = (values.get(name) for name in ("source", "options", "size"))
    if not isinstance(source, str) or not 0 < len(source) <= _MAX_PATH or "\x00" in source:
        raise RequestError("path", "This is no path.")
    path = Path(source)
    if not path.is_absolute() or not isinstance(given, dict):
        raise RequestError("path", "This is no import.")
    options = {field.name: _option(given.get(field.name, field.default)) for field in _OPTIONS}
    return ImportOrder(source=path, options=ImportOptions(**options), size=count_of(size) or 0)


_OPTIONS = fields(ImportOptions)


def _option(value: Any) -> Any:
    """A value of JSON that an option may have; the import itself checks what it means."""
    number = isinstance(value, int | float) and abs(value) <= MAX_NUMBER
    plain = value is None or number
    if not plain and not (isinstance(value, str) and len(value) <= _MAX_TEXT):
        raise RequestError("options", "These are no options of an import.")
    return value
