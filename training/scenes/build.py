"""The data set of the small model: an image folder of drawn scenes with their captions.

    OUT/images/00/000123.webp   RGB pictures, lossless
    OUT/metadata.jsonl          one line per picture: file_name, text, captions, label, scene, ...
    OUT/dataset.json            how it was made

The layout is that of Hugging Face's `imagefolder`. Picture i depends on nothing but the recipe and
i, so the same call again goes on where the last one was cut off.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines import files
from pipelines.errors import RequestError, SaveError, UnknownNameError, printable
from training.scenes.captions import several
from training.scenes.compose import KINDS, Scene, describe, draw, sample_scene
from training.scenes.objects import SceneObject, all_objects, load_objects, preset
from training.scenes.package import PACKAGE, package_version

MAX_COUNT = 1_000_000
MIN_SIDE, MAX_SIDE = 16, 2048
CAPTIONS = 3
LICENCE = "MIT (Fluent emoji by Microsoft)"
# Raise it when the same seed draws another picture or another caption.
FORMAT = 2
_SQUAREST = 0.5
_PER_FOLDER = 1000


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a call of `build` left: `done` of `total` pictures are there."""

    out: Path
    done: int
    total: int

    @property
    def complete(self) -> bool:
        return self.done == self.total


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """All that decides how picture i looks."""

    kinds: dict[str, float]
    bins: tuple[tuple[int, int], ...]
    seed: int
    held_out: bool


def classes() -> list[str]:
    """The names of the objects for training, in the order of their class indices."""
    return [thing.name for thing in all_objects()]


