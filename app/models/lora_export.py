"""An export of a LoRA in a child process: it loads torch, and the page does not."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.models import lora_work
from app.settings import Settings
from lora_manager import forms
from lora_manager.library import SUFFIX
from pipelines.catalog import Catalog
from pipelines.errors import SaveError, printable
from pipelines.heavy_imports import before_torch
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.progress import ShouldStop

ARCHIVE = ".zip"


def run(
    name: str, form: str, settings: Settings, place: Path, *, should_stop: ShouldStop
) -> Path | None:
    """Writes the LoRA `name` into the folder `place` as one file, a folder as a zip.

    None where it was stopped; nothing is left of it then, nor after a failure. Raises StudioError.
    """
    spec = ChildSpec(name="pixart-lora", what="The export", log=settings.logs / "lora-export.log")
    file: Path | None = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        child = Child.start(spec, work, str(settings.workspace), name, form, str(place))
        try:
            done = child.follow(lambda event: None, should_stop)
        finally:
            child.close()
        file = Path(str(done["result"])) if done is not None else None
        return file
    except OSError as error:
        reason = printable(error.strerror or error, 120)
        raise SaveError(f"{place} cannot be written ({reason}).", "Free some space.") from None
    finally:
        if file is None:
            shutil.rmtree(place, ignore_errors=True)


def work(pipe: ParentPipe, workspace: str, name: str, form: str, place: str) -> str:
    """Runs in the process; the file that was written. Raises StudioError."""
    settings, folder = Settings(workspace=Path(workspace)), Path(place)
    library = Catalog(user_models=settings.models, loras=settings.loras).loras
    before_torch()
    out = folder / f"{name}-{form}"
    row, made = lora_work.export(library, name, form, _target(out, form))
    if not row.folder:
        return str(made)
    try:
        # Its files begin in a folder of its name, as they would without the archive.
        return shutil.make_archive(str(out), ARCHIVE[1:], folder, made.name)
    except OSError as error:
        raise SaveError(
            f"{out}{ARCHIVE} cannot be written ({printable(error.strerror or error, 120)}).",
            "Free some space.",
        ) from None


def _target(out: Path, form: str) -> Path:
    # What cannot be is said by the export itself.
    row = forms.FORMS.get(form)
    return out if row is None or row.folder else out.with_name(f"{out.name}{SUFFIX}")
