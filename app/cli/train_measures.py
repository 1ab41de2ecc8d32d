"""`train evaluate-subjects`, `train evaluate-style`: things taught here, and how well it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import sweeping
from app.cli.options import JsonOption, WorkspaceOption
from app.cli.status import Status
from app.cli.stopping import INTERRUPTED, stop_on_signals
from app.settings import make_folder, user_path
from pipelines.heavy_imports import importing_diffusers

if TYPE_CHECKING:
    from training.evaluation.teaching import Surroundings

OutArgument = Annotated[str, typer.Argument(help="Folder for pictures, trainings and figures.")]
SourceOption = Annotated[
    str, typer.Option(help="The npm package @lobehub/fluent-emoji-3d: folder or .tgz.")
]
BaseOption = Annotated[str, typer.Option("--base", help="The model that learns.", metavar="MODEL")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Changes a key of the recipe.", metavar="KEY=VALUE"),
]


def evaluate_subjects(
    context: typer.Context,
    out: OutArgument,
    source: SourceOption,
    subjects: Annotated[
        str, typer.Option(help="Held-out objects.", metavar="NAME,...")
    ] = "raccoon,teapot,snail",
    base: BaseOption = "nano",
    suffix: Annotated[
        str, typer.Option(help="Added to the names, where --set makes others.", metavar="TEXT")
    ] = "",
    set_: SetOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Teaches a model six photos of objects that it has never seen, and counts what it paints."""

    def work(around: Surroundings) -> tuple[str, Any] | None:
        from training.evaluation import subject_command
        from training.evaluation import subjects as measures

        order = subject_command.SubjectOrder(
            model=base,
            source=user_path(source),
            out=user_path(out),
            subjects=tuple(name.strip() for name in subjects.split(",")),
            changes=tuple(set_ or ()),
            suffix=suffix,
        )
        found = subject_command.run(order, around)
        if found is None:
            return None
        told = {name: measures.as_json(one) for name, one in found.items()}
        return measures.table(found), told

    return _measured(work, context, workspace, as_json=as_json)


def evaluate_style(
    context: typer.Context,
    out: OutArgument,
    source: SourceOption,
    base: BaseOption = "nano",
    set_: SetOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Teaches a model 40 line drawings, and looks whether new prompts come out as such."""

    def work(around: Surroundings) -> tuple[str, Any] | None:
        from dataclasses import asdict

        from training.evaluation import styles

        found = styles.run(base, user_path(source), user_path(out), tuple(set_ or ()), around)
        return None if found is None else (styles.table(found), asdict(found))

    return _measured(work, context, workspace, as_json=as_json)


def _measured(
    work: Callable[[Surroundings], tuple[str, Any] | None],
    context: typer.Context,
    workspace: str | None,
    *,
    as_json: bool,
) -> int | None:
    settings = sweeping.writer(workspace or context.obj)
    status = Status(sys.stderr)
    stop = stop_on_signals()
    # Here and not above: it loads torch.
    with importing_diffusers():
        from training.evaluation.teaching import Surroundings

    def tell(text: str) -> None:
        status.clear()
        print(text, file=sys.stderr, flush=True)

    around = Surroundings(
        models=settings.models,
        inputs=settings.inputs,
        cache=make_folder(settings.cache / "evaluation"),
        report=status.show,
        tell=tell,
        should_stop=stop.is_set,
    )
    try:
        found = work(around)
    finally:
        status.clear()
    if found is None:
        return INTERRUPTED
    table, told = found
    print(json.dumps(told) if as_json else table)
    return None
