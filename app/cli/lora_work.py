"""The verbs of `loras` that make something of LoRAs: export, merge, resize, compare and bake."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import sweeping
from app.cli.options import JsonOption, WorkspaceOption, YesOption
from app.cli.status import Status, agreed
from app.models import lora_work
from app.models.lora_work import MadeLora
from app.settings import Settings, make_folder, user_path, workspace_path
from lora_manager import card, forms
from lora_manager.card import LoraUse
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, model_errors
from pipelines.heavy_imports import before_torch

if TYPE_CHECKING:
    from lora_manager.algebra import Comparison, LayerComparison

_SHOWN = 10
UsesArgument = Annotated[
    list[str], typer.Argument(help="LoRAs by name, with their weights.", metavar="NAME[:WEIGHT]...")
]
NameOption = Annotated[str, typer.Option("--name", help="What the new LoRA is called.")]


def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A LoRA, by name.")],
    out: Annotated[str, typer.Option(help="A file or folder to write.", metavar="PATH")],
    form: Annotated[str, typer.Option(help=", ".join(forms.FORMS), metavar="FORM")] = "diffusers",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there already.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Writes a LoRA as other programs read it."""
    catalog = _catalog(Settings(workspace=workspace_path(workspace or context.obj)))
    before_torch()
    row, path = lora_work.export(catalog.loras, name, form, user_path(out), overwrite=overwrite)
    if as_json:
        told = {"name": name, "form": row.name, "path": str(path), "read_by": row.read_by}
        print(json.dumps(told))
    else:
        print(path)
        print(f"{row.label}: read by {row.read_by}.", file=sys.stderr)


def merge(
    context: typer.Context,
    loras: UsesArgument,
    name: NameOption,
    rank: Annotated[
        int | None, typer.Option(help="Cut to this rank; default: exact.", metavar="N")
    ] = None,
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Makes one LoRA of several with their weights."""
    catalog = _catalog(sweeping.writer(workspace or context.obj))
    uses = _uses(loras)
    if not sure(uses, yes=yes):
        print("Nothing was merged.", file=sys.stderr)
        return
    before_torch()
    _tell(lora_work.merge(catalog, uses, name, rank=rank), as_json=as_json)


def resize(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A LoRA, by name.", metavar="NAME")],
    rank: Annotated[int, typer.Option(help="Its new rank.", metavar="N")],
    name: NameOption,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Makes a copy of a LoRA with a smaller rank, and says how much that loses."""
    catalog = _catalog(sweeping.writer(workspace or context.obj))
    before_torch()
    _tell(lora_work.resize(catalog.loras, source, name, rank), as_json=as_json)


def compare(
    context: typer.Context,
    one: Annotated[str, typer.Argument(help="A LoRA, by name, or a file.", metavar="A")],
    other: Annotated[str, typer.Argument(help="Another one.", metavar="B")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Says how far two LoRAs are apart, layer by layer."""
    catalog = _catalog(Settings(workspace=workspace_path(workspace or context.obj)))
    before_torch()
    found = lora_work.compare(catalog.loras, one, other)
    if as_json:
        print(json.dumps(_compared_json(found)))
        return
    for line in _compared_lines(found):
        print(line)


def bake(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, by id.", metavar="MODEL")],
    loras: UsesArgument,
    id_: Annotated[str, typer.Option("--id", help="The id of the new model.", metavar="NAME")],
    title: Annotated[str | None, typer.Option(help="Its name for people.")] = None,
    precision: Annotated[
        str, typer.Option(help="keep, bf16, fp16 or fp32.", metavar="KIND")
    ] = "keep",
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Makes a new model of a model and LoRAs; the model itself stays as it is."""
    settings = sweeping.writer(workspace or context.obj)
    catalog = _catalog(settings)
    uses = _uses(loras)
    if not sure(uses, yes=yes):
        print("Nothing was baked.", file=sys.stderr)
        return
    status = Status(sys.stderr)
    before_torch()
    # Here and not above: only this verb pays for what it loads.
    from app.models import baking

    wanted = baking.BakeOptions(id=id_, title=title, precision=precision)
    try:
        spec = baking.bake(
            catalog,
            catalog.find(model),
            uses,
            make_folder(settings.models),
            wanted,
            report=lambda done, total: status.text(f"Baking, {done} of {total} tensors"),
        )
    finally:
        status.clear()
    if as_json:
        print(json.dumps({"id": spec.id, "path": str(spec.folder), "title": spec.title}))
    else:
        print(spec.id)
        print(f"{spec.summary} Paint with: generate PROMPT --model {spec.id}", file=sys.stderr)


def sure(uses: Iterable[LoraUse], *, yes: bool) -> bool:
    """Asks once more about weights far from those that LoRAs are made for.

    False where the answer is no. Raises RequestError where nobody can be asked.
    """
    unusual = card.unusual(uses)
    if yes or not unusual:
        return True
    if not sys.stdin.isatty():
        raise RequestError("loras", unusual, "Add --yes if that is what you want.")
    return agreed(f"{unusual} Go on?")


def _uses(texts: Iterable[str]) -> tuple[LoraUse, ...]:
    with model_errors():
        found = card.parse(",".join(texts))
    if not found:
        raise RequestError("loras", "No LoRA is named.", "Give one as NAME:WEIGHT.")
    return found


def _catalog(settings: Settings) -> Catalog:
    return Catalog(user_models=settings.models, loras=settings.loras)


def _tell(made: MadeLora, *, as_json: bool) -> None:
    found = made.card
    if as_json:
        told: dict[str, Any] = {"name": found.name, "path": str(found.file), "rank": found.rank}
        print(json.dumps(told | {"size": found.size, "relative_error": made.error}))
        return
    print(f"“{found.name}” is here, with the rank {found.rank}; {made.lost}.")


def _compared_json(found: Comparison) -> dict[str, Any]:
    def row(layer: LayerComparison) -> dict[str, Any]:
        figures = {"difference": layer.difference, "cosine": layer.cosine}
        return {"layer": layer.path, "norms": list(layer.norms), **figures}

    total = row(found.total)
    del total["layer"]
    return {
        "only_first": list(found.only[0]),
        "only_second": list(found.only[1]),
        "other_sizes": list(found.misfits),
        "total": total,
        "layers": [row(layer) for layer in found.layers],
    }


def _compared_lines(found: Comparison) -> Iterable[str]:
    for place, paths in (
        ("the first", found.only[0]),
        ("the second", found.only[1]),
    ):
        if paths:
            yield f"Changed only by {place} ({len(paths)}): {_some(paths)}"
    if found.misfits:
        yield (
            f"Changed by both in other sizes ({len(found.misfits)}), as for models of other"
            f" widths: {_some(found.misfits)}"
        )
    if not found.layers:
        yield "They have no layer in common that could be compared."
        return
    yield f"{'layer':44} {'norm':>10} {'norm':>10} {'apart':>9} {'cosine':>8}"
    for layer in (*found.layers, found.total):
        name = layer.path or f"all {len(found.layers)} that both change"
        yield (
            f"{name:44} {layer.norms[0]:10.4g} {layer.norms[1]:10.4g}"
            f" {100 * layer.difference:7.2f} % {layer.cosine:8.4f}"
        )


def _some(paths: tuple[str, ...]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
