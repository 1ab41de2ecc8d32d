"""The models: rows of presets/models.toml, of `model.toml` files in the user's models folder, and
the released models of `hub_rows` as far as they were downloaded."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_manager import folders
from lora_manager.card import LoraUse
from lora_manager.library import LoraLibrary
from pipelines import sizes
from pipelines.denoising import samplers
from pipelines.errors import ModelError, RequestError, UnknownNameError, printable
from pipelines.models import hub_rows, hub_store, parts, single_files
from pipelines.models.hub_rows import Known
from pipelines.progress import plain_size

# A folder of LoRAs for whoever has none.
_NOWHERE = Path("/nonexistent")
ROOT = Path(__file__).resolve().parent.parent
ROW_FILE = "model.toml"
Cleaning = Literal["lower", "authors"]
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


class ModelSpec(BaseModel):
    """One model in diffusers layout and how it wants to be used.

    `tokens` is the text length it was trained with; `bins` names a table of presets/sizes.toml;
    `learned_variance` says whether the second half of the output channels was trained;
    `cleaning` is how the captions of its training were cleaned (`tokens.clean`);
    `distilled` names the sampler that the weights were distilled to. `places` says where parts lie
    that are not in `folder`, as a T5 that several models share. `sources` says where the parts of
    a released model come from, `family` which of PixArt's it belongs to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    title: str = Field(max_length=80)
    summary: str = Field(max_length=400)
    folder: Path
    licence: str = Field(max_length=200)
    tokens: int = Field(ge=2, le=512)
    bins: str
    size: str
    max_side: int = Field(ge=sizes.MIN_SIDE, le=sizes.MAX_SIDE)
    sampler: str = samplers.DEFAULT_SAMPLER
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, le=30, allow_inf_nan=False)
    learned_variance: bool = True
    distilled: Literal["lcm", "dmd"] | None = None
    cleaning: Cleaning = "lower"
    examples: tuple[str, ...] = ()
    embedded: bool = False
    family: Literal["alpha", "sigma"] = "alpha"
    places: Mapping[str, Path] = {}
    sources: tuple[hub_rows.HubSource, ...] = ()

    def part(self, name: str) -> Path:
        """The folder of one of `PARTS`."""
        return self.places.get(name, self.folder / name)

    @property
    def default_size(self) -> sizes.Size:
        """The size that a new picture gets."""
        return sizes.parse(self.size)

    @property
    def shapes(self) -> tuple[sizes.Size, ...]:
        """The sizes that the model was trained on."""
        return sizes.bins(self.bins)


