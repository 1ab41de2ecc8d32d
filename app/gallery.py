"""Pictures on disk. The files are the truth."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Protocol

from PIL import Image

from app import metadata
from app.settings import make_folder
from pipelines import files
from pipelines.errors import RecipeError, SaveError
from pipelines.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A picture on disk. `request` paints it again alone; `seconds` is what it took.

    `weights` is the hash of the weights that painted it, "" where it is unknown; `peak` the memory
    in bytes that it took at its highest, 0 where it is unknown, `forecast` what had been said.
    """

    path: Path
    request: GenerationRequest
    seconds: float
    weights: str = ""
    peak: int = 0
    forecast: int = 0

    @property
    def name(self) -> str:
        """The path below the outputs folder, e.g. "2026-11-22/101530-42-a1b2c3.png"."""
        return f"{self.path.parent.name}/{self.path.name}"


class Painted(Protocol):
    """What the engine hands over (`pipelines.engine.Picture`, which this light module must not
    import)."""

    @property
    def image(self) -> Image.Image: ...
    @property
    def request(self) -> GenerationRequest: ...
    @property
    def seconds(self) -> float: ...
    @property
    def weights(self) -> str: ...
    @property
    def peak(self) -> int: ...
    @property
    def forecast(self) -> int: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Gallery:
    """The folder of painted pictures: one folder a day, or everything flat in `root`."""

    def __init__(self, root: Path, *, by_day: bool = True) -> None:
        self._root = root
        self._by_day = by_day

    def check_writable(self) -> None:
        """Raises SaveError before a long job whose pictures could not be written."""
        probe = make_folder(self._root) / f".{secrets.token_hex(8)}"
        files.write(probe, b"")
        probe.unlink(missing_ok=True)

    def remove(self, file: Path) -> None:
        """Deletes a picture for good; one that is gone already is no fault. Raises SaveError."""
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise SaveError(f"“{file.name}” cannot be deleted ({error.strerror}).") from None

    def newest(self, limit: int) -> Iterator[GenerationRequest]:
        """The requests of the last `limit` pictures, the newest first."""
        found = heapq.nlargest(limit, self._root.rglob("*.png"), key=lambda f: (f.parent, f.name))
        for file in found:
            with suppress(RecipeError):
                yield metadata.read(file).request

    def add(self, picture: Painted) -> PictureFile:
        """Writes `picture` with its recipe. Raises SaveError; never leaves half a file."""
        now = datetime.now().astimezone()
        folder = make_folder(self._root / f"{now:%Y-%m-%d}" if self._by_day else self._root)
        buffer = BytesIO()
        chunks = metadata.chunks(picture.request, weights=picture.weights, notes=picture.notes)
        picture.image.save(buffer, format="PNG", pnginfo=chunks)
        name = f"{now:%H%M%S}-{picture.request.seed}-{secrets.token_hex(3)}.png"
        files.write(folder / name, buffer.getvalue())
        return PictureFile(
            path=folder / name,
            request=picture.request,
            seconds=picture.seconds,
            weights=picture.weights,
            peak=picture.peak,
            forecast=picture.forecast,
        )
