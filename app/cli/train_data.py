"""What `train` does besides training: data to learn from, and how good a model is."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from app import sweeping
from app.cli.options import JsonOption, WorkspaceOption
from app.cli.status import Status
from app.cli.stopping import INTERRUPTED, stop_on_signals
from app.settings import make_folder, user_path
from pipelines import files
from pipelines.errors import RequestError, printable
from pipelines.heavy_imports import importing_diffusers
from pipelines.pictures import png


def scenes(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="The npm package @lobehub/fluent-emoji-3d: folder or .tgz.")
    ],
    out: Annotated[str, typer.Argument(help="Folder for the pictures.")],
    count: Annotated[int, typer.Option(help="How many pictures.", metavar="N")] = 1000,
    size: Annotated[int, typer.Option(help="Side in pixels.", metavar="N")] = 128,
    kinds: Annotated[
        str, typer.Option(help="Kinds of scenes with their weights.", metavar="KIND=F,...")
    ] = "single=1,placed=1,pair=1",
    bins: Annotated[
        str | None, typer.Option(help="Sizes to draw from: a table of sizes.", metavar="NAME")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every picture.", metavar="N")] = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="The objects that training never sees.")
    ] = False,
) -> int | None:
    """Draws scenes of emoji with dense captions: the data of the small model."""
    from pipelines import sizes
    from training.scenes.build import build

    if bins is not None and bins not in sizes.names():
        raise RequestError("bins", f"There is no table of sizes called “{printable(bins)}”.")
    table = [(s.width, s.height) for s in sizes.bins(bins)] if bins else None
    status = Status(sys.stderr)
    stop = stop_on_signals()

    def report(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            status.text(f"Drawing, {done:,} of {total:,}")

    try:
        built = build(
            user_path(source),
            user_path(out),
            count=count,
            size=size,
            kinds=_weights(kinds),
            seed=seed,
            bins=table,
            held_out=held_out,
            report=report,
            should_stop=stop.is_set,
        )
    finally:
        status.clear()
    print(built.out)
    return None if built.complete else INTERRUPTED


def _weights(text: str) -> dict[str, float]:
    result = {}
    for part in text.split(","):
        name, equals, weight = part.partition("=")
        try:
            result[name.strip()] = float(weight) if equals else 1.0
        except ValueError:
            raise RequestError(
                "kinds", f"“{printable(part)}” is not of the form kind=weight."
            ) from None
    return result


def check(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="Folder, list or .zip with pictures.")],
    captions: Annotated[bool, typer.Option(help="Captions are required.")] = True,
    min_side: Annotated[int, typer.Option(help="Smallest side in pixels.", metavar="N")] = 16,
    bins: Annotated[
        str | None, typer.Option(help="Show what a table of sizes cuts off.", metavar="NAME")
    ] = None,
    as_json: JsonOption = False,
) -> int | None:
    """Looks at every picture and says what a training would refuse, handle or cut off."""
    from pipelines import sizes
    from training.data import archives, buckets, lint

    if bins is not None and bins not in sizes.names():
        raise RequestError("bins", f"There is no table of sizes called “{printable(bins)}”.")
    status = Status(sys.stderr)
    stop = stop_on_signals()
    rules = lint.PictureRules(min_side=min_side, captions_required=captions)
    source = user_path(data)
    try:
        if source.suffix.lower() == ".zip" and source.is_file():
            folder = make_folder(sweeping.writer(context.obj).cache / "archives")
            source, problems = archives.kept(source, folder, stop.is_set)
            for problem in problems:
                print(problem.sentence, file=sys.stderr)
        found = lint.scan(
            source,
            rules,
            lambda done, total: status.text(f"Checking, {done:,} of {total:,}"),
            stop.is_set,
        )
    finally:
        status.clear()
    if as_json:
        for problem in found.problems:
            print(
                json.dumps(
                    {
                        "path": problem.path,
                        "code": problem.code,
                        "rejected": problem.rejected,
                        "sentence": problem.sentence,
                    }
                )
            )
        print(json.dumps({"usable": len(found.samples)}))
    else:
        lines = lint.table(found)
        if lines:
            print(lint.as_text(lines))
        print(f"{len(found.samples):,} pictures can be used.")
        if bins is not None and found.samples:
            for sentence in buckets.sentences(
                buckets.assign(found.samples, sizes.bins(bins), minimum=1)
            ):
                print(sentence)
    return None if found.complete else INTERRUPTED


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's id, or its folder.")],
    source: Annotated[
        str, typer.Option(help="The npm package @lobehub/fluent-emoji-3d: folder or .tgz.")
    ],
    limit: Annotated[
        int | None, typer.Option(help="Only the first prompts of the lists.", metavar="N")
    ] = None,
    lists: Annotated[
        str | None, typer.Option(help="Only these lists of prompts.", metavar="NAME,...")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Write the pictures as one sheet.", metavar="PNG")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Paints fixed lists of prompts and counts what is right: objects, colours, places."""
    settings = sweeping.writer(workspace or context.obj)
    sheet = user_path(grid) if grid else None
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise RequestError("grid", f"“{printable(grid)}” does not end with .png.")
    status = Status(sys.stderr)
    stop = stop_on_signals()
    with importing_diffusers():
        from PIL import Image

        from training.evaluation import command, measure, prompts

    chosen = tuple(lists.split(",")) if lists else prompts.LISTS
    pictures: list[Image.Image] = []
    try:
        report = command.run(
            model,
            user_path(source),
            workspace_models=settings.models,
            inputs=settings.inputs,
            cache=make_folder(settings.cache / "evaluation"),
            limit=limit,
            lists=chosen,
            report=status.show,
            should_stop=stop.is_set,
            keep=pictures.append,
        )
    finally:
        status.clear()
    if sheet is not None and pictures:
        asked = [one for one in prompts.all_prompts() if one.list in chosen]
        files.write(sheet, png(measure.grid(pictures, asked[: len(pictures)])))
    print(json.dumps(measure.as_json(report)) if as_json else measure.table(report))
    return None if report.complete else INTERRUPTED
