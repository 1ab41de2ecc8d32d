"""What every table of a recipe is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RecipeTable(BaseModel):
    """A table of a recipe: frozen, no unknown keys, no guessing of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