class Catalog:
    """Every model that can be chosen. Reading it never touches weights.

    Released models that were not downloaded are known but cannot be chosen: `find` says how to
    get them, and they are not among the models that a catalog iterates over.
    """

    def __init__(self, *, user_models: Path | None = None, loras: Path | None = None) -> None:
        """`user_models` and `loras` are the user's folders of models and of LoRAs."""
        self._user_models = user_models
        self._loras = LoraLibrary(loras or _NOWHERE)
        self._refused: dict[str, str] = {}
        self._unlisted: tuple[str, ...] = ()
        self._rows: dict[str, ModelSpec] = {}
        self.reload()

    def reload(self) -> None:
        """Reads the rows again."""
        refused: dict[str, str] = {}
        unlisted = tuple(self._troubles())
        shipped = tomllib.loads((ROOT / "presets" / "models.toml").read_text("utf-8"))
        rows = {
            name: _row(
                {**row, "id": name, "embedded": True}, ROOT / "assets" / "models" / row["folder"]
            )
            for name, row in shipped.items()
        }
        for file in self._user_files():
            try:
                spec = _user_row(file)
            except ModelError as error:
                refused[file.parent.name] = str(error)
                continue
            if spec.id in rows:
                # A name that is taken already is found; the sentence is for the list of problems.
                refused[spec.id] = f"{file} is left out: another model is called “{spec.id}”."
                continue
            rows[spec.id] = spec
        self._add_downloaded(rows, refused)
        self._rows, self._refused, self._unlisted = rows, refused, unlisted
        self._loras.use(self._adapters(), unlisted)

    def _adapters(self) -> dict[str, Path]:
        """The downloaded LoRAs, where they lie."""
        if self._user_models is None:
            return {}
        store = hub_store.HubFolder(self._user_models / hub_store.FOLDER)
        rows = [
            row
            for row in store.installed()
            if hub_rows.known()[row.id].kind == "lora" and not store.lacks(row)
        ]
        folders = {row.id: store.places(row)["adapter"] for row in rows}
        return {
            name: next((file for file in files if file.is_file()), folder)
            for name, folder in folders.items()
            if (files := [folder / one for one in parts.ADAPTERS])
        }

    @property
    def loras(self) -> LoraLibrary:
        """The LoRAs that can be added to a model."""
        return self._loras

    def distilled_by(self, uses: Iterable[LoraUse]) -> str | None:
        """The sampler to which one of these LoRAs distills a model, None for ordinary ones."""
        for use in uses:
            row = hub_rows.known().get(use.name)
            # Somebody's own file may have the name of a released one.
            released = row is not None and self._loras.is_other(use.name)
            if row is not None and released and use.weight > 0 and "distilled" in row.row:
                return str(row.row["distilled"])
        return None

    def _add_downloaded(self, rows: dict[str, ModelSpec], refused: dict[str, str]) -> None:
        if self._user_models is None:
            return
        store = hub_store.HubFolder(self._user_models / hub_store.FOLDER)
        for row in store.installed():
            model = hub_rows.known()[row.id]
            if row.id in rows:
                refused[row.id] = f"The downloaded “{row.id}” is left out: a folder has its name."
            elif reason := store.lacks(row):
                refused[row.id] = (
                    f"The model “{row.id}” cannot be used: {reason}. "
                    f"Repair it with: launch.py models download {row.id}"
                )
            elif model.paints:
                rows[row.id] = downloaded(model, store.places(row))

    @property
    def problems(self) -> list[str]:
        """One sentence for each row, or folder, of the user's models that could not be read."""
        return [*self._unlisted, *self._refused.values()]

    @property
    def unlisted(self) -> tuple[str, ...]:
        """One sentence for each folder that may hold models and cannot be listed."""
        return self._unlisted

    def _troubles(self) -> Iterator[str]:
        if self._user_models is None:
            return
        hub = self._user_models / hub_store.FOLDER
        for folder in (self._user_models, hub, hub / hub_store.INSTALLED):
            if reason := folders.trouble(folder):
                yield f"The models in {folder} cannot be listed ({reason})."
                return

    def _user_files(self) -> list[Path]:
        if self._user_models is None:
            return []
        try:
            found = sorted(self._user_models.iterdir())
        except OSError:
            return []
        # A name that begins with a dot is a model in the making.
        own = [one for one in found if one.name != hub_store.FOLDER and one.name[0] != "."]
        return [folder / ROW_FILE for folder in own if _may_be_model(folder)]

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._rows.values())

    def find(self, model_id: str) -> ModelSpec:
        """The model called `model_id`.

        Raises ModelError for a folder whose row could not be read, where nobody can say which
        models there are, and for a released model that was not downloaded, UnknownNameError (with
        the nearest name) for anything else.
        """
        spec = self._rows.get(model_id)
        if spec is None and model_id in self._refused:
            raise ModelError(self._refused[model_id])
        if spec is None and self._unlisted:
            raise ModelError(self._unlisted[0], folders.WAY_OUT)
        if spec is None and model_id in hub_rows.known():
            raise _not_here(hub_rows.known()[model_id])
        if spec is None:
            # A released model that was downloaded is in both, and one name.
            names = dict.fromkeys([*self._rows, *hub_rows.known()])
            raise UnknownNameError("model", "model", model_id, names)
        return spec

    @property
    def default(self) -> ModelSpec:
        """The user's first model by name, else the first downloaded one, else what ships."""
        own = [spec for spec in self if not spec.embedded]
        return own[0] if own else next(iter(self))


