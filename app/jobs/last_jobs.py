"""What each owner saw last, kept over a restart of the studio."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.gallery import metadata
from app.gallery.pictures import Gallery, PictureFile
from pipelines import files
from pipelines.errors import StudioError
from pipelines.request import GenerationRequest, from_mapping

MAX_KEPT = 200
MAX_BYTES = 200_000


class LastJobs:
    """One small file per browser in a folder that may be deleted at any time.

    Pictures are remembered by their names in the gallery: a workspace may be copied or moved.
    """

    def __init__(self, folder: Path, gallery: Gallery) -> None:
        self._folder = folder
        self._gallery = gallery

    def save(
        self, owner: str, request: GenerationRequest, pictures: tuple[PictureFile, ...]
    ) -> None:
        """Remembers a job. A disk that refuses costs only the memory of it."""
        kept = {
            "request": request.recipe(),
            "pictures": [
                {
                    "name": p.name,
                    "seconds": p.seconds,
                    "peak": p.peak,
                    "forecast": p.forecast,
                }
                for p in pictures
            ],
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.write(self._file(owner), json.dumps(kept).encode())
            self._prune()
        except (OSError, StudioError):
            return

    def forget(self, owner: str) -> None:
        """Forgets what the owner saw."""
        with suppress(OSError):
            self._file(owner).unlink(missing_ok=True)

    def load(self, owner: str) -> tuple[GenerationRequest, tuple[PictureFile, ...]] | None:
        """The owner's last job with those of its pictures that are still there, or None."""
        file = self._file(owner)
        try:
            if file.stat().st_size > MAX_BYTES:
                return None
            kept = json.loads(file.read_text("utf-8"))
            request = from_mapping(kept["request"])
            rows = [row for row in kept["pictures"] if not self._is_deleted(row)]
            found = [self._picture(row) for row in rows]
            deleted = len(kept["pictures"]) - len(rows)
        except (
            OSError,
            ValueError,
            ArithmeticError,
            KeyError,
            TypeError,
            RecursionError,
            StudioError,
        ):
            return None
        if deleted and not rows:
            return None
        # What was deleted since counts as never asked for, as in `JobQueue.drop`.
        request = request.model_copy(update={"count": max(1, request.count - deleted)})
        return request, tuple(picture for picture in found if picture is not None)

    def _file(self, owner: str) -> Path:
        # The owner's name comes from a browser: never a part of a path.
        return self._folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"

    def _is_deleted(self, row: dict[str, Any]) -> bool:
        try:
            return not self._gallery.path(_name(row)).exists()
        except StudioError:
            return False

    def _picture(self, row: dict[str, Any]) -> PictureFile | None:
        """The picture of a row, as the file itself describes it."""
        try:
            path = self._gallery.path(_name(row))
            recipe = metadata.read(path)
        except StudioError:
            return None
        seconds = float(row["seconds"])
        if not math.isfinite(seconds):
            raise ValueError(seconds)
        return PictureFile(
            path=path,
            request=recipe.request,
            seconds=seconds,
            weights=recipe.weights,
            # Nor do they have these.
            peak=int(row.get("peak", 0)),
            forecast=int(row.get("forecast", 0)),
        )

    def _prune(self) -> None:
        kept = sorted(self._folder.glob("*.json"), key=lambda f: f.stat().st_mtime)
        for file in kept[:-MAX_KEPT]:
            file.unlink(missing_ok=True)


def _name(row: dict[str, Any]) -> str:
    """The picture's name in the gallery. Raises what a damaged row raises."""
    # Files of earlier versions have a whole path instead of the name.
    return str(row["name"]) if "name" in row else "/".join(Path(row["path"]).parts[-2:])
