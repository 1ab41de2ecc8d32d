"""The verb `loras`: small additions to a model, brought in, listed and given up."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from app import sweeping
from app.cli import lora_work
from app.cli.options import UNLISTED, JsonOption, WorkspaceOption, YesOption
from app.cli.status import agreed
from app.settings import Settings, user_path, workspace_path
from lora_manager.card import LoraCard
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.errors import model_errors
from pipelines.heavy_imports import before_torch
from pipelines.progress import plain_size

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    help="List, import, export, merge and remove LoRAs, and bake them into a model.",
)


def _library(settings: Settings) -> LoraLibrary:
    return Catalog(user_models=settings.models, loras=settings.loras).loras


@app.command("list")
def list_(
    context: typer.Context, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> int:
    """Says which LoRAs can be added to a model."""
    library = _library(Settings(workspace=workspace_path(workspace or context.obj)))
    cards = library.cards()
    for problem in library.problems():
        print(problem, file=sys.stderr)
    for card in cards:
        print(json.dumps(_json(card)) if as_json else _line(card))
    if library.unlisted():
        return UNLISTED
    if not cards and not as_json:
        print("There are no LoRAs yet. Bring one in with: launch.py loras import FILE")
    return 0


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A .safetensors, or a folder of PEFT.")],
    name: Annotated[
        str | None, typer.Option(help="What it is called; default: made of its name.")
    ] = None,
    title: Annotated[str, typer.Option(help="For people.")] = "",
    trigger: Annotated[str, typer.Option(help="Words that call it in a prompt.")] = "",
    licence: Annotated[str, typer.Option(help="Under which it was published.")] = "",
    base: Annotated[str, typer.Option(help="The model that it was trained on.")] = "",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copies a LoRA into the workspace, whatever form it has."""
    library = _library(sweeping.writer(workspace or context.obj))
    before_torch()
    with model_errors():
        card = library.import_(
            user_path(source), name, title=title, trigger=trigger, licence=licence, base=base
        )
    for note in card.notes:
        print(note, file=sys.stderr)
    if as_json:
        print(json.dumps(_json(card)))
    else:
        print(f"“{card.name}” is here: launch.py generate PROMPT --lora {card.name}")


app.command()(lora_work.export)
app.command()(lora_work.merge)
app.command()(lora_work.resize)
app.command()(lora_work.compare)
app.command()(lora_work.bake)


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A LoRA, by name.")],
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deletes a LoRA from the disk."""
    library = _library(sweeping.writer(workspace or context.obj))
    with model_errors():
        file, size = library.place(name)
        if not yes and not agreed(f"Remove “{name}” ({plain_size(size)}, {file})?"):
            print("Nothing was removed.", file=sys.stderr)
            return
        freed = library.remove(name)
    told = {"name": name, "bytes": freed}
    print(json.dumps(told) if as_json else f"“{name}” is removed; {plain_size(freed)} are free.")


def _line(card: LoraCard) -> str:
    layers = "1 layer" if card.modules == 1 else f"{card.modules} layers"
    kind = ["DoRA"] if card.is_dora else []
    facts = [*kind, f"rank {card.rank}", layers, plain_size(card.size)]
    if card.base:
        facts.append(f"for {card.base}")
    if card.trigger:
        facts.append(f"say “{card.trigger}”")
    return f"{card.name:24} {', '.join(facts)}"


def _json(card: LoraCard) -> dict[str, Any]:
    sizes = ("size", "rank", "modules", "width", "is_dora")
    fields = ("name", "title", *sizes, "base", "trigger", "licence")
    told: dict[str, Any] = {"path": str(card.file)}
    return told | {field: getattr(card, field) for field in fields}
