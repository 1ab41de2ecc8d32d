"""The verbs `convert` and `models import`: weights from elsewhere, and back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app import sweeping
from app.cli.options import WorkspaceOption
from app.cli.status import Status
from app.models.rows import ImportOptions
from app.settings import make_folder, user_path
from pipelines.errors import UnknownNameError
from pipelines.heavy_imports import before_torch, importing_torch
from pipelines.progress import plain_size

if TYPE_CHECKING:
    from pipelines.models.convert import SavedPrecision
    from pipelines.models.weights import Choice

CHOICES = ("auto", "ema", "raw")
PRECISIONS = ("keep", "bf16", "fp16", "fp32")
DISTILLED = ("lcm", "dmd")

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
WeightsOption = Annotated[
    str, typer.Option(help="auto (averaged weights if there are any), ema or raw.", metavar="KIND")
]
PrecisionOption = Annotated[str, typer.Option(help="keep, bf16, fp16 or fp32.", metavar="KIND")]
HeadOption = Annotated[
    int | None,
    typer.Option(help="Channels of an attention head, where the file hides it.", metavar="N"),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(help="Side in pixels it was trained for, where the file hides it.", metavar="N"),
]
ScaleOption = Annotated[
    float | None,
    typer.Option(help="Interpolation scale, where the file hides it.", metavar="F"),
]


def convert(
    source: Annotated[str, typer.Argument(help="A .pth, a .safetensors or a folder.")],
    destination: Annotated[str, typer.Argument(help="A name ending with .pth, or a new folder.")],
    weights: WeightsOption = "auto",
    precision: PrecisionOption = "keep",
    head_dim: HeadOption = None,
    image_size: ImageSizeOption = None,
    interpolation_scale: ScaleOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turns the original code's .pth into diffusers' layout, or back."""
    _check_words(weights, precision)
    status = Status(sys.stderr)
    # Here and not above: only a command that converts pays for loading torch.
    with importing_torch():
        from pipelines.models import convert as converting
        from pipelines.models.sources import ReadOptions

    options = ReadOptions(
        weights=cast("Choice", weights),
        head_dim=head_dim,
        image_size=image_size,
        interpolation_scale=interpolation_scale,
    )
    try:
        made = converting.convert(
            user_path(source),
            user_path(destination),
            options,
            precision=cast("SavedPrecision", precision),
            overwrite=overwrite,
            report=_counting(status, "Converting"),
        )
    finally:
        status.clear()
    if as_json:
        told: dict[str, Any] = {
            "path": str(made.path),
            "layout": made.layout,
            "family": made.design.family,
            "weights": "ema" if made.averaged else "raw",
            "interpolation_scale": made.design.interpolation_scale,
            "micro_conditions": made.design.sizes.micro_conditions,
            "null_caption": made.null_caption,
        }
        print(json.dumps(told))
        return
    print(made.path)
    print(f"It is {made.design.family}.", file=sys.stderr)
    if made.null_caption == "drawn":
        print(
            "The source has no null caption, so one was drawn as the original code does.",
            file=sys.stderr,
        )


def import_(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A folder, a .safetensors or a .pth.")],
    id_: Annotated[
        str | None, typer.Option("--id", help="Its name here; default: its file's.", metavar="NAME")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Its name for people.")] = None,
    licence: Annotated[str | None, typer.Option(help="What its licence is called.")] = None,
    vae: Annotated[
        str | None,
        typer.Option(help="Take the VAE from this model, folder or file.", metavar="ID|PATH"),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Take T5 from this model, folder or file.", metavar="ID|PATH"),
    ] = None,
    distilled: Annotated[
        str | None, typer.Option(help="Distilled to few steps: lcm or dmd.", metavar="KIND")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Text length it was trained with.", metavar="N")
    ] = None,
    learned_variance: Annotated[
        bool | None,
        typer.Option(
            "--learned-variance/--fixed-variance", help="Whether it was trained with variances."
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Leave big folders where they are.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy single files instead of linking to them.")
    ] = False,
    weights: WeightsOption = "auto",
    precision: PrecisionOption = "keep",
    head_dim: HeadOption = None,
    image_size: ImageSizeOption = None,
    interpolation_scale: ScaleOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Makes a model from elsewhere one of your own: a folder, a .safetensors or a .pth."""
    _check_words(weights, precision)
    if distilled is not None and distilled not in DISTILLED:
        raise UnknownNameError("distilled", "distillation", distilled, DISTILLED)
    settings = sweeping.writer(workspace or context.obj)
    status = Status(sys.stderr)
    before_torch()
    from app.models import importing

    wanted = ImportOptions(
        id=id_,
        title=title,
        licence=licence,
        vae=vae,
        text=text,
        distilled=cast("Any", distilled),
        tokens=tokens,
        learned_variance=learned_variance,
        in_place=in_place,
        copy_files=copy,
        weights=cast("Choice", weights),
        precision=cast("SavedPrecision", precision),
        head_dim=head_dim,
        image_size=image_size,
        interpolation_scale=interpolation_scale,
    )
    try:
        spec = importing.import_model(
            user_path(path),
            make_folder(settings.models),
            wanted,
            _counting(status, "Importing"),
            copying=lambda done, total: status.text(
                f"Copying, {plain_size(done)} of {plain_size(total)}"
            ),
        )
    finally:
        status.clear()
    if as_json:
        told: dict[str, Any] = {"id": spec.id, "path": str(spec.folder), "title": spec.title}
        told |= {"tokens": spec.tokens, "size": spec.size, "sampler": spec.sampler}
        told |= {"places": {name: str(place) for name, place in spec.places.items()}}
        print(json.dumps(told))
    else:
        print(spec.id)
        print(f"{spec.summary} Paint with: generate PROMPT --model {spec.id}", file=sys.stderr)


def _check_words(weights: str, precision: str) -> None:
    for name, word, known in (("weights", weights, CHOICES), ("precision", precision, PRECISIONS)):
        if word not in known:
            raise UnknownNameError(name, f"kind of {name}", word, known)


def _counting(status: Status, doing: str) -> Any:
    def report(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            status.text(f"{doing}, {done} of {total} tensors")

    return report
