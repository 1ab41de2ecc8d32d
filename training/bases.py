"""What a stage starts from and reads: folders, results of earlier stages, models of the catalog."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.catalog import PARTS, Catalog, Cleaning
from pipelines.errors import RequestError, StudioError, printable
from training.config import MODEL_PREFIX, STAGE_PREFIX, RunConfig

# Of a net with fewer weights than this, small recipes know best; PixArt's own have 600 million.
_SMALL = 100_000_000
_MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Base:
    """Where the parts of one base lie. `cleaning` is how captions are cleaned for its T5.

    `name` is what people call it. Of a model of the catalog `tokens` is the length at which it cuts
    prompts and `bins` its table of sizes; 0 and "" where that is not known.
    """

    folder: Path
    places: Mapping[str, Path]
    cleaning: Cleaning = "lower"
    name: str = ""
    tokens: int = 0
    bins: str = ""

    def part(self, name: str) -> Path:
        """The folder of a part, "vae" or "text_encoder" and so on; it need not be there."""
        return self.places.get(name, self.folder / name)


def transformer_folder(base: Base) -> Path:
    """Where the transformer of a base lies; a folder may be that of the transformer itself."""
    folder = base.part("transformer")
    return folder if folder.is_dir() else base.folder


def of_folder(folder: Path) -> Base:
    """A folder in diffusers layout."""
    return Base(folder=folder, places={}, name=folder.name)


def of_model(model_id: str, catalog: Catalog) -> Base:
    """A model of the catalog, whose parts may lie apart. Raises UnknownNameError, ModelError."""
    model = catalog.find(model_id)
    places = {name: model.part(name) for name in PARTS}
    return Base(
        folder=model.folder,
        places=places,
        cleaning=model.cleaning,
        name=model.id,
        tokens=model.tokens,
        bins=model.bins,
    )


def check(config: RunConfig, catalog: Catalog) -> None:
    """What is missing is said before anything is trained. Raises RequestError, ModelError."""
    for name, value in config.bases.items():
        if value.startswith(STAGE_PREFIX):
            continue
        if value.startswith(MODEL_PREFIX):
            of_model(value.removeprefix(MODEL_PREFIX), catalog)
        elif not Path(value).expanduser().is_dir():
            raise RequestError(
                "base",
                f"There is no model folder {printable(value, 200)}.",
                f"For a model of the catalog write base.{name} = “{MODEL_PREFIX}ID”.",
            )


def resolve(value: str, catalog: Catalog) -> Base:
    """The base that a recipe names by folder or by model. Raises StudioError."""
    if value.startswith(MODEL_PREFIX):
        return of_model(value.removeprefix(MODEL_PREFIX), catalog)
    return of_folder(Path(value).expanduser())


def is_small(model_id: str, catalog: Catalog) -> bool:
    """Whether a model of the catalog has a small transformer, told by the shape in its config.

    False for a model that is not there or cannot be read: what is wrong is said when it is loaded.
    """
    try:
        file = of_model(model_id, catalog).part("transformer") / "config.json"
        with file.open("rb") as stream:
            config = json.loads(stream.read(_MAX_CONFIG_BYTES))
        width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
        # A block has 16 matrices of this width, counting the feed-forward layer's as eight.
        return 0 < 16 * width * width * int(config["num_layers"]) < _SMALL
    except (StudioError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
