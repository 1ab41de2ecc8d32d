"""An import in a process of its own: it loads torch and foreign files, and the page does neither.

Page -> process: anything, which means stop; so does a page that is gone.
Process -> page: {"event": "progress" | "done" | "failed" | "stopped", ...}.
"""

from __future__ import annotations

import _thread
import json
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from app.models import importing
from app.models.rows import ImportOptions
from app.painting.process import log_to
from app.settings import Settings, make_folder
from lora_manager import drafts
from pipelines.catalog import Catalog
from pipelines.errors import (
    LoraFileError,
    RequestError,
    StudioError,
    WorkerError,
    cause_of_death,
    model_errors,
    printable,
)
from pipelines.memory.planning import before_torch
from pipelines.progress import ShouldStop

Message = dict[str, Any]
Tell = Callable[[str, int, int], None]
"""Called with what is done ("convert", "copy"), and how much of how much of it."""

_POLL_SECONDS = 0.05
# A tensor of the largest model is read in less; a disk that hangs is not waited for.
_STOP_SECONDS = 15.0
_SEND_SECONDS = 0.1


def run(
    source: Path,
    wanted: ImportOptions,
    settings: Settings,
    *,
    tell: Tell,
    should_stop: ShouldStop,
) -> str | None:
    """Imports `source`; the new model's id, or None where it was stopped before it had a model.

    Nothing is left of it then, nor after a failure. Raises StudioError.
    """
    models = make_folder(settings.models)
    model_id = importing.free_id(source, Catalog(user_models=models), models, wanted)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=main,
        args=(
            theirs,
            str(settings.workspace),
            str(source),
            replace(wanted, id=model_id),
            wanted.id,
        ),
        name="pixart-import",
        daemon=True,
    )
    try:
        process.start()
    except OSError as error:
        raise WorkerError(f"The import could not be started ({error.strerror}).") from None
    finally:
        theirs.close()
    try:
        last = _followed(ours, process, tell, should_stop)
    finally:
        ours.close()
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()
        # A process that was killed could not do so itself.
        for folder in (models, settings.loras):
            drafts.sweep(folder)
    if last is None or last["event"] == "stopped":
        # The end may come when the model has its name already.
        if (models / model_id).is_dir():
            return model_id
        if last is not None:
            return None
        raise WorkerError(
            f"The import ended unexpectedly ({cause_of_death(process.exitcode)}).",
            f"The reason may be in {settings.logs / 'import.log'}.",
        )
    if last["event"] == "done":
        return str(last.get("model", model_id))
    if last["field"]:
        raise RequestError(last["field"], last["message"], last["way_out"])
    raise StudioError(last["message"], last["way_out"])


def _followed(
    ours: Connection, process: BaseProcess, tell: Tell, should_stop: ShouldStop
) -> Message | None:
    """The last word of the process; None where it died, and nobody had asked it to stop."""
    asked: float | None = None
    try:
        while True:
            if asked is None and should_stop():
                asked = time.monotonic()
                # Where it has just ended, its last word is still to be read.
                with suppress(OSError):
                    ours.send_bytes(b"stop")
            if asked is not None and time.monotonic() - asked > _STOP_SECONDS:
                process.kill()
            if not ours.poll(_POLL_SECONDS):
                continue
            message: Message = json.loads(ours.recv_bytes())
            if message["event"] != "progress":
                return message
            tell(message["stage"], message["done"], message["total"])
    except (EOFError, OSError):
        return None if asked is None else {"event": "stopped"}


def main(
    connection: Connection, workspace: str, source: str, wanted: ImportOptions, asked: str | None
) -> None:
    """Runs in the process. Whoever stops it finds nothing of the model left behind.

    `asked` is the id that somebody has chosen, if any.
    """
    # Where Ctrl+C is ignored, as in the background of a shell, a stop would be, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = Settings(workspace=Path(workspace))
    log_to(settings.logs / "import.log")
    threading.Thread(target=_obey, args=(connection,), daemon=True).start()
    # The page may be gone, and then nobody wants to know.
    with suppress(OSError):
        try:
            _send(connection, _import(connection, settings, Path(source), wanted, asked))
        except KeyboardInterrupt:
            _send(connection, {"event": "stopped"})


def _import(
    connection: Connection,
    settings: Settings,
    source: Path,
    wanted: ImportOptions,
    asked: str | None,
) -> Message:
    told = 0.0

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done == total or now - told > _SEND_SECONDS:
            told = now
            values = {"stage": stage, "done": done, "total": total}
            _send(connection, {"event": "progress", **values})

    try:
        before_torch()
        try:
            importing.import_model(
                source,
                make_folder(settings.models),
                wanted,
                lambda done, total: tell("convert", done, total),
                copying=lambda done, total: tell("copy", done, total),
            )
        except LoraFileError:
            return {"event": "done", "model": _import_lora(settings, source, wanted, asked)}
    except StudioError as error:
        field = error.field if isinstance(error, RequestError) else ""
        said = {"message": error.message, "way_out": error.way_out}
        return {"event": "failed", "field": field, **said}
    # One of the few outermost seams: a fault of ours must not end without a word.
    except Exception as error:
        logging.exception("an import failed")
        told_where = f"The details are in {settings.logs / 'import.log'}."
        fault = f"The import failed through a fault of the studio ({printable(error, 160)})."
        return {"event": "failed", "field": "", "message": fault, "way_out": told_where}
    return {"event": "done"}


def _import_lora(settings: Settings, source: Path, wanted: ImportOptions, asked: str | None) -> str:
    """Brings a LoRA in that was given as a model; what it is called. Raises ModelError."""
    library = Catalog(user_models=settings.models, loras=settings.loras).loras
    texts = {"title": wanted.title or "", "licence": wanted.licence or ""}
    with model_errors():
        return library.import_(source, asked, **texts).name


def _obey(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    _thread.interrupt_main()


def _send(connection: Connection, message: Message) -> None:
    connection.send_bytes(json.dumps(message).encode())
