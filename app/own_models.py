"""Giving up a model of one's own: one that was imported, trained here, or put into the folder.

The models that ship have no folder there, and what was downloaded is the matter of `model_store`.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines import hub_store
from pipelines.catalog import PARTS, ROW_FILE, Catalog
from pipelines.errors import ModelError, SaveError, printable


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A folder of the user's models. `size` in bytes; 0 for a link, whose target stays."""

    id: str
    folder: Path
    size: int
    is_link: bool


def is_own(models: Path, model_id: str) -> bool:
    """True where `model_id` is a folder in `models` that holds a row, a readable one or not."""
    plain = Path(model_id).name == model_id and not model_id.startswith(".")
    plain = plain and model_id != hub_store.FOLDER
    return plain and (models / model_id / ROW_FILE).is_file()


def find(models: Path, model_id: str) -> OwnModel:
    """What removing `model_id` would delete.

    Raises ModelError for a model that is not the user's, and for one whose parts others read.
    """
    if not is_own(models, model_id):
        raise ModelError(
            f"“{printable(model_id)}” is not a model of your own, so it cannot be removed.",
            "The model that ships with the studio stays.",
        )
    folder = models / model_id
    home = folder.resolve()
    for spec in Catalog(user_models=models):
        used = [part for part in PARTS if spec.part(part).resolve().is_relative_to(home)]
        if used and spec.id != model_id:
            raise ModelError(
                f"“{spec.id}” reads the {used[0].replace('_', ' ')} of “{model_id}”.",
                f"Remove “{spec.id}” first.",
            )
    link = folder.is_symlink()
    return OwnModel(id=model_id, folder=folder, size=0 if link else _bytes(folder), is_link=link)


def remove(models: Path, model_id: str) -> int:
    """Deletes the folder of `model_id`. Returns the bytes freed. Raises ModelError, SaveError.

    Parts that its row names elsewhere stay.
    """
    own = find(models, model_id)
    place = own.folder
    try:
        if own.is_link:
            own.folder.unlink()
            return 0
        # Out of the list in one step: nobody meets half of a model.
        gone = own.folder.with_name(f".{model_id}.{secrets.token_hex(4)}.gone")
        own.folder.rename(gone)
        place = gone
        shutil.rmtree(gone)
    except OSError as error:
        raise SaveError(
            f"{place} cannot be deleted ({printable(error.strerror or error, 120)}).",
            "Close what uses it, or delete the folder yourself.",
        ) from None
    return own.size


def _bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError:
        return 0