def downloaded(model: Known, places: Mapping[str, Path]) -> ModelSpec:
    """The row of a released model whose parts lie at `places`. Raises ModelError."""
    values = {**model.row, "id": model.id, "places": places, "sources": model.parts}
    return _row(values, places["transformer"].parent)


def _not_here(model: Known) -> ModelError:
    size = plain_size(model.size, exact=model.exact)
    if model.kind in ("controlnet", "lora"):
        what = "a ControlNet" if model.kind == "controlnet" else "a LoRA"
        return ModelError(
            f"“{model.id}” is {what} and paints only together with a model.",
            f"Choose a model, e.g. {model.base}.",
        )
    return ModelError(
        f"The model “{model.id}” is not on this computer.",
        f"Download it with: launch.py models download {model.id} ({size})",
    )


def _row(values: dict[str, Any], folder: Path) -> ModelSpec:
    """A checked row. Raises ModelError that names what is wrong."""
    name = printable(values["id"])
    try:
        spec = ModelSpec.model_validate({**values, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"The row of model “{name}”: {where}: {first['msg']}.") from None
    if spec.bins not in sizes.names():
        raise ModelError(f"The row of model “{name}” names an unknown table of bins.")
    try:
        sampler = samplers.find(spec.sampler)
        samplers.check(
            sampler,
            steps=sampler.steps if spec.steps is None else spec.steps,
            guidance=sampler.guidance if spec.guidance is None else spec.guidance,
        )
        # What the page offers must be possible to ask for.
        for size in (spec.default_size, *spec.shapes):
            sizes.check(size, spec.max_side)
    except RequestError as error:
        raise ModelError(f"The row of model “{name}” is not possible: {error.message}") from None
    return spec


def _may_be_model(folder: Path) -> bool:
    """Whether `folder` holds a row, or cannot be looked into; then reading the row says why."""
    if os.path.isdir(folder) and os.access(folder, os.X_OK):
        return os.path.lexists(folder / ROW_FILE)
    return os.path.isdir(folder) or folder.is_symlink()


def _user_row(file: Path) -> ModelSpec:
    """The row in a model folder of the user; the folder's name is the id. Raises ModelError."""
    try:
        if file.stat().st_size > 100_000:
            raise ModelError(f"{file} is too large for a {ROW_FILE}.")
        row = tomllib.loads(file.read_text("utf-8"))
        fixed = {"id": file.parent.name, "embedded": False, "sources": ()}
        return checked_row({**row, **fixed}, file.parent)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = folders.trouble(file.parent) or printable(error, 120)
        raise ModelError(f"{file} cannot be read ({reason}).") from None
    except ValueError as error:
        raise ModelError(f"{file} is not a model row ({printable(error, 120)}).") from None


def checked_row(values: dict[str, Any], folder: Path) -> ModelSpec:
    """A row of a user's model in `folder`, as the catalog will list it. Raises ModelError."""
    spec = _row(values, folder)
    _check_places(spec)
    _check_links(spec)
    return spec


def _check_places(spec: ModelSpec) -> None:
    """Parts that a row says lie elsewhere do lie there. Raises ModelError."""
    for part, place in spec.places.items():
        if part not in PARTS:
            raise ModelError(
                f"The row of model “{spec.id}” gives a place to “{printable(part)}”, which is no"
                f" part of a model ({', '.join(PARTS)})."
            )
        if not place.is_absolute() or not place.is_dir():
            kind = "is no folder" if place.is_absolute() else "is not a full path"
            raise ModelError(
                f"The {part.replace('_', ' ')} of model “{spec.id}” should lie in"
                f" {printable(place, 200)}, which {kind}.",
                f"Put it back, or change [places] in its {ROW_FILE}.",
            )


def _check_links(spec: ModelSpec) -> None:
    """Weights that the model's folder only links to are still there and fit. Raises ModelError."""
    for part in ("text_encoder", "vae"):
        if reason := single_files.lost_link(spec.part(part), part):
            raise ModelError(
                f"The {part.replace('_', ' ')} of model “{spec.id}” {reason}.",
                f"Put it back, or import “{spec.id}” again.",
            )
