"""The verb `gallery`: what was painted, found again and taken along."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from app import sweeping
from app.cli.options import JsonOption, WorkspaceOption
from app.cli.status import Status
from app.gallery.exports import export as exporting
from app.gallery.exports import formats
from app.gallery.index import GalleryIndex, IndexedPicture
from app.gallery.tables import LISTED
from app.settings import Settings, real_path, workspace_path
from lora_manager import folders
from pipelines.errors import RequestError, SaveError, printable
from pipelines.progress import Progress, Stage, plain_size

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    help="List, search and export the pictures that were painted.",
)

INTERRUPTED = 130
_SHOWN = 50

LimitOption = Annotated[
    str | None,
    typer.Option(help=f"At most so many, 0 for all; default: {_SHOWN}, all with --json."),
]


def _index(context: typer.Context, workspace: str | None) -> GalleryIndex:
    settings = Settings(workspace=workspace_path(workspace or context.obj))
    _check_readable(settings.outputs)
    return GalleryIndex(settings.outputs, settings.index)


def _check_readable(outputs: Path) -> None:
    """Raises SaveError where nobody can say which pictures there are."""
    if reason := folders.trouble(outputs):
        words = f"The pictures in {outputs} cannot be read ({reason})."
        raise SaveError(words, folders.WAY_OUT)


def _synced(index: GalleryIndex) -> GalleryIndex:
    """`index` with everything that came and went."""
    status = Status(sys.stderr)
    try:
        index.sync(count=lambda read: status.show(_reading(read)))
    finally:
        status.clear()
    _tell_missing(index)
    return index


def _tell_missing(index: GalleryIndex) -> None:
    if problem := index.problem():
        print(problem, file=sys.stderr)


def _reading(read: int) -> Progress:
    return Progress(stage=Stage.INDEXING, note=f"{read:,}")


@app.command("list")
def list_(
    context: typer.Context,
    limit: LimitOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the pictures, the newest first."""
    _print(_synced(_index(context, workspace)), "", limit, as_json)


@app.command()
def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help='E.g. "cat -dog model:nano date:2026-11".')],
    limit: LimitOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the pictures that a query finds, the newest first."""
    _print(_synced(_index(context, workspace)), query, limit, as_json)


@app.command()
def rebuild(
    context: typer.Context, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Reads every picture anew, should the index not tell the truth any more."""
    index, status = _index(context, workspace), Status(sys.stderr)
    try:
        total = index.rebuild(lambda read: status.show(_reading(read)))
    finally:
        status.clear()
    _tell_missing(index)
    print(json.dumps({"pictures": total}) if as_json else f"{_pictures(total)} in the index.")


@app.command()
def export(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="The new file, or folder, to write.", metavar="PATH")],
    format: Annotated[
        str, typer.Option(help=f"{', '.join(formats.FORMATS)}.", metavar="FORMAT")
    ] = "zip",
    search: Annotated[
        str | None, typer.Option(help="Only what this query finds.", metavar="QUERY")
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(help="Only these, by name or path, with commas between.", metavar="NAMES"),
    ] = None,
    strip: Annotated[bool, typer.Option("--strip", help="Leave the recipes out.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Writes pictures as a zip, a contact sheet, a web page or a training set."""
    formats.find(format)
    if search is not None and ids:
        raise RequestError("ids", "Give --search or --ids, not both.")
    sweeping.writer(workspace or context.obj)
    index = _synced(_index(context, workspace))
    chosen = index.find(_names(ids)) if ids else index.search(search or "").entries
    if not chosen:
        raise RequestError("search", "No picture is found, so there is nothing to export.")
    status, stop = Status(sys.stderr), threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    began = time.monotonic()
    try:
        done = exporting.export(
            chosen,
            real_path(out),
            format,
            strip=strip,
            report=status.show,
            should_stop=stop.is_set,
        )
    finally:
        status.clear()
    if done is None:
        return INTERRUPTED
    for sentence in done.left_out:
        print(sentence, file=sys.stderr)
    if as_json:
        told = {"path": str(done.path), "pictures": done.count, "bytes": done.bytes}
        print(json.dumps(told | {"seconds": round(time.monotonic() - began, 3)}))
    else:
        print(f"{_pictures(done.count)}, {plain_size(done.bytes)}: {done.path}")
    return 0


def _names(given: Sequence[str]) -> list[str]:
    """Names of pictures, also where whole paths were given, as `generate` prints them."""
    parts = [part.strip() for text in given for part in text.split(",") if part.strip()]
    return ["/".join(part.replace("\\", "/").split("/")[-2:]) for part in parts]


def _print(index: GalleryIndex, query: str, limit: str | None, as_json: bool) -> None:
    most = _limit(limit, 0 if as_json else _SHOWN)
    found = index.search(query, limit=most)
    for entry in found.entries:
        print(json.dumps(_json(entry)) if as_json else _line(entry))
    if not as_json:
        few = len(found.entries) < found.total
        rest = f"; {len(found.entries)} are shown, --limit 0 shows all" if few else ""
        print(f"{_pictures(found.total)}{rest}.", file=sys.stderr)


def _limit(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise RequestError("limit", f"“{text[:40]}” is not a number of pictures.")
    return int(text)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count:,} pictures"


def _line(entry: IndexedPicture) -> str:
    star = "*" if entry.starred else " "
    if entry.request is None:
        return f"{star} {entry.name}  ({entry.problem})"
    request = entry.request
    # A recipe may come from anywhere: nothing in it reaches the terminal as a command.
    model, prompt = printable(request.model), printable(request.prompt)
    return f"{star} {entry.name}  {request.width}x{request.height}  {model}  {prompt}"


def _json(entry: IndexedPicture) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": entry.name,
        "path": str(entry.path),
        "created": entry.created,
        "bytes": entry.size,
        "starred": entry.starred,
        "weights": entry.weights,
    }
    if entry.request is None:
        return told | {"problem": entry.problem}
    plain = ("prompt", "negative", "style", "model", "sampler", "steps", "guidance")
    known = (*plain, "width", "height", "seed")
    fields = (*known, *(name for name in LISTED if name not in (*known, "loras")))
    told |= {field: getattr(entry.request, field) for field in fields}
    hashes = dict(entry.record.lora_hashes) if entry.record is not None else {}
    loras = [
        {"name": use.name, "weight": use.weight, "sha256": hashes.get(use.name, "")}
        for use in entry.request.loras
    ]
    return told | {"loras": loras}
