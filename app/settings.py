"""Where things lie. The one place that knows paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from app import hosting
from pipelines.errors import SaveError
from pipelines.text import prompt_files

VERSION = "0.1.0"
WORKSPACE_VARIABLE = "PIXART_STUDIO_WORKSPACE"
MODEL_FOLDERS_VARIABLE = "PIXART_STUDIO_MODEL_FOLDERS"
DEBUG_VARIABLE = "PIXART_STUDIO_DEBUG"
DEFAULT_PORT = 7860


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the studio writes lies under `workspace`."""

    workspace: Path

    @property
    def outputs(self) -> Path:
        """Painted pictures: YYYY-MM-DD/HHMMSS-<seed>-<6 hex>.png."""
        return self.workspace / "outputs"

    @property
    def inputs(self) -> Path:
        """Pictures that were used as a start, named by their content."""
        return self.workspace / "inputs"

    @property
    def models(self) -> Path:
        """The user's models, one folder each."""
        return self.workspace / "models"

    @property
    def loras(self) -> Path:
        """The user's LoRAs, one file each."""
        return self.workspace / "loras"

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders of other programs where weights may lie already."""
        listed = os.environ.get(MODEL_FOLDERS_VARIABLE, "").split(os.pathsep)
        return tuple(user_path(text) for text in listed if text.strip())

    @property
    def runs(self) -> Path:
        """Trainings, one folder each."""
        return self.workspace / "runs"

    @property
    def trainings(self) -> Path:
        """Trainings that are being prepared, with their photos; one folder each."""
        return self.workspace / "trainings"

    @property
    def data(self) -> Path:
        """Pictures to train on."""
        return self.workspace / "data"

    @property
    def cache(self) -> Path:
        """Files that may be deleted at any time."""
        return self.workspace / "cache"

    @property
    def index(self) -> Path:
        """The index of the gallery, which is made anew from the pictures where it is missing."""
        return self.cache / "gallery.db"

    @property
    def jobs(self) -> Path:
        """The database of jobs."""
        return self.workspace / "jobs.db"

    @property
    def uploads(self) -> Path:
        """What gradio keeps for an hour, a folder for each studio; what is used goes elsewhere."""
        return self.cache / "gradio"

    @property
    def thumbs(self) -> Path:
        """Small versions of the pictures."""
        return self.cache / "thumbs"

    @property
    def exports(self) -> Path:
        """What the page exported, until it was fetched."""
        return self.cache / "exports"

    @property
    def prompts(self) -> Path:
        """Encoded prompts."""
        return self.cache / prompt_files.FOLDER

    @property
    def logs(self) -> Path:
        """What went wrong, for reports."""
        return self.workspace / "logs"


def workspace_path(option: str | None = None) -> Path:
    """The option, else $PIXART_STUDIO_WORKSPACE, else a Space's storage, else ./workspace."""
    asked = option or os.environ.get(WORKSPACE_VARIABLE)
    return real_path(asked or str(hosting.storage() or "workspace"))


def real_path(text: str) -> Path:
    """A path as a person writes it, with all links followed. Raises SaveError for a circle."""
    path = user_path(text)
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise SaveError(
            f"{path} cannot be found: a link in it leads in circles.", "Repair or remove that link."
        ) from None


def user_path(text: str) -> Path:
    """A path as a person writes it, "~" included. Raises SaveError for a home that is not known."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SaveError(
            f"The home folder in “{text}” is not known.", "Write the path out."
        ) from None


def make_folder(path: Path) -> Path:
    """`path` as a folder that exists. Raises SaveError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if path.is_symlink():
            raise SaveError(
                f"{path} is a link that leads nowhere.", "Repair or remove that link."
            ) from None
        raise SaveError(f"{path} is a file, not a folder.", "Choose another folder.") from None
    except OSError as error:
        raise SaveError(
            f"The folder {path} cannot be made ({error.strerror}).", "Choose another folder."
        ) from None
    return path
