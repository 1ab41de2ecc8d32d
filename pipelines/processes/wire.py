"""What crosses the pipe between the studio and its child processes: JSON, and nothing is unpickled.

An error keeps its class and its field, so that whoever waits for a child handles its failures as
those of a function that was called.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from pipelines import errors
from pipelines.errors import RequestError, StudioError
from pipelines.progress import Progress, Stage

Message = dict[str, Any]
_KINDS: dict[str, type[StudioError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, StudioError)
}


def error_fields(error: StudioError) -> Message:
    """`error` as JSON: its class, its sentences, and its field where it has one."""
    # A class that is private to a module crosses as the nearest one that everybody knows.
    kind = next(k.__name__ for k in type(error).__mro__ if _KINDS.get(k.__name__) is k)
    said = {"kind": kind, "message": error.message, "way_out": error.way_out}
    return said | ({"field": error.field} if isinstance(error, RequestError) else {})


def error_of(fields: Message) -> StudioError:
    """The error that `error_fields` described; of a class that is not known, a StudioError."""
    kind = _KINDS.get(str(fields.get("kind")), StudioError)
    message, way_out = str(fields.get("message", "")), str(fields.get("way_out", ""))
    # Not by calling the class: some build their sentences themselves.
    error = kind.__new__(kind)
    if isinstance(error, RequestError):
        RequestError.__init__(error, str(fields.get("field", "")), message, way_out)
    else:
        StudioError.__init__(error, message, way_out)
    return error


def progress_fields(progress: Progress) -> Message:
    """`progress` as JSON."""
    preview = progress.preview
    return asdict(progress) | {"preview": base64.b64encode(preview).decode() if preview else None}


def progress_of(fields: Message) -> Progress:
    """The progress that `progress_fields` described."""
    preview = fields["preview"]
    shown = base64.b64decode(preview) if preview else None
    return Progress(**fields | {"stage": Stage(fields["stage"]), "preview": shown})
