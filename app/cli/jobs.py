"""The verb `jobs`: what waits, runs and has ended in a workspace, also while its page runs."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, NoReturn

import typer

from app.cli.options import JsonOption, WorkspaceOption
from app.gallery.pictures import Gallery
from app.jobs import table
from app.jobs.job import PAINT, JobState
from app.jobs.kinds import Lane
from app.jobs.listing import ListedJob, listed
from app.jobs.orders import PLACES, PRIORITIES
from app.jobs.queue import PAUSED, JobQueue
from app.jobs.store import JobStore
from app.settings import Settings, workspace_path
from pipelines.errors import BusyError, RequestError, SaveError, StudioError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    help="List the jobs of a workspace, stop them and change their order, also while it runs.",
)
# A running studio answers within a second; one that loads a model may take a little longer.
_ANSWER_SECONDS, _POLL_SECONDS = 10.0, 0.05
# How often is looked whether it was another command that had the jobs.
_HOLDER_SECONDS = 0.5
_SHOWN_ENDED = 20
JobArgument = Annotated[str, typer.Argument(help="The beginning of its number.", metavar="JOB")]


@app.command("list")
def list_(
    context: typer.Context, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Says what runs, what waits in its order, and what has ended, the last first."""
    settings = Settings(workspace=workspace_path(workspace or context.obj))
    store = JobStore(settings.jobs)
    there = store.file.exists()
    rows = store.load() if there else []
    if rows is None:
        raise SaveError(store.problem)
    paused = there and bool(store.noted(PAUSED))
    store.close()
    lanes = {kind.name: kind.lane for kind in table.kinds(settings)}
    jobs = listed(rows, lanes | {PAINT: Lane.DEVICE})
    if as_json:
        for job in jobs:
            print(json.dumps(job.as_json()))
        return
    ended = [job for job in jobs if not job.active]
    for job in [*(job for job in jobs if job.active), *ended[:_SHOWN_ENDED]]:
        print(_line(job))
    active = len(jobs) - len(ended)
    rest = "; the queue is paused" if paused else ""
    print(f"{active} waiting or running, {len(ended)} ended{rest}.", file=sys.stderr)


@app.command()
def stop(
    context: typer.Context,
    job: JobArgument,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stops a job; what it has finished stays."""
    _ask(context, workspace, as_json, verb="stop", job=job)


@app.command()
def retry(
    context: typer.Context,
    job: JobArgument,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lets a job that was stopped, interrupted or has failed go on with what is not there yet."""
    _ask(context, workspace, as_json, verb="retry", job=job)


@app.command()
def duplicate(
    context: typer.Context,
    job: JobArgument,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queues the same once more, behind everything else of its owner."""
    _ask(context, workspace, as_json, verb="duplicate", job=job)


@app.command()
def move(
    context: typer.Context,
    job: JobArgument,
    place: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(PLACES)}.", metavar="PLACE")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(PRIORITIES)}.", metavar="NAME")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Gives a waiting job another place among those of its owner, or another priority."""
    if place is None and priority is None:
        raise RequestError("place", "Say where to: a PLACE, or a --priority.")
    if priority is not None:
        _ask(context, workspace, as_json, verb="priority", job=job, value=priority)
    if place is not None:
        _ask(context, workspace, as_json, verb="move", job=job, value=place)


@app.command()
def pause(
    context: typer.Context, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Lets no waiting job begin; what runs goes on."""
    _ask(context, workspace, as_json, verb="pause")


@app.command()
def resume(
    context: typer.Context, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Lets waiting jobs begin again."""
    _ask(context, workspace, as_json, verb="resume")


def _ask(
    context: typer.Context,
    workspace: str | None,
    as_json: bool,
    *,
    verb: str,
    job: str = "",
    value: str = "",
) -> None:
    """Asks the studio that runs; where none does, it is done here."""
    settings = Settings(workspace=workspace_path(workspace or context.obj))
    store = JobStore(settings.jobs)
    if not store.file.exists():
        raise RequestError("job", f"There are no jobs in {store.file.parent}.")
    try:
        asked = None if store.hold() else _asked(store, verb, job, value)
        said = asked if asked is not None else _done_here(store, settings, verb, job, value)
    finally:
        store.close()
    print(json.dumps({"verb": verb, "job": job, "said": said}) if as_json else said)


def _done_here(store: JobStore, settings: Settings, verb: str, job: str, value: str) -> str:
    gallery, kinds = Gallery(settings.outputs), table.kinds(settings)
    queue = JobQueue(_NoRunner(), store, gallery, kinds=kinds, runs=False)
    try:
        if store.problem:
            raise SaveError(store.problem)
        return queue.obey(verb, job, value)
    finally:
        queue.close()


def _asked(store: JobStore, verb: str, job: str, value: str) -> str | None:
    """What the running studio answers; None where the jobs are held by this process now, because
    it was no studio, or has ended. Raises StudioError where it refuses."""
    number = store.order(verb, job, value)
    if number is None:
        raise SaveError(store.problem)
    answer, now = None, time.monotonic()
    end, look = now + _ANSWER_SECONDS, now + _HOLDER_SECONDS
    try:
        while (answer := store.answered(number)) is None and now < end:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if now > look:
                look = now + _HOLDER_SECONDS
                if store.hold():
                    break
    finally:
        # Nobody waits for it any more: it is not to happen later.
        withdrawn = answer is None and store.withdraw(number)
    if store.held and withdrawn:
        return None
    answer = answer or store.answered(number)
    if answer is None:
        raise BusyError("The running studio does not answer.", "Look at its window, or log.")
    said, refused = answer
    if refused:
        raise StudioError(said)
    return said


class _NoRunner:
    """Nothing is painted here."""

    def paint(self, *_: Any, **__: Any) -> NoReturn:
        """Never called: the queue does not run."""
        raise AssertionError("a queue that does not run has begun a job")


def _line(job: ListedJob) -> str:
    when = str(job.as_json()["created"] or "")[5:16].replace("T", " ")
    error = f"  ({job.error})" if job.error and job.state != JobState.DONE else ""
    count = f"{job.done} of {job.total}" if job.total else ""
    if job.kind != PAINT:
        count = f"{100 * job.done // job.total} %" if job.total and job.active else ""
    # What a job asks for may come from anywhere: nothing in it reaches the terminal as a command.
    return f"{job.id[:8]}  {job.state:11}  {when}  {count:9}  {job.kind}  {job.title}{error}"
