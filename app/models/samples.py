"""What a model that ships really paints: small pictures for its card, in one file beside it.

The file says which weights painted it, and is not shown for others. After a model was replaced:

    .venv/bin/python -m app.models.samples
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

from pipelines import files
from pipelines.catalog import ROOT, Catalog, ModelSpec
from pipelines.heavy_imports import importing_diffusers
from pipelines.models.weights_digest import digest
from pipelines.request import complete

if TYPE_CHECKING:
    from pipelines.engine import Engine

FILE = "samples.png"
CELL = 128
_KEY = "pixart-studio-samples"
# One for all, so that none is picked.
_SEED = 1
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SampleStrip:
    """A strip of square pictures side by side, one for each prompt. `version` names its bytes."""

    file: Path
    prompts: tuple[str, ...]
    version: str


def read(model: ModelSpec) -> SampleStrip | None:
    """The pictures of a model that ships; None where there are none that its weights painted."""
    if not model.embedded:
        return None
    file, weights = model.folder / FILE, model.part("transformer")
    try:
        marks = [path.stat() for path in (file, *sorted(weights.glob("*.safetensors")))]
        return _read(file, weights, tuple((mark.st_mtime_ns, mark.st_size) for mark in marks))
    except OSError:
        return None


@lru_cache(maxsize=8)
def _read(file: Path, weights: Path, marks: tuple[tuple[int, int], ...]) -> SampleStrip | None:
    """`marks` are the times and sizes of what is read: it is read once."""
    if marks[0][1] > _MAX_BYTES:
        return None
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            story = json.loads(str(picture.info.get(_KEY, "{}")))
            across = picture.width / picture.height
        prompts = tuple(map(str, story["prompts"]))
        if across != len(prompts) or story["weights"] != digest(weights):
            return None
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        return None
    return SampleStrip(file=file, prompts=prompts, version=f"{marks[0][0]:x}-{marks[0][1]:x}")


def paint(model: ModelSpec, catalog: Catalog, engine: Engine) -> Path:
    """Paints the examples of `model` as Create would, and puts the file beside it."""
    strip = Image.new("RGB", (CELL * len(model.examples), CELL))
    weights = ""
    for place, prompt in enumerate(model.examples):
        request = complete({"prompt": prompt, "model": model.id, "seed": _SEED}, catalog)
        for picture in engine.generate(request, lambda progress: None, lambda: False):
            weights = picture.weights
            cell = picture.image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            strip.paste(cell, (place * CELL, 0))
    story = {"weights": weights, "seed": _SEED, "prompts": list(model.examples)}
    text = PngImagePlugin.PngInfo()
    text.add_text(_KEY, json.dumps(story))
    data = BytesIO()
    strip.save(data, "PNG", optimize=True, pnginfo=text)
    files.write(model.folder / FILE, data.getvalue())
    return model.folder / FILE


def main() -> None:
    """Paints the samples of every model that ships."""
    # Here and not above: reading samples loads no torch.
    with importing_diffusers():
        from pipelines.engine import Engine

    catalog = Catalog()
    engine = Engine(catalog, inputs=ROOT)
    for model in catalog:
        print(paint(model, catalog, engine), file=sys.stderr)


if __name__ == "__main__":
    main()
