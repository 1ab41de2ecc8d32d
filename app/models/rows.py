"""The row of a model that is imported: what its files tell, and the defaults of its family."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines import sizes
from pipelines.catalog import ROW_FILE, ModelSpec, checked_row
from pipelines.denoising import samplers
from pipelines.errors import ModelError, printable

if TYPE_CHECKING:
    from pipelines.models.convert import SavedPrecision
    from pipelines.models.original_layout import Design
    from pipelines.models.weights import Choice


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the user says about a model. None: what its files tell, else the family's default.

    `vae` and `text` name another model of the catalog, a folder, or a single file: the model gets a
    link to it, or with `copy_files` a copy. `in_place` leaves the source's folders where they are.
    """

    id: str | None = None
    title: str | None = None
    licence: str | None = None
    vae: str | None = None
    text: str | None = None
    distilled: Literal["lcm", "dmd"] | None = None
    tokens: int | None = None
    learned_variance: bool | None = None
    in_place: bool = False
    copy_files: bool = False
    weights: Choice = "auto"
    precision: SavedPrecision = "keep"
    head_dim: int | None = None
    image_size: int | None = None
    interpolation_scale: float | None = None


def values_of(
    design: Design, source: Path, wanted: ImportOptions, index: Mapping[str, Any]
) -> dict[str, Any]:
    """The row: as the source's own row has it, else the family's defaults, then the options."""
    from pipelines.models.original_layout import SIGMA_TOKENS, TOKENS

    side = design.side
    tables = [name for name in sizes.names() if name.isdigit()]
    bins = max((n for n in tables if int(n) <= side), key=int, default=min(tables, key=int))
    # The original class without multi-scale training paints squares only.
    single = not design.sizes.micro_conditions and not (design.is_sigma and side > 256)
    if single and f"{bins}-square" in sizes.names():
        bins = f"{bins}-square"
    longest = max(max(size.width, size.height) for size in sizes.bins(bins))
    distilled = wanted.distilled
    if distilled is None and index.get("scheduler") == ["diffusers", "LCMScheduler"]:
        distilled = "lcm"
    values: dict[str, Any] = {
        "title": printable(source.resolve().stem, 80),
        "summary": printable(f"{design.family}, imported from {source.name}.", 400),
        "licence": "not stated",
        "family": "sigma" if design.is_sigma else "alpha",
        "tokens": design.tokens or (SIGMA_TOKENS if design.is_sigma else TOKENS),
        "bins": bins,
        "size": f"{side}x{side}",
        "max_side": min(max(2 * side, longest), sizes.MAX_SIDE),
        "learned_variance": design.sizes.out_channels == 2 * design.sizes.in_channels
        and distilled is None,
    }
    own = _own_row(source) if source.is_dir() else {}
    if not own and not design.is_sigma:
        # No studio's own: the released models, or trained from them.
        values["cleaning"] = "authors"
    values |= own
    if distilled is not None:
        row = samplers.find(distilled)
        values |= {"distilled": distilled, "sampler": row.id}
        values |= {"steps": row.steps, "guidance": row.guidance}
    given = {
        "title": wanted.title,
        "licence": wanted.licence,
        "tokens": wanted.tokens,
        "learned_variance": wanted.learned_variance,
    }
    return values | {key: value for key, value in given.items() if value is not None}


def _own_row(source: Path) -> dict[str, Any]:
    """The row that another studio's folder brings along, without what is of that machine."""
    file = source / ROW_FILE
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > 100_000:
            raise ModelError(f"{file} is too large for a {ROW_FILE}.")
        row = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({printable(error, 120)}).") from None
    own = {"id", "folder", "embedded", "places", "sources"}
    return {key: value for key, value in row.items() if key not in own}


def checked(values: Mapping[str, Any], model_id: str, models: Path) -> ModelSpec:
    """The row as the catalog will read it. Raises ModelError."""
    try:
        text(values).encode()
    except UnicodeEncodeError:
        raise ModelError("The path of a part holds characters that are no text.") from None
    return checked_row({**values, "id": model_id, "embedded": False}, models / model_id)


def text(values: Mapping[str, Any]) -> str:
    """model.toml: JSON's strings, numbers, booleans and lists are TOML's too."""
    plain = {key: value for key, value in values.items() if key != "places"}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items()]
    if values.get("places"):
        lines += ["", "[places]"]
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in sorted(values["places"].items())
        ]
    return "\n".join(lines) + "\n"
