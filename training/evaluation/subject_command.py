"""`train evaluate-subjects`: photos drawn, subjects taught by the recipe that people get, measured.

OUT/photos/raccoon/       the six photos
OUT/runs/raccoon/         the training, OUT/loras/raccoon.safetensors what came of it
OUT/report.json           what was measured
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from pipelines import files
from pipelines.catalog import Catalog
from pipelines.pictures import png
from training import recipes
from training.evaluation import judge as judges
from training.evaluation import paint, references, subject_set, subjects
from training.evaluation.measure import Count
from training.evaluation.prompts import ScenePrompt
from training.evaluation.subjects import Bench, SubjectReport
from training.evaluation.teaching import Lesson, Surroundings, teach
from training.scenes.objects import SceneObject, load_objects

RECIPE = "dreambooth.toml"


@dataclass(frozen=True, kw_only=True)
class SubjectOrder:
    """Which subjects `model` (an id of the catalog) is taught, out of the emoji package `source`.

    `changes` are overrides of the recipe, as --set has them; with them a subject is called by
    `suffix` as well, so that several recipes stand beside each other in `out`.
    """

    model: str
    source: Path
    out: Path
    subjects: tuple[str, ...]
    changes: tuple[str, ...] = ()
    suffix: str = ""


def run(order: SubjectOrder, around: Surroundings) -> dict[str, SubjectReport] | None:
    """Teaches and measures each subject; None where it was stopped, and the same call goes on with
    the trainings. Raises StudioError."""
    subject_set.check(order.subjects)
    catalog = Catalog(user_models=around.models)
    model = catalog.find(order.model)
    side = min(model.default_size.width, model.default_size.height)
    held = {one.name: one for one in load_objects(order.source, held_out=True)}
    chosen = {f"{_id(name)}{order.suffix}": held[name] for name in order.subjects}
    for name, thing in chosen.items():
        folder = _photos(order, thing, side)
        lesson = Lesson(
            recipe=str(recipes.PRESETS / RECIPE),
            changes=_words(order, name, thing),
            data=folder,
            out=order.out,
            name=name,
        )
        if not teach(lesson, catalog, around):
            return None
    painter = paint.EvaluationPainter(
        order.model,
        workspace_models=around.models,
        inputs=around.inputs,
        report=around.report,
        should_stop=around.should_stop,
        loras=order.out / "loras",
    )
    bench = _bench(painter, order, tuple(held.values()), side, around)
    if bench is None:
        return None
    found: dict[str, SubjectReport] = {}
    base: Count | None = None
    for name, thing in chosen.items():
        pictures: dict[tuple[int, float], Image.Image] = {}
        measured = subjects.subject(bench, thing, name, base, partial(_keep, pictures))
        if measured is None:
            return None
        found[name], base = measured, measured.others[0.0]
        sheet = weights_sheet(pictures, subject_set.prompts(thing, subject_set.PROMPTS))
        files.write(order.out / f"{name}.png", png(sheet))
        told = {key: subjects.as_json(one) for key, one in found.items()}
        files.write(
            order.out / f"report{order.suffix}.json", (json.dumps(told, indent=1) + "\n").encode()
        )
    return found


def _keep(
    pictures: dict[tuple[int, float], Image.Image],
    asked: ScenePrompt,
    weight: float,
    picture: Image.Image,
) -> None:
    pictures[asked.seed, weight] = picture


def weights_sheet(
    pictures: Mapping[tuple[int, float], Image.Image], asked: Sequence[ScenePrompt]
) -> Image.Image:
    """A row for each weight, a column for each of `asked`, in blocks of ten columns."""
    first = next(iter(pictures.values()))
    wide, high = first.size
    columns, weights = 10, subjects.WEIGHTS
    blocks = -(-len(asked) // columns)
    sheet = Image.new("RGB", (columns * wide, blocks * (len(weights) * high + 8)), "white")
    for number, one in enumerate(asked):
        block, column = divmod(number, columns)
        for row, weight in enumerate(weights):
            top = block * (len(weights) * high + 8) + row * high
            sheet.paste(pictures[one.seed, weight], (column * wide, top))
    return sheet


def _id(name: str) -> str:
    return name.replace(" ", "-")


def _photos(order: SubjectOrder, thing: SceneObject, side: int) -> Path:
    """The folder of the photos of `thing`, drawn where they are missing."""
    folder = order.out / "photos" / _id(thing.name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(subject_set.photos(thing, side=side)):
        file = folder / f"{number}.png"
        # Written again, a picture would be another one to the training that it began with.
        if not file.exists():
            files.write(file, png(photo))
    return folder


def _words(order: SubjectOrder, name: str, thing: SceneObject) -> tuple[str, ...]:
    """What the command line would be told, as overrides of the recipe."""
    return (
        f"base.model={json.dumps(order.model)}",
        f"publish.id={json.dumps(name)}",
        f"publish.title={json.dumps(name)}",
        f"subject.word={json.dumps(subject_set.word())}",
        f"subject.kind={json.dumps(thing.name)}",
        *order.changes,
    )


def _bench(
    painter: paint.EvaluationPainter,
    order: SubjectOrder,
    held: tuple[SceneObject, ...],
    side: int,
    around: Surroundings,
) -> Bench | None:
    things = load_objects(order.source)
    soften = partial(paint.through, painter.vae)
    known = (*things, *held, *subject_set.lookalikes(order.source))
    found = references.references(
        known, soften, side=side, report=around.report, should_stop=around.should_stop
    )
    judge = judges.find(things, around.cache, around.report, around.should_stop)
    if found is None or judge is None:
        return None

    def drawn(thing: SceneObject, asked: ScenePrompt) -> Image.Image:
        picture = paint.drawer([thing], [asked], side, painter.vae)(asked.prompt, asked.seed)
        assert picture is not None
        return picture

    return Bench(
        paint=painter,
        drawn=drawn,
        references=found,
        judge=judge,
        report=around.report,
        should_stop=around.should_stop,
    )
