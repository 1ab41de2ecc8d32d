"""The LoRA of a finished training -> the library, with what is known of it in its metadata."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from lora_manager import card, files, headers
from lora_manager.errors import LoraError
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.errors import SaveError, TrainingError, model_errors, printable
from training.config import RunConfig, TrainingRecipe
from training.data import features
from training.loop import checkpoint
from training.methods.adapted import of_weights
from training.methods.lora import RESULT, identity
from training.run import Run

THUMBNAIL = "modelspec.thumbnail"
_SHEET = 512
"""Pixels of the longest side of the sheet in the file."""


def publish(recipe: TrainingRecipe, folder: Path, loras: Path) -> Path | None:
    """Puts the LoRA of the run in `folder` into `loras`; returns its file.

    One that the same run published before is replaced, any other one is not. None where the recipe
    does not say how to publish. Raises SaveError, TrainingError, ModelError.
    """
    row, config = recipe.publish, recipe.stages[-1]
    if row is None:
        return None
    result = folder / "result" / RESULT
    if not result.is_file():
        raise TrainingError(f"The stage “{config.name}” is not finished.", "Train it to its end.")
    target = loras / f"{row.id}.safetensors"
    try:
        with model_errors():
            noted = dict(headers.read(result).metadata)
            _check_free(row.id, noted.get(card.RUN, ""), loras)
            loras.mkdir(parents=True, exist_ok=True)
            noted |= {
                card.TITLE: row.title,
                card.TRIGGER: row.trigger or _trigger(config),
                card.LICENCE: row.licence,
            }
            sheet = _before_and_after(Run(folder, config))
            if sheet is not None:
                noted[THUMBNAIL] = sheet
            files.write(target, files.read(result), noted)
    except OSError as error:
        raise SaveError(
            f"The LoRA cannot be written to {target} ({printable(error.strerror or error, 120)}).",
            "Free some space and give the same command again.",
        ) from None
    return target


def checkpoint_id(recipe: TrainingRecipe, step: int) -> str:
    """What the LoRA of a checkpoint is called."""
    assert recipe.publish is not None
    return f"{recipe.publish.id[:60]}-at-{step}"


def publish_checkpoint(
    recipe: TrainingRecipe, folder: Path, step: int, loras: Path, catalog: Catalog
) -> Path:
    """Puts what the run in `folder` had learned at a checkpoint into `loras`; returns its file.

    One that was put there before from the same checkpoint is replaced. Raises SaveError,
    TrainingError, ModelError.
    """
    config = recipe.stages[-1]
    if recipe.publish is None or config.row.result != "lora":
        raise TrainingError(f"The stage “{config.name}” makes no LoRA that is published.")
    saved = checkpoint.read(folder / "checkpoints" / f"step-{step:08d}")
    tensors = saved.tensors("ema" if saved.has("ema") else "model")
    lora = of_weights(tensors, config.lora)
    name = checkpoint_id(recipe, step)
    base = next((spec for spec in catalog if spec.id == config.base.model), None)
    run = f"{folder.parent.name}/{folder.name}/{step}"
    noted = {
        card.BASE: config.base.model or "",
        card.TITLE: f"{recipe.publish.title}, update {step:,}",
        card.TRIGGER: recipe.publish.trigger or _trigger(config),
        card.LICENCE: recipe.publish.licence,
        card.RUN: run,
        "pixart_studio.steps": str(step),
        "pixart_studio.seed": str(config.seed),
    }
    if base is not None:
        noted["pixart_studio.base_weights"] = features.weights_digest(base.part("transformer"))
    target = loras / f"{name}.safetensors"
    try:
        with model_errors():
            _check_free(name, run, loras)
            loras.mkdir(parents=True, exist_ok=True)
            files.write(target, lora, noted)
    except OSError as error:
        raise SaveError(
            f"The LoRA cannot be written to {target} ({printable(error.strerror or error, 120)}).",
            "Free some space and try again.",
        ) from None
    return target


def check(name: str, config: RunConfig, data: str, loras: Path) -> None:
    """Looks whether the LoRA of `config`, learned from pictures with the digest `data`, may be
    called `name`. Raises SaveError, ModelError."""
    with model_errors():
        _check_free(name, identity(config, data), loras)


def _check_free(name: str, mine: str, loras: Path) -> None:
    target = loras / f"{name}.safetensors"
    if not target.exists():
        LoraLibrary(loras).check_free(name)
    elif _run_of(target) != mine:
        raise SaveError(
            f"There is a LoRA called “{name}” that this training has not made.",
            "Rename or delete that one and go on, or take another name: --name, or publish.id in"
            " the recipe.",
        )


def _run_of(file: Path) -> str:
    try:
        return headers.read(file).metadata.get(card.RUN, "?")
    except LoraError:
        return "?"


def _trigger(config: RunConfig) -> str:
    return config.subject.subject if "subject" in config.row.optional else ""


def _before_and_after(run: Run) -> str | None:
    """The first sample sheet above the last one, as the address of a picture; None without any."""
    steps = [event["step"] for event in run.events("preview")]
    sheets = [file for step in sorted(set(steps)) if (file := run.preview(step)).is_file()]
    if not sheets:
        return None
    pictures = []
    for file in dict.fromkeys((sheets[0], sheets[-1])):
        with Image.open(file) as opened:
            pictures.append(opened.convert("RGB"))
    height = sum(picture.height for picture in pictures)
    result = Image.new("RGB", (max(p.width for p in pictures), height))
    top = 0
    for picture in pictures:
        result.paste(picture, (0, top))
        top += picture.height
    result.thumbnail((_SHEET, _SHEET), Image.Resampling.LANCZOS)
    data = BytesIO()
    result.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
