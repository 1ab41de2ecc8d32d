"""A synthetic npm package of all sprites, laid out as the real one is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from training.scenes.objects import SceneObject, all_objects, load_objects


def sprite(index: int) -> bytes:
    """A block of its own colour and shape, with clear room around it."""
    wide, high = 60 + 13 * (index % 9), 60 + 17 * (index % 7)
    picture = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    colour = (37 * index % 256, 91 * index % 256, 151 * index % 256, 255)
    box = (20, 10, 20 + wide - 1, 10 + high - 1)
    ImageDraw.Draw(picture).rectangle(box, fill=colour)
    data = io.BytesIO()
    picture.save(data, format="WEBP", lossless=True)
    return data.getvalue()


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("npm") / "package"
    (root / "assets").mkdir(parents=True)
    (root / "package.json").write_text('{"version": "9.8.7"}')
    things = (*all_objects(), *all_objects(held_out=True))
    for index, shown in enumerate(s for thing in things for s in thing.sprites):
        (root / "assets" / f"{shown.emoji}.webp").write_bytes(sprite(index))
    return root


@pytest.fixture(scope="session")
def packed(package: Path) -> Path:
    file = package.parent / "emoji-9.8.7.tgz"
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        archive.add(package, "package")
    return file


class Things(tuple[SceneObject, ...]):
    """All objects; a failing property prints its arguments, and this one is a book."""

    def __repr__(self) -> str:
        return f"<{len(self)} objects>"


@pytest.fixture(scope="session")
def things(package: Path) -> tuple[SceneObject, ...]:
    return Things(load_objects(package))
