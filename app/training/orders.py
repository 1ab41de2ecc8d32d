"""From what was filled in to a training: the recipe with its changes, checked."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.training.preparation import RECIPES, Kind, Preparation
from app.training.training_order import NAME, TrainingOrder
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, printable
from training import recipe_fields, recipes
from training.adapter_config import ENOUGH_PHOTOS, FEWEST_PHOTOS, MOST_PHOTOS
from training.config import RunConfig, TrainingRecipe
from training.recipe_fields import RecipeField

# What the page asks for by itself, or decides.
_ELSEWHERE = frozenset(
    "name title method data.source base.model base.transformer base.vae base.text net"
    " subject.word subject.kind subject.template parts shard".split()
)


def fields(config: RunConfig) -> list[RecipeField]:
    """The keys of a recipe that the page offers for the method of `config`."""
    own = {"lora.": "lora", "subject.": "subject", "objective.": "objective"}
    row = config.row

    def fits(key: str) -> bool:
        if key in _ELSEWHERE:
            return False
        if key.startswith(("lora.", "subject.")):
            return own[key.partition(".")[0] + "."] in row.optional
        rare = ("adversarial", "neighbours", "keep", "perceptual", "kl")
        return not key.startswith("objective.") or key.partition(".")[2] not in rare

    return [one for one in recipe_fields.fields() if fits(one.key)]


def value_of(config: RunConfig, key: str) -> Any:
    """What the recipe says for a key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def recipe_for(kind: Kind, base: str, catalog: Catalog) -> str:
    """The recipe that ships for such a training of that model: small ones have their own."""
    file = recipes.find(RECIPES[kind])
    if kind == "scratch":
        return file.stem
    asked = [f"base.model={json.dumps(base)}"] + ["subject.kind=it"] * (kind == "subject")
    return recipes.for_base(file, recipes.read(file, asked), catalog).stem


def draft(made: Preparation) -> TrainingRecipe:
    """The recipe of what was filled in, also while words are missing. Raises StudioError."""
    named = {"subject": made.subject or "it", "word": made.word or "it", "name": name_of(made)}
    whole = made.model_copy(update={**named, "name": named["name"] or "x"})
    return recipes.resolve(_values(whole), name="training")


def plain_recipe(made: Preparation) -> TrainingRecipe:
    """The recipe before anything was filled in: what the page shows as defaults."""
    bare = made.model_copy(update={"settings": {}, "word": "sks", "subject": "dog", "name": "x"})
    return recipes.resolve(_values(bare), name="training")


def order(made: Preparation, data: Path) -> TrainingOrder:
    """The training that was filled in, on the pictures in `data`. Raises StudioError."""
    name = name_of(made)
    if not NAME.fullmatch(name):
        raise RequestError(
            "name",
            f"“{printable(name)}” cannot be the name of a training."
            if name
            else "The training has no name yet.",
            "Take letters, digits and dashes, as my-dog.",
        )
    if made.kind == "subject" and not made.subject.strip():
        raise RequestError("subject", "Say what it is.", "One word that people use, as dog.")
    if made.kind != "scratch" and not made.photos:
        raise RequestError("photos", "There are no photos yet.", "Drop some above.")
    if made.kind == "subject" and len(made.photos) > MOST_PHOTOS:
        raise RequestError(
            "photos",
            f"There are {len(made.photos):,} photos; a subject is learned from at most"
            f" {MOST_PHOTOS}.",
            "Remove some, or learn them as a style or concept.",
        )
    if made.kind == "style" and (bare := [p for p in made.photos if not p.caption.strip()]):
        raise RequestError(
            "captions",
            f"“{printable(bare[0].title)}” has no caption yet, nor have {len(bare) - 1} others."
            if len(bare) > 1
            else f"“{printable(bare[0].title)}” has no caption yet.",
            "Say what is in each picture, and leave the style out.",
        )
    made_order = TrainingOrder(name=name, data=data, values=_values(made))
    _ = made_order.recipe
    return made_order


def with_steps(order: TrainingOrder, steps: int) -> TrainingOrder:
    """The same training with another number of updates in its last stage."""
    values = copy.deepcopy(dict(order.values))
    stages = values.get("stage")
    (stages[-1] if stages else values)["steps"] = steps
    return replace(order, values=values)


def warnings(made: Preparation) -> list[str]:
    """What would work, and not well."""
    said, photos = [], len(made.photos)
    if made.kind == "subject" and photos:
        if photos < FEWEST_PHOTOS:
            said.append(
                f"{'One photo shows' if photos == 1 else 'Two photos show'} too little of it:"
                " the result will look like the photo. Five to ten are good."
            )
        if photos > ENOUGH_PHOTOS:
            said.append(
                f"{photos} photos are more than a subject needs; with captions, they are better"
                " learned as a style or concept."
            )
    return said


def name_of(made: Preparation) -> str:
    """The name, or one that is made of word and subject."""
    if made.name.strip() or made.kind == "scratch":
        return made.name.strip()
    return re.sub(r"[^a-z0-9]+", "-", f"{made.word} {made.subject}".lower()).strip("-")[:60]


def _values(made: Preparation) -> dict[str, Any]:
    """The recipe as TOML has it, changed by what was filled in. Raises StudioError."""
    file = recipes.find(made.recipe or RECIPES[made.kind])
    values = tomllib.loads(file.read_text("utf-8"))
    known = {one.key: one for one in recipe_fields.fields()}
    changes: dict[str, Any] = {}
    for key, text in made.settings.items():
        if key not in known or key in _ELSEWHERE:
            raise RequestError(printable(key, 60), f"A recipe has no key “{printable(key, 60)}”.")
        changes[key] = known[key].parse(text)
    if made.kind != "scratch":
        name = name_of(made)
        values["publish"] = values.get("publish", {}) | {"id": name or "x", "title": name or "x"}
        if made.base:
            changes["base.model"] = made.base
    if made.kind == "subject":
        told = {"word": made.word, "kind": made.subject, "template": made.template}
        changes |= {f"subject.{key}": value.strip() for key, value in told.items()}
    if made.kind == "subject" and len(made.photos) > MOST_PHOTOS:
        raise RequestError(
            "photos",
            f"There are {len(made.photos):,} photos; a subject is learned from at most"
            f" {MOST_PHOTOS}.",
            "Remove some, or learn them as a style or concept.",
        )
    if made.kind == "style" and made.trigger.strip():
        values["publish"]["trigger"] = made.trigger.strip()
    _put(values, changes)
    return values


def _put(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Sets keys of every stage; nothing takes the default."""
    tables = [values.setdefault("all", {}), *values.get("stage", [])]
    for key, value in changes.items():
        *path, last = key.split(".")
        for number, table in enumerate(tables):
            for part in path:
                if number and part not in table:
                    break
                table = table.setdefault(part, {})
            else:
                if number and last not in table:
                    # What the stages share says it.
                    continue
                if value is None:
                    table.pop(last, None)
                else:
                    table[last] = value
