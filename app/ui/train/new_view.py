"""A training that is being prepared as HTML."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from app.jobs.job import Job
from app.markup import render
from app.training import orders, subject_words
from app.training.preparation import MOST_CAPTION, Photo, Preparation, recipe_names
from app.ui.routes import PREPARED, THUMBS
from pipelines import sizes
from pipelines.catalog import Catalog, ModelSpec
from pipelines.errors import StudioError
from pipelines.sizes import Size
from training.recipe_fields import RecipeField

_MARKUP = "ui/train/new.html"
_TITLES = {
    "subject": ("Teach it a subject", "Five to ten photos of one thing, in different places."),
    "style": ("Teach it a style or concept", "20 to 200 pictures, each with a caption."),
    "scratch": ("Train a model from scratch", "Three stages and more, from your own data."),
}
_GROUPS = {
    "": "Training",
    "data": "Pictures",
    "optimizer": "Optimizer",
    "schedule": "Learning rate over time",
    "ema": "Average of the weights",
    "objective": "Objective",
    "checkpoints": "Checkpoints",
    "validation": "Validation",
    "preview": "Samples",
    "lora": "LoRA",
    "subject": "Subject",
}
_LABELS = {"lr": "Learning rate", "min_snr": "Min-SNR", "ranks": "Other ranks", "eps": "Epsilon"}
_FIRST = ("", "lora", "subject", "optimizer", "preview")


@dataclass(frozen=True, kw_only=True)
class FormNotes:
    """What the page says besides the preparation itself. `kind_job` paints the bare kind."""

    error: str = ""
    notice: str = ""
    forecast: str = ""
    kind_job: Job | None = None


def page(made: Preparation, catalog: Catalog, shown: FormNotes) -> str:
    """The whole form."""
    title, lead = _TITLES[made.kind]
    return render(
        _MARKUP,
        "page",
        title=title,
        lead=lead,
        id=made.id,
        error=shown.error,
        notice=shown.notice,
        photos=Markup(_photos(made, catalog)) if made.kind != "scratch" else "",
        words=Markup(_words(made, catalog, shown)),
        advanced=Markup(_advanced(made)),
        forecast=shown.forecast,
        warnings=_warnings(made, catalog),
        ready=made.kind == "scratch" or bool(made.photos),
    )


def _model(made: Preparation, catalog: Catalog) -> ModelSpec:
    return next((spec for spec in catalog if spec.id == made.base), catalog.default)


def _warnings(made: Preparation, catalog: Catalog) -> list[str]:
    said = orders.warnings(made)
    if made.kind == "subject":
        said.append(subject_words.warning(made.word, _model(made, catalog)))
    return [text for text in said if text]


def _photos(made: Preparation, catalog: Catalog) -> str:
    table = sizes.bins(_model(made, catalog).bins)
    return render(
        _MARKUP,
        "photos",
        id=made.id,
        address=f"{PREPARED}/{made.id}",
        rows=[_photo(photo, table) for photo in made.photos],
        left_out=list(made.left_out),
        caption=made.caption,
        captions_needed=made.kind == "style",
        most_caption=MOST_CAPTION,
    )


def _photo(photo: Photo, table: Sequence[Size]) -> dict[str, Any]:
    left, top, right, bottom = (0, 0, photo.width, photo.height)
    if photo.crop is not None:
        left, top, right, bottom = photo.crop.box(photo.width, photo.height)
    bucket = sizes.nearest(Size(right - left, bottom - top), table)
    version = hashlib.sha256(photo.model_dump_json(include={"crop"}).encode()).hexdigest()[:8]
    return {
        "file": photo.file,
        "title": photo.title,
        "caption": photo.caption,
        "notes": photo.notes,
        "ratio": f"{bucket.width}/{bucket.height}",
        "version": version,
    }


def _words(made: Preparation, catalog: Catalog, shown: FormNotes) -> str:
    models = [(spec.id, spec.title) for spec in catalog]
    if made.base and made.base not in dict(models):
        # Otherwise the list would show another one, as if that had been chosen.
        models.insert(0, (made.base, f"{made.base} (not there any more)"))
    name = orders.name_of(made)
    if made.kind == "subject":
        job = shown.kind_job
        found = [f"{THUMBS}/{file.name}" for file in job.pictures] if job is not None else []
        row = {"pictures": found, "painting": job is not None and job.active}
        return render(
            _MARKUP,
            "subject",
            made=made,
            models=models,
            name=name,
            caption=made.caption,
            kind_row=row,
        )
    if made.kind == "style":
        return render(_MARKUP, "style", made=made, models=models, name=name)
    return render(_MARKUP, "scratch", made=made, names=[(n, n) for n in recipe_names()])


def _advanced(made: Preparation) -> str:
    """Every key of the recipe, with what the recipe says where nothing was typed."""
    try:
        config = orders.plain_recipe(made).stages[-1]
    except StudioError:
        return ""
    groups: dict[str, list[dict[str, Any]]] = {}
    for field in orders.fields(config):
        group = field.key.rpartition(".")[0]
        default = field.written(orders.value_of(config, field.key))
        groups.setdefault(group, []).append(_row(field, made.settings.get(field.key), default))
    ordered = sorted(groups, key=lambda g: _FIRST.index(g) if g in _FIRST else len(_FIRST))
    return render(
        _MARKUP,
        "advanced",
        groups=[(_GROUPS.get(group, group), groups[group]) for group in ordered],
    )


def _row(field: RecipeField, typed: str | None, default: str) -> dict[str, Any]:
    options = list(field.choices)
    if field.kind == "switch":
        options = ["true", "false"]
    if options and field.optional:
        options = ["", *options]
    return {
        "key": field.key,
        "label": _label(field.key.rpartition(".")[2]),
        "value": default if typed is None else typed,
        "changed": typed is not None and typed != default,
        "options": options,
        "lines": field.kind in ("lines", "table"),
        "mode": {"whole": "numeric", "number": "decimal"}.get(field.kind, "text"),
        "help": field.help,
        "limits": _limits(field),
    }


def _label(name: str) -> str:
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


def _limits(field: RecipeField) -> str:
    """The limits in words, where they say more than that a number is one."""
    low = field.low if field.low is not None else field.above
    high = field.high if field.high is not None else field.below
    if low is None and high is None:
        return ""
    least, most = (None if limit is None else _number(limit) for limit in (low, high))
    if most is None:
        return f"At least {least}."
    return f"{least} to {most}." if least is not None else f"At most {most}."


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
