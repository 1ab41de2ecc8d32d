"""Giving up a model of one's own: one that was imported, trained here, or put into the folder.

The models that ship have no folder there, and what was downloaded is the matter of `model_store`.
"""

from __future__ import annotations

import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora_manager import drafts
from pipelines.catalog import PARTS, ROW_FILE, Catalog
from pipelines.errors import ModelError, SaveError, printable
from pipelines.models import hub_store


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
    home = _resolved(folder)
    for spec in Catalog(user_models=models):
        used = [part for part in PARTS if _resolved(spec.part(part)).is_relative_to(home)]
        if used and spec.id != model_id:
            raise ModelError(
                f"“{spec.id}” reads the {used[0].replace('_', ' ')} of “{model_id}”.",
                f"Remove “{spec.id}” first.",
            )
    link = folder.is_symlink()
    return OwnModel(id=model_id, folder=folder, size=0 if link else bytes_in(folder), is_link=link)


def readers(models: Path, place: Path) -> list[str]:
    """The ids of the user's models that read something in the folder `place`.

    Also of rows that cannot be used just now: repaired, they should find their parts again.
    """
    home = _resolved(place)
    return [
        file.parent.name
        for file in sorted(models.glob(f"*/{ROW_FILE}"))
        if not file.parent.name.startswith(".")
        and any(_resolved(read).is_relative_to(home) for read in _read_by(file))
    ]


def _read_by(row: Path) -> Iterator[Path]:
    """Every folder and file that the model of `row` reads."""
    try:
        named = tomllib.loads(row.read_text("utf-8")).get("places")
    except (OSError, ValueError, RecursionError):
        named = None
    places = named if isinstance(named, dict) else {}
    for part in PARTS:
        place = places.get(part)
        folder = Path(place) if isinstance(place, str) else row.parent / part
        yield folder
        # A part may be a folder with a link to a single file.
        with suppress(OSError):
            yield from (file for file in folder.iterdir() if file.is_symlink())


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        # Links in a circle lead nowhere else.
        return path.absolute()


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
        gone = drafts.beside(own.folder, "gone")
        own.folder.rename(gone)
        place = gone
        shutil.rmtree(gone)
    except OSError as error:
        raise SaveError(
            f"{place} cannot be deleted ({printable(error.strerror or error, 120)}).",
            "Close what uses it, or delete the folder yourself.",
        ) from None
    return own.size


def bytes_in(folder: Path) -> int:
    """The bytes that the files of a folder occupy there; what a link leads to is elsewhere."""
    try:
        stats = [file.lstat() for file in folder.rglob("*") if file.is_file()]
    except OSError:
        return 0
    return sum(s.st_size for s in stats if stat.S_ISREG(s.st_mode) and s.st_nlink == 1)
