"""A model and LoRAs -> a new model of the catalog, that paints the same without them.

Only the transformer is written; the other parts stay where those of the model lie, and the new row
says so. The model itself is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from app.models import importing, lora_work, rows
from app.models.rows import ImportOptions
from lora_manager import card
from lora_manager.card import LoraUse
from pipelines import files, lora_fit
from pipelines.catalog import PARTS, ROW_FILE, Catalog, ModelSpec
from pipelines.denoising import samplers
from pipelines.errors import RequestError, UnknownNameError, model_errors, printable
from pipelines.heavy_imports import importing_diffusers
from pipelines.models import weights_digest

if TYPE_CHECKING:
    from pipelines.models.convert import CountReport, SavedPrecision

MADE_BY = "baked.json"
PRECISIONS = ("keep", "bf16", "fp16", "fp32")
_OWN = ("folder", "id", "embedded", "places", "sources")


@dataclass(frozen=True, kw_only=True)
class BakeOptions:
    """The id of the new model, its title (None: made of the model's), and how its transformer is
    saved."""

    id: str
    title: str | None = None
    precision: str = "keep"


def bake(
    catalog: Catalog,
    model: ModelSpec,
    uses: Sequence[LoraUse],
    models: Path,
    wanted: BakeOptions,
    report: CountReport = lambda done, total: None,
) -> ModelSpec:
    """Makes `models`/<id> of `model` with the LoRAs in its weights; returns its row.

    Raises RequestError, ModelError, SaveError; nothing is left in `models` then.
    """
    model_id = check(catalog, model, uses, models, wanted)
    used, place = [use for use in uses if use.weight], model.part("transformer")
    with model_errors():
        values = _row(catalog, model, used, wanted)
    with importing_diffusers():
        from pipelines.models import baking, convert, loader, sources

    places = {part: model.part(part).resolve() for part in PARTS if part != "transformer"}
    values["places"] = {part: str(folder) for part, folder in places.items()}
    spec = rows.checked(values, model_id, models)
    with model_errors(), sources.opened(place, sources.ReadOptions()) as stored:
        weighted = lora_work.weighted(catalog.loras, used)
        net = baking.baked(stored, weighted, cast("SavedPrecision", wanted.precision))
        story = {
            "model": model.id,
            "weights": weights_digest.digest(place),
            "loras": [_told(catalog, use) for use in used],
        }
        with files.whole(models / model_id, convert.size(net, "keep"), replaces=False) as draft:
            draft.mkdir()
            convert.write_folder(net, draft, "keep", report)
            net.check_moved()
            loader.check(spec.model_copy(update={"folder": draft}))
            (draft / MADE_BY).write_text(json.dumps(story, indent=1) + "\n", "utf-8")
            (draft / ROW_FILE).write_text(rows.text(values), "utf-8")
    catalog.reload()
    return catalog.find(model_id)


def check(
    catalog: Catalog,
    model: ModelSpec,
    uses: Sequence[LoraUse],
    models: Path,
    wanted: BakeOptions,
) -> str:
    """The id of the new model, if it can be made as far as is seen without reading numbers.

    Raises RequestError, ModelError.
    """
    if wanted.precision not in PRECISIONS:
        raise UnknownNameError("precision", "kind of precision", wanted.precision, PRECISIONS)
    used = [use for use in uses if use.weight]
    if not used:
        raise RequestError("loras", "No LoRA has a weight, so the model would stay as it is.")
    model_id = importing.free_id(
        model.part("transformer"), catalog, models, ImportOptions(id=wanted.id)
    )
    with model_errors():
        for use in used:
            lora_fit.check(catalog.loras.find(use.name), model, catalog)
    return model_id


def _row(
    catalog: Catalog, model: ModelSpec, uses: Sequence[LoraUse], wanted: BakeOptions
) -> dict[str, Any]:
    """The row of the model, with what the LoRAs change in it."""
    with_them = f"with {card.written(uses)}"
    values = model.model_dump(mode="json", exclude=set(_OWN), exclude_none=True)
    values["title"] = printable(wanted.title or f"{model.title} {with_them}", 80)
    values["summary"] = printable(f"{model.title} {with_them} in its weights.", 400)
    said = (catalog.loras.find(use.name).licence for use in uses)
    licences = dict.fromkeys([model.licence, *filter(None, said)])
    values["licence"] = printable(" and ".join(licences), 200)
    distilled = catalog.distilled_by(uses)
    if distilled is not None:
        row = samplers.find(distilled)
        values |= {"distilled": distilled, "sampler": row.id, "learned_variance": False}
        values |= {"steps": row.steps, "guidance": row.guidance}
    return values


def _told(catalog: Catalog, use: LoraUse) -> dict[str, Any]:
    content = catalog.loras.content_hash(use.name)
    return {"name": use.name, "weight": use.weight, "sha256": content}
