"""Pictures on disk. The files are the truth."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from itertools import islice
from pathlib import Path

from app.gallery import metadata
from app.settings import make_folder
from lora_manager import drafts
from pipelines import files
from pipelines.errors import RecipeError, SaveError
from pipelines.picture_record import Picture, PictureRecord
from pipelines.request import GenerationRequest

PICTURE_NAME = re.compile(r"\d{4}-\d{2}-\d{2}/\d{6}-\d{1,20}-[0-9a-f]{6}\.png")

SECOND = len("YYYY-MM-DD/HHMMSS")
"""Names begin with the second; within one they are in no order of time."""


def came_after(name: str, newest: Sequence[str]) -> bool:
    """Whether a picture came after a list was made, of which `newest` are those of its newest
    second; () is any list."""
    return bool(newest) and name[:SECOND] >= newest[0][:SECOND] and name not in newest


@dataclass(frozen=True, kw_only=True)
class PictureFile(PictureRecord):
    """A picture on disk."""

    path: Path

    @classmethod
    def of(cls, picture: PictureRecord, path: Path) -> PictureFile:
        """The file `path`, in which `picture` lies."""
        return cls(path=path, **picture.facts())

    @property
    def name(self) -> str:
        """The path below the outputs folder, e.g. "2026-11-22/101530-42-a1b2c3.png"."""
        return f"{self.path.parent.name}/{self.path.name}"


class Gallery:
    """The folder of painted pictures: one folder a day, or everything flat in `root`."""

    def __init__(self, root: Path, *, by_day: bool = True) -> None:
        self._root = root
        self._by_day = by_day

    def check_writable(self) -> None:
        """Raises SaveError before a long job whose pictures could not be written."""
        root = make_folder(self._root)
        # It need not lie in the workspace, which is swept as a whole.
        drafts.sweep(root)
        files.check_writable(root)

    def path(self, name: str) -> Path:
        """Where the picture "YYYY-MM-DD/....png" is, or was. Raises RecipeError for other names."""
        # Names come from URLs and files: only the shape that `add` writes is looked up.
        if not PICTURE_NAME.fullmatch(name):
            raise RecipeError("There is no such picture.")
        return self._root / name

    def remove(self, name: str) -> None:
        """Deletes a picture for good; one that is gone already is no fault.

        Raises RecipeError for what cannot be the name of one, SaveError.
        """
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise SaveError(f"“{name}” cannot be deleted ({error.strerror}).") from None

    def newest(self, limit: int) -> Iterator[GenerationRequest]:
        """The requests of the last `limit` pictures, the newest first."""
        names = (
            f"{day.name}/{file.name}"
            for day in sorted(self._root.glob("*/"), reverse=True)
            for file in sorted(day.glob("*.png"), reverse=True)
        )
        for name in islice(filter(PICTURE_NAME.fullmatch, names), limit):
            with suppress(RecipeError):
                yield metadata.read(self._root / name).request

    def named(self, part: str, first_day: str) -> Iterator[Path]:
        """The pictures with `part` in their names, of the days from `first_day` on."""
        for day in sorted(self._root.glob("*/")):
            if day.name >= first_day:
                names = (f"{day.name}/{file.name}" for file in day.glob("*.png"))
                yield from (
                    self._root / name
                    for name in names
                    if part in name and PICTURE_NAME.fullmatch(name)
                )

    def sweep(self, first_day: str) -> None:
        """Takes away what dead processes have half written, from the day `first_day` on."""
        for day in self._root.glob("*/"):
            if day.name >= first_day:
                drafts.sweep(day)

    def add(self, picture: Picture) -> PictureFile:
        """Writes `picture` with its recipe. Raises SaveError; never leaves half a file."""
        now = datetime.now().astimezone()
        folder = make_folder(self._root / f"{now:%Y-%m-%d}" if self._by_day else self._root)
        buffer = BytesIO()
        picture.image.save(buffer, format="PNG", pnginfo=metadata.chunks(picture))
        name = f"{now:%H%M%S}-{picture.request.seed}-{secrets.token_hex(3)}.png"
        files.write(folder / name, buffer.getvalue())
        return PictureFile.of(picture, folder / name)
