"""What a training of the studio is: a recipe, its pictures, and the folder of its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import RequestError
from training import recipes
from training.config import TrainingRecipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MAX_PATH = 4096


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """`name` is the folder of the run below runs/ of the workspace, `data` the folder of the
    pictures, `values` the recipe as TOML has it."""

    name: str
    data: Path
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> TrainingRecipe:
        """The checked recipe. Raises StudioError."""
        return recipes.resolve(self.values, name=self.name)

    def to_json(self) -> dict[str, Any]:
        """As `of_json` reads it."""
        return {"name": self.name, "data": str(self.data), "values": dict(self.values)}


def of_json(payload: Any) -> TrainingOrder:
    """What `to_json` gave, which may come from anywhere. Raises StudioError."""
    told = payload if isinstance(payload, dict) else {}
    name, data, values = (told.get(key) for key in ("name", "data", "values"))
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RequestError("name", "This is no name of a run.", "Take letters, digits and dashes.")
    if not isinstance(data, str) or not 0 < len(data) <= _MAX_PATH or "\x00" in data:
        raise RequestError("data", "This is no folder of pictures.")
    if not Path(data).is_absolute() or not isinstance(values, dict):
        raise RequestError("recipe", "This is no training.")
    order = TrainingOrder(name=name, data=Path(data), values=values)
    # A recipe that cannot be is said before it waits, and a damaged one before it runs.
    _ = order.recipe
    return order
