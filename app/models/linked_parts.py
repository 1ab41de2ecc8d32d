"""Files of other programs that stand in for a download: linked to, never changed, never deleted.

hub/linked/<part>-<dice of its path>/   config.json and a link to a single file, as a part
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from app.models import own_models
from pipelines.errors import DownloadError, printable
from pipelines.models import single_files
from pipelines.models.hub_store import HubFolder

_FOLDER = "linked"


def folder(store: HubFolder, place: Path) -> Path:
    """A folder for the text encoder in the file `place`; a folder stays as it is.

    No model reads it yet: `sweep` takes it away unless `HubFolder.settling` is held until one does.
    Raises ModelError for a file that holds none, DownloadError.
    """
    if place.is_dir():
        return place
    if not place.is_file():
        raise DownloadError(
            f"{printable(place, 200)} is gone, which was to be used where it lay.",
            "Start the download again: it looks anew for what is there.",
        )
    config = single_files.text_encoder(place)
    dice = hashlib.sha256(os.fsencode(place.resolve())).hexdigest()[:12]
    made = store.root / _FOLDER / f"text_encoder-{dice}"
    if (made / single_files.TEXT_WEIGHTS).is_file():
        return made
    shutil.rmtree(made, ignore_errors=True)
    try:
        single_files.put(place, made, single_files.TEXT_WEIGHTS, config)
    except OSError as error:
        raise DownloadError(
            f"No link to {printable(place, 200)} can be made ({printable(error.strerror, 80)}).",
            "Download it all the same, with --own-copy.",
        ) from None
    return made


def borrow(twin: Path, target: Path) -> None:
    """Puts a link to `twin` where a download would put that file. Raises DownloadError."""
    with suppress(OSError):
        # A link to what is gone.
        target.unlink()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        single_files.link(twin, target)
    except OSError as error:
        raise DownloadError(
            f"No link to {printable(twin, 200)} can be made ({printable(error.strerror, 80)}).",
            "Download it all the same, with --own-copy.",
        ) from None


def sweep(store: HubFolder, models: Path) -> None:
    """Takes away the folders that no model reads any more. The files stay where they are."""
    with store.settling(), suppress(OSError):
        rows = list(store.installed())
        read = {place.resolve() for row in rows for place in store.places(row).values()}
        for made in list((store.root / _FOLDER).iterdir()):
            if made.resolve() not in read and not own_models.readers(models, made):
                shutil.rmtree(made, ignore_errors=True)
