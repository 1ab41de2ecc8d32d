"""The result of a recipe -> a model of the catalog, in diffusers layout with a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from safetensors import SafetensorError
from transformers import T5EncoderModel

from lora_manager import drafts
from pipelines import files
from pipelines.catalog import ROW_FILE, Catalog, Cleaning
from pipelines.errors import SaveError, TrainingError, printable
from pipelines.models.loader import quiet
from training import publish_lora, stages
from training.bases import Base
from training.config import STAGE_PREFIX, PublishConfig, RunConfig, TrainingRecipe
from training.loop.checkpoint import sync_folder
from training.objective import LINEAR, TIMESTEPS

MADE_BY = "training.json"


def finished(
    recipe: TrainingRecipe, root: Path, catalog: Catalog, *, models: Path, loras: Path
) -> Path | None:
    """Publishes what the recipe has trained below `root`: a model into `models`, a LoRA into
    `loras`. Returns where it is now, None where the recipe does not say how. Raises StudioError."""
    last = recipe.stages[-1]
    if last.row.published == "loras":
        folder = stages.folder_of(root, recipe, last.name)
        return publish_lora.publish(recipe, folder, loras)
    return publish(recipe, stages.results(recipe, root, catalog), models)


def check(
    recipe: TrainingRecipe, config: RunConfig, data: str, *, models: Path, loras: Path
) -> None:
    """Looks whether the result of `config`, a stage of `recipe` on pictures with the digest `data`,
    may be published under its name later. Raises SaveError, ModelError."""
    row, last = recipe.publish, recipe.stages[-1]
    if row is None:
        return
    if last.row.published != "loras":
        _check_free(models / row.id)
    elif config == last:
        publish_lora.check(row.id, config, data, loras)


def publish(recipe: TrainingRecipe, results: Mapping[str, Base], models: Path) -> Path | None:
    """Puts the model of a finished recipe into `models`; returns its folder.

    `results` says where "transformer", "vae" and "text" lie. A model that an earlier
    training published under the same id is replaced; any other one is not. None where the recipe
    does not say how to publish. Raises SaveError, TrainingError.
    """
    row = recipe.publish
    if row is None:
        return None
    target = models / row.id
    _check_free(target)
    last = recipe.stages[-1]
    drafts.sweep(models)
    draft, old = drafts.beside(target), drafts.beside(target, "old")
    try:
        draft.mkdir(parents=True)
        _write_parts(row, results, draft)
        cleaning = results["text"].cleaning
        files.write(draft / ROW_FILE, _row(row, last, cleaning).encode())
        files.write(draft / "README.md", _card(recipe, row).encode())
        story = {"recipe": _travelling(recipe)}
        files.write(draft / MADE_BY, (json.dumps(story, indent=1) + "\n").encode())
        sync_folder(draft)
        if target.exists():
            target.rename(old)
        draft.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"The model cannot be written to {target} ({printable(error, 120)}).",
            "Free some space and give the same command again.",
        ) from None
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _check_free(target: Path) -> None:
    if target.exists() and not (target / MADE_BY).is_file():
        raise SaveError(
            f"{target} is a model that was not trained here, so it is not replaced.",
            "Give the recipe another publish.id.",
        )


def _travelling(recipe: TrainingRecipe) -> dict[str, Any]:
    """The recipe without the folders of this machine: of a literal base only its name is kept."""
    told = recipe.model_dump(mode="json")
    for stage in told["stages"]:
        for name, base in stage["base"].items():
            if base and not base.startswith(STAGE_PREFIX):
                stage["base"][name] = Path(base).name
    return told


def _write_parts(row: PublishConfig, results: Mapping[str, Base], folder: Path) -> None:
    dtype = getattr(torch, row.precision)
    kinds: tuple[tuple[str, str, Any], ...] = (
        ("transformer", "transformer", PixArtTransformer2DModel),
        ("vae", "vae", AutoencoderKL),
        ("text", "text_encoder", T5EncoderModel),
    )
    for name, part, cls in kinds:
        source = results[name].part(part)
        if not source.is_dir():
            raise TrainingError(f"The recipe has no {part} to publish: {source} is missing.")
        with quiet():
            net = cls.from_pretrained(source, local_files_only=True, use_safetensors=True).to(dtype)
        # A name of this machine has no place in a model that travels.
        net.config._name_or_path = ""
        if hasattr(net, "register_to_config"):
            net.register_to_config(_name_or_path="")
        with quiet():
            net.save_pretrained(folder / part)
    _copy_tokenizer(results["text"].part("tokenizer"), folder / "tokenizer")
    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=TIMESTEPS, **LINEAR)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "PixArtAlphaPipeline",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    files.write(folder / "model_index.json", (json.dumps(index, indent=1) + "\n").encode())


def _copy_tokenizer(source: Path, target: Path) -> None:
    """A tokenizer as the readers of models find it: a folder, also of a lone vocabulary."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.mkdir()
        shutil.copyfile(source, target / source.name)


def _row(row: PublishConfig, last: RunConfig, cleaning: Cleaning) -> str:
    """model.toml: JSON's strings, numbers, booleans and lists are TOML's too."""
    values: dict[str, Any] = {
        "title": row.title,
        "summary": row.summary,
        "licence": row.licence,
        "tokens": last.data.tokens,
        "bins": row.bins,
        "size": row.size,
        "max_side": row.max_side,
        "learned_variance": last.objective.variational > 0,
        "cleaning": cleaning,
        "examples": list(row.examples),
    }
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()
    )


def _card(recipe: TrainingRecipe, row: PublishConfig) -> str:
    lines = [f"# {row.title}", "", row.summary, "", f"Licence: {row.licence}.", ""]
    lines += ["| stage | method | updates | pictures per update |", "|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.method} | {s.steps:,} | {s.pictures_per_update} |" for s in recipe.stages
    ]
    if row.examples:
        lines += ["", "Try:", "", *(f"- {example}" for example in row.examples)]
    return "\n".join(lines) + "\n"
