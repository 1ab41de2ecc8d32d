"""The verb `models`: what there is, what can be had, and giving it back."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import sweeping
from app.cli.convert import import_
from app.cli.options import UNLISTED, JsonOption, WorkspaceOption, YesOption
from app.cli.status import Status, agreed
from app.models import own_models
from app.models.store import ModelRow, ModelStore
from app.settings import Settings, workspace_path
from pipelines.progress import plain_size

if TYPE_CHECKING:
    from pipelines.models.downloads import DownloadPlan
    from pipelines.models.transfer import Reading

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    help="List, download, import and remove models.",
)

app.command("import")(import_)

INTERRUPTED = 130
_LOG_SECONDS = 30.0
_JSON_SECONDS = 1.0
_STATES = {
    "shipped": "ships with the studio",
    "own": "yours",
    "downloaded": "downloaded",
    "broken": "cannot be used",
    "known": "not here yet",
}

ModelArgument = Annotated[str, typer.Argument(help="A released model, by id.", metavar="ID")]
RemovedArgument = Annotated[
    str, typer.Argument(help="A downloaded model or one of your own, by id.", metavar="ID")
]


def _store(context: typer.Context, workspace: str | None) -> ModelStore:
    return ModelStore(Settings(workspace=workspace_path(workspace or context.obj)))


@app.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[
        bool, typer.Option("--all", help="Also the released models that are not here.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int:
    """Says which models can be used, and with --all which can be downloaded."""
    store = _store(context, workspace)
    rows = store.rows()
    shown = [row for row in rows if all_ or row.state != "known"]
    for problem in store.problems():
        print(problem, file=sys.stderr)
    for row in shown:
        print(json.dumps(row.as_json()) if as_json else "\n".join(_lines(row)))
    if not as_json and not all_:
        print(f"{len(rows) - len(shown)} more can be downloaded: launch.py models list --all")
    elif not as_json:
        for file in store.found.files:
            print(f"{file.what} ({plain_size(file.size)}) in {file.file}: {file.way()}")
    return UNLISTED if store.unlisted() else 0


def _lines(row: ModelRow) -> list[str]:
    size = plain_size(row.size, exact=row.exact or row.state != "known")
    lines = [f"{row.id:20} {row.title} ({_STATES[row.state]}, {size})"]
    if row.problem:
        lines.append(f"{'':20} {row.problem}")
    if row.state != "known":
        return lines
    here = [part.source.label for part in row.parts if part.folder is not None and part.inside]
    if here:
        lines.append(f"{'':20} here already: {', '.join(here)}")
    for part in row.parts:
        if part.folder is not None and not part.inside:
            lines.append(f"{'':20} used where it lies: {part.source.label} in {part.folder}")
    left = plain_size(row.left, exact=row.exact)
    lines.append(f"{'':20} to download: {left}. Licence: {row.licence}")
    return lines


@app.command()
def download(
    context: typer.Context,
    model: ModelArgument,
    yes: YesOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read what is here and repair damaged files.")
    ] = False,
    own_copy: Annotated[
        bool, typer.Option("--own-copy", help="Use nothing that other programs have.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Downloads a released model. The same command again goes on where an earlier one ended."""
    store = ModelStore(sweeping.writer(workspace or context.obj))
    status = Status(sys.stderr)
    report = _listener(status, as_json=as_json)
    try:
        plan = store.plan(model, check=check, own_copy=own_copy, report=report)
        status.clear()
        if plan is None:
            return INTERRUPTED
        _announce(plan, as_json=as_json)
        if plan.left and not yes and not agreed(f"Download {plain_size(plan.left)}?"):
            print("Nothing was downloaded.", file=sys.stderr)
            return None
        began, stop = time.monotonic(), _stop_on_interrupt()
        done = store.download(plan, report=report, should_stop=stop.is_set)
    finally:
        status.clear()
    if not done:
        print("What has arrived is kept; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    _finish(plan, time.monotonic() - began, as_json=as_json)
    return None


@app.command()
def remove(
    context: typer.Context,
    model: RemovedArgument,
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deletes a model: of a downloaded one what no other reads, of your own its folder."""
    settings = sweeping.writer(workspace or context.obj)
    if own_models.is_own(settings.models, model):
        _remove_own(settings.models, model, yes=yes, as_json=as_json)
        return
    store = ModelStore(settings)
    parts = store.removable(model)
    if not as_json:
        for part in parts:
            print(f"{part.label}: {part.repo}")
        for label, ids in store.kept(model).items():
            print(f"{label}: stays; it is read by {', '.join(f'“{name}”' for name in ids)}")
    names = ", ".join(part.label for part in parts) or "nothing but the entry"
    if not yes and not agreed(f"Remove “{model}” ({names})?"):
        print("Nothing was removed.", file=sys.stderr)
        return
    _tell_removed(model, store.remove(model), as_json=as_json)


def _remove_own(models: Path, model: str, *, yes: bool, as_json: bool) -> None:
    own = own_models.find(models, model)
    kind = "the link" if own.is_link else f"{plain_size(own.size)} in the folder"
    if not yes and not agreed(f"Remove “{model}” ({kind} {own.folder})?"):
        print("Nothing was removed.", file=sys.stderr)
        return
    _tell_removed(model, own_models.remove(models, model), as_json=as_json)


def _tell_removed(model: str, freed: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"model": model, "bytes_freed": freed}))
    else:
        print(f"“{model}” is removed; {plain_size(freed)} are free again.")


def _announce(plan: DownloadPlan, *, as_json: bool) -> None:
    """What is going to be downloaded, before anybody is asked."""
    model = plan.model
    if as_json:
        files = [
            {
                "path": item.entry.path,
                "repo": item.source.repo,
                "commit": item.commit,
                "bytes": item.entry.size,
                "bytes_left": item.left,
            }
            for item in plan.items
        ]
        _print(
            event="plan",
            model=model.id,
            licence=model.licence,
            bytes=plan.total,
            bytes_left=plan.left,
            bytes_to_convert=plan.spare,
            files=files,
            found={part: str(folder) for part, folder in plan.found.items()},
        )
        return
    print(f"{model.title}. Licence: {model.licence}")
    for source in model.parts:
        items = [item for item in plan.items if item.source.key == source.key]
        if folder := plan.found.get(source.part):
            print(f"  {source.label}: used where it lies, {folder}")
        else:
            left = sum(item.left for item in items)
            size = sum(item.entry.size for item in items)
            words = f"{left:,} of {size:,} bytes" if left else "here already"
            print(f"  {source.label}: {words}, {source.repo} at {items[0].commit[:10]}")
    print(f"To download: {plan.left:,} bytes ({plain_size(plan.left)}).", flush=True)
    for item in plan.originals:
        print(
            f"{item.source.file} is then converted to diffusers' layout and deleted; until that is"
            f" done, the disk needs {plain_size(item.entry.size)} more.",
            flush=True,
        )


def _listener(status: Status, *, as_json: bool) -> Callable[[Reading], None]:
    """A live line on a terminal, an object each second as JSON, now and then a line elsewhere."""
    told = time.monotonic()

    def report(reading: Reading) -> None:
        nonlocal told
        from pipelines.models.downloads import as_progress

        if not reading.file:
            return
        now = time.monotonic()
        if status.is_live and not as_json:
            status.show(as_progress(reading))
        elif now - told >= (_JSON_SECONDS if as_json else _LOG_SECONDS):
            told = now
            if as_json:
                _print(event="progress", **_values(reading))
            else:
                print(as_progress(reading).sentence(), file=sys.stderr, flush=True)

    return report


def _values(reading: Reading) -> dict[str, Any]:
    return {
        "file": reading.file,
        "file_bytes": reading.file_done,
        "file_total": reading.file_total,
        "bytes": reading.done,
        "total": reading.total,
        "bytes_per_second": round(reading.speed) if reading.speed else None,
        "seconds_left": round(reading.seconds_left, 1) if reading.seconds_left else None,
        "checking": reading.checking,
        "stage": reading.stage.name.lower(),
    }


def _finish(plan: DownloadPlan, seconds: float, *, as_json: bool) -> None:
    model = plan.model
    if as_json:
        _print(event="done", model=model.id, kind=model.kind, seconds=round(seconds, 3))
    elif model.paints:
        print(f"Ready. Paint with it: launch.py generate PROMPT --model {model.id}")
    elif model.kind == "lora":
        use = f"launch.py generate PROMPT --model {model.base} --lora {model.id}"
        print(f"“{model.id}” is here: {use}")
    else:
        print(f"“{model.id}” is here; it is a ControlNet for {model.base}.")


def _print(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _stop_on_interrupt() -> threading.Event:
    """The first Ctrl+C or SIGTERM asks for a stop, a second Ctrl+C ends at once."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop
