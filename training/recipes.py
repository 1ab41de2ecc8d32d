"""Recipes: presets/training/*.toml or a file of the user, with overrides -> checked stages.

A recipe is one run (its keys at the top level) or several stages (`[[stage]]`, walked in order);
`[all]` holds what the stages share, `[publish]` says how the finished model is called.
"""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines import sizes
from pipelines.catalog import ROOT, Catalog
from pipelines.errors import RequestError, UnknownNameError, printable
from training import bases
from training.config import STAGE_PREFIX, PublishConfig, RunConfig, TrainingRecipe

PRESETS = ROOT / "presets" / "training"
MAX_RECIPE_BYTES = 200_000
FIELD = "recipe"
_DEEPEST = 8
_SMALL = "-small"


def names() -> list[str]:
    """The recipes that ship."""
    return sorted(file.stem for file in PRESETS.glob("*.toml"))


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships. Raises UnknownNameError."""
    file = Path(recipe)
    try:
        if file.suffix == ".toml" and file.is_file():
            return file
    except OSError as error:
        raise RequestError(FIELD, f"The recipe cannot be read ({error.strerror}).") from None
    if recipe in names():
        return PRESETS / f"{recipe}.toml"
    if file.suffix == ".toml":
        raise RequestError(FIELD, f"There is no recipe at {printable(recipe, 200)}.")
    raise UnknownNameError(FIELD, "recipe", recipe, names())


def for_base(file: Path, recipe: TrainingRecipe, catalog: Catalog) -> Path:
    """The recipe to take for the base of `recipe`, which was read from `file`.

    Beside a recipe that ships may lie one for small models, called NAME-small. It is taken where
    the base is small; a recipe of the user's stays what it is.
    """
    model = recipe.stages[-1].base.model
    sibling = file.with_name(f"{file.stem}{_SMALL}.toml")
    if model is None or file.parent != PRESETS or not sibling.is_file():
        return file
    return sibling if bases.is_small(model, catalog) else file


def read(file: Path, overrides: Iterable[str] = ()) -> TrainingRecipe:
    """A checked recipe; `overrides` are `key=value`, `stage.key=value` or `publish.key=value`.

    Raises RequestError.
    """
    try:
        if file.stat().st_size > MAX_RECIPE_BYTES:
            raise RequestError(FIELD, f"{file} is too large for a recipe.")
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise RequestError(FIELD, f"{file} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(
            FIELD, f"{file} is not a recipe in TOML ({printable(error, 160)})."
        ) from None
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:80]
    return resolve(values, overrides, name=stem or "recipe")


def resolve(
    values: Mapping[str, Any], overrides: Iterable[str] = (), *, name: str
) -> TrainingRecipe:
    """The recipe in `values`. Raises RequestError, UnknownNameError."""
    tables = copy.deepcopy(dict(values))
    title = tables.pop("title", name)
    shared = tables.pop("all", {})
    publish = tables.pop("publish", None)
    stages = tables.pop("stage", None)
    if stages is None:
        stages, shared = [{"name": name, **shared, **tables}], {}
    elif tables:
        raise UnknownNameError(
            FIELD, "key of a recipe", next(iter(tables)), ["title", "all", "publish", "stage"]
        )
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in [*stages, shared]):
        raise RequestError(FIELD, "The stages of a recipe are tables, written [[stage]].")
    merged = [_merged(shared, stage) for stage in stages]
    for override in overrides:
        key, dot, rest = override.partition(".")
        if dot and key.strip() == "publish":
            publish = {} if publish is None else publish
            _override([publish], rest)
        else:
            _override(merged, override)
    runs = tuple(_run(stage, number) for number, stage in enumerate(merged, start=1))
    _check_stages(runs)
    if not isinstance(title, str):
        raise RequestError(FIELD, "The title of a recipe is a text.")
    return TrainingRecipe(title=title, stages=runs, publish=_publish(publish))


def _publish(values: Any) -> PublishConfig | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise RequestError(FIELD, "“publish” is a table, written [publish].")
    _check_keys(values, PublishConfig, "[publish]")
    try:
        row = PublishConfig.model_validate(_loosened(values, PublishConfig))
        if row.bins not in sizes.names():
            raise UnknownNameError(FIELD, "table of sizes", row.bins, sizes.names())
        sizes.check(sizes.parse(row.size), row.max_side)
        return row
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestError(
            FIELD, f"[publish] {where}: {first['msg']} (got {_got(first)})."
        ) from None


def _check_stages(runs: tuple[RunConfig, ...]) -> None:
    if not runs:
        raise RequestError(FIELD, "The recipe has no stage.")
    seen: list[str] = []
    for run in runs:
        if run.name in seen:
            raise RequestError(FIELD, f"Two stages of the recipe are called “{run.name}”.")
        for base in run.bases.values():
            if base.startswith(STAGE_PREFIX):
                earlier = base.removeprefix(STAGE_PREFIX)
                if earlier not in seen:
                    raise UnknownNameError(FIELD, "earlier stage", earlier, seen)
        seen.append(run.name)


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(shared))
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _override(stages: list[dict[str, Any]], text: str) -> None:
    """Applies `a.b=value` to all stages, or to one where `a` is its name."""
    path, equals, raw = text.partition("=")
    if not equals or not path.strip():
        raise RequestError("set", f"“{printable(text)}” is not of the form key=value.")
    keys = [key.strip() for key in path.split(".")]
    if len(keys) > _DEEPEST:
        raise RequestError("set", f"“{printable(text)}” goes deeper than any recipe.")
    named = [stage for stage in stages if stage.get("name") == keys[0]]
    if named:
        keys = keys[1:]
    if not keys:
        raise RequestError("set", f"“{printable(text)}” names a stage but no key.")
    for stage in named or stages:
        table = stage
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise RequestError("set", f"“{printable(text)}” goes below a plain value.")
        table[keys[-1]] = _value(raw.strip())


def _value(raw: str) -> Any:
    """`raw` as TOML reads it; a bare word is a text."""
    try:
        return raw if "\n" in raw else tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        return raw


def _run(values: dict[str, Any], number: int) -> RunConfig:
    _check_keys(values, RunConfig, "")
    # JSON knows no tuples, and TOML's integers are good numbers where a fraction is possible.
    try:
        return RunConfig.model_validate(_loosened(values, RunConfig))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the stage"
        name = printable(values.get("name", number))
        reason = first["msg"].removeprefix("Value error, ")
        raise RequestError(
            FIELD, f"Stage “{name}” of the recipe: {where}: {reason} (got {_got(first)})."
        ) from None


def _got(error: Any) -> str:
    value = error.get("input")
    return "nothing" if error["type"] == "missing" else printable(repr(value), 60)


def _check_keys(values: Mapping[str, Any], model: type[BaseModel], where: str) -> None:
    """Raises UnknownNameError, which says the nearest key, for one that does not exist."""
    for key, value in values.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.4)
            known = near or list(model.model_fields)
            raise UnknownNameError(FIELD, f"key of {where or 'a stage'}", key, known)
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, dict):
                raise RequestError(FIELD, f"“{key}” is a table, written [{key}].")
            _check_keys(value, kind, f"[{key}]")


def _loosened(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            result[key] = _loosened(value, kind)
        elif key == "net" and isinstance(value, dict):
            result[key] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        elif isinstance(value, list):
            result[key] = tuple(value)
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            result[key] = float(value)
        else:
            result[key] = value
    return result