def build(
    source: Path,
    out: Path,
    *,
    count: int,
    size: int,
    kinds: Mapping[str, float],
    seed: int,
    bins: Sequence[tuple[int, int]] | None = None,
    held_out: bool = False,
    report: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Built:
    """Draws pictures 0 to `count` - 1 into `out`; those that are there whole are kept.

    `source` is the npm package of the emoji (.tgz or unpacked), `kinds` the weight of each kind of
    scene. Pictures are `size` pixels square, or of sizes (width, height) drawn from `bins`,
    more than half of them the squarest.
    `held_out` shows the objects that training never sees. `report` gets (done, total).
    Raises RequestError, SaveError.
    """
    recipe = _recipe(kinds, bins or [(size, size)], seed, held_out=held_out)
    if not 1 <= count <= MAX_COUNT:
        raise RequestError("count", f"{count} pictures: it must be 1 to {MAX_COUNT:,}.")
    objects = load_objects(source, held_out=held_out)
    card = _card(recipe, package_version(source), count)
    _begin(out, card)
    lines: list[str] = []
    for index in range(count):
        if should_stop():
            return Built(out=out, done=index, total=count)
        lines.append(_make(out, recipe, objects, index))
        report(index + 1, count)
    files.write(out / "metadata.jsonl", "".join(lines).encode())
    files.write(out / "dataset.json", _json({**card, "complete": True}))
    return Built(out=out, done=count, total=count)


def _recipe(
    kinds: Mapping[str, float], bins: Sequence[tuple[int, int]], seed: int, *, held_out: bool
) -> _Recipe:
    for kind, weight in kinds.items():
        if kind not in KINDS:
            raise UnknownNameError("kinds", "kind of scene", kind, KINDS)
        if not 0 <= weight < float("inf"):
            raise RequestError("kinds", f"The weight of “{kind}” is {weight}.", "Give 0 or more.")
    if not any(kinds.values()):
        raise RequestError("kinds", "No kind of scene has a weight above 0.")
    for side in (side for pair in bins for side in pair):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise RequestError("size", f"{side} px: it must be {MIN_SIDE} to {MAX_SIDE}.")
    # In a fixed order, so that the order of a mapping does not change the pictures.
    weights = {kind: float(kinds[kind]) for kind in KINDS if kinds.get(kind)}
    sizes = tuple((int(width), int(height)) for width, height in bins)
    return _Recipe(kinds=weights, bins=sizes, seed=int(seed), held_out=held_out)


def _plan(
    recipe: _Recipe, objects: Sequence[SceneObject], index: int
) -> tuple[Scene, tuple[int, int]]:
    """The scene and the (width, height) of picture `index`."""
    choose = random.Random(f"picture/{recipe.seed}/{index}")
    kind = choose.choices(list(recipe.kinds), list(recipe.kinds.values()))[0]
    # At least half of the pictures are as square as the table has them: what most people ask for.
    squarest = min(recipe.bins, key=lambda size: abs(math.log(size[0] / size[1])))
    width, height = squarest if choose.random() < _SQUAREST else choose.choice(recipe.bins)
    scene = sample_scene(kind, f"{recipe.seed}/{index}", objects, width / height)
    return scene, (width, height)


def _make(out: Path, recipe: _Recipe, objects: Sequence[SceneObject], index: int) -> str:
    """Draws picture `index` if it is not there; its line of metadata."""
    scene, size = _plan(recipe, objects, index)
    name = f"images/{index // _PER_FOLDER:02d}/{index:06d}.webp"
    file = out / name
    if not _is_whole(file, size):
        _folder(file.parent)
        _save(draw(scene, *size), file)
    captions = several(scene, f"{recipe.seed}/{index}", CAPTIONS)
    only = scene.items[0].object if len(scene.items) == 1 else None
    row = {
        "file_name": name,
        "text": captions[0],
        "captions": captions,
        "label": only.name if only else None,
        "label_index": only.index if only else None,
        "scene": describe(scene),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _save(picture: Image.Image, file: Path) -> None:
    """Writes `picture` in place: half a file is told apart when the build goes on, and waiting for
    the disk as `files.write` does took as long as the drawing. Raises SaveError."""
    data = BytesIO()
    # As true as a PNG, two thirds of its size, and written faster (docs/decisions/0017).
    picture.save(data, format="WEBP", lossless=True, quality=0, method=0)
    try:
        file.write_bytes(data.getvalue())
    except OSError as error:
        raise SaveError(
            f"{file} cannot be written ({error.strerror}).",
            "Free some space or choose another folder.",
        ) from None


def _is_whole(file: Path, size: tuple[int, int]) -> bool:
    """Whether `file` is a lossless WebP of `size` pixels from its first to its last byte."""
    try:
        data = file.read_bytes()
    except OSError:
        return False
    # Sides less one, in 14 bits each, after the signature of the bitstream.
    sides = int.from_bytes(data[21:25], "little")
    header = data[:4] + data[8:16] + data[20:21]
    return (
        header == b"RIFFWEBPVP8L\x2f"
        and int.from_bytes(data[4:8], "little") + 8 == len(data)
        and (sides % 2**14 + 1, sides // 2**14 % 2**14 + 1) == size
    )


def _card(recipe: _Recipe, version: str, count: int) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(preset(), sort_keys=True).encode()).hexdigest()
    several = {"squarest": _SQUAREST} if len(recipe.bins) > 1 else {}
    return {
        "format": FORMAT,
        **several,
        "count": count,
        "seed": recipe.seed,
        "kinds": recipe.kinds,
        "bins": [list(pair) for pair in recipe.bins],
        "held_out": recipe.held_out,
        "classes": [thing.name for thing in all_objects(held_out=recipe.held_out)],
        "preset": digest[:16],
        "source": {"package": PACKAGE, "version": version},
        "licence": LICENCE,
        "complete": False,
    }


def _begin(out: Path, card: dict[str, Any]) -> None:
    """Makes `out` or checks that what it holds was made in the same way. Raises RequestError."""
    _folder(out)
    file = out / "dataset.json"
    shown = printable(out, 200)
    if not file.exists():
        if (out / "images").exists() or (out / "metadata.jsonl").exists():
            raise RequestError("out", f"{shown} holds other pictures.", "Choose another folder.")
    else:
        try:
            before = json.loads(file.read_bytes())
            same = {**before, "count": 0, "complete": False} == {**card, "count": 0}
            fewer = int(before["count"]) > card["count"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            same, fewer = False, False
        if not same:
            raise RequestError(
                "out", f"{shown} holds a data set made in another way.", "Choose another folder."
            )
        if fewer:
            raise RequestError(
                "count",
                f"{shown} was begun with {before['count']:,} pictures, which is more.",
                "Ask for as many, or choose another folder.",
            )
        if before == {**card, "complete": True}:
            return
    files.write(file, _json(card))


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"{path} cannot be made ({error.strerror}).", "Choose another folder."
        ) from None


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
