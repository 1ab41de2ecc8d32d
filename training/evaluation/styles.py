"""Whether a style was learned: line drawings of some objects, then prompts for others.

OUT/drawings/             40 line drawings with their captions
OUT/runs/line-drawing/    the training, OUT/loras/line-drawing.safetensors what came of it
OUT/style.json            what was measured
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines import files
from pipelines.catalog import Catalog
from pipelines.pictures import png
from training.evaluation import likeness, paint, references
from training.evaluation.edges import Edges
from training.evaluation.likeness import Looks
from training.evaluation.measure import Count
from training.evaluation.prompts import FIRST, all_prompts
from training.evaluation.teaching import Lesson, Surroundings, teach
from training.scenes.captions import article
from training.scenes.compose import draw, sample_scene
from training.scenes.objects import SceneObject, load_objects

NAME = "line-drawing"
PICTURES = 40
_DRAWN = 256
"""Pixels at which edges are looked for; lines of 128 px would be too wide."""
_FIRST_SEED = 7000


@dataclass(frozen=True, kw_only=True)
class StyleReport:
    """What was counted on prompts for objects that no drawing shows.

    `styled` counts pictures that look more like the drawings than like plain scenes: of the prompts
    with the style's words "without" the LoRA, "with" it, and "unasked", with it but without those
    words. `right` counts those "with" whose lines are most like a drawing of what was asked for,
    among all objects. `to_style` and `to_plain` are Fréchet distances of the same pictures to drawn
    line drawings and plain scenes.
    """

    styled: dict[str, Count]
    right: Count
    to_style: dict[str, float]
    to_plain: dict[str, float]


def things(source: Path) -> tuple[list[SceneObject], list[SceneObject]]:
    """Those that are drawn, and those that are asked for afterwards: both of the ones that the
    small model knows. Raises RequestError."""
    loaded = {thing.name: thing for thing in load_objects(source)}
    known = dict.fromkeys(
        one.names[0] for one in all_prompts() if one.list == FIRST and one.kind != "pair"
    )
    found = [loaded[name].only(loaded[name].sprites[0].emoji) for name in known]
    return found[:PICTURES], found[PICTURES : 2 * PICTURES]


def caption(thing: SceneObject) -> str:
    """What is said of a line drawing of `thing`."""
    return f"a line drawing of {article(thing.name) if thing.article else thing.name}"


def drawings(
    shown: Sequence[SceneObject], edges: Edges, side: int, seed: str
) -> list[tuple[Image.Image, Image.Image]]:
    """(a line drawing, the scene that it is of) for each."""
    found = []
    for number, thing in enumerate(shown):
        scene = sample_scene("single", f"{seed}/{number}", [thing])
        lines = edges.drawing(draw(scene, _DRAWN, _DRAWN))
        small = lines.resize((side, side), Image.Resampling.LANCZOS)
        found.append((small, draw(scene, side, side)))
    return found


def run(
    model: str, source: Path, out: Path, changes: tuple[str, ...], around: Surroundings
) -> StyleReport | None:
    """Draws, teaches and measures; None where it was stopped. Raises StudioError."""
    catalog = Catalog(user_models=around.models)
    size = catalog.find(model).default_size
    side = min(size.width, size.height)
    taught, asked = things(source)
    edges = Edges()
    pairs = drawings(taught, edges, side, "style")
    _write(out / "drawings", taught, [lines for lines, _ in pairs])
    named = (f"base.model={json.dumps(model)}", f'publish.id="{NAME}"', f'publish.title="{NAME}"')
    lesson = Lesson(
        recipe="lora-style",
        changes=(*named, 'publish.trigger="line drawing"', *changes),
        data=out / "drawings",
        out=out,
        name=NAME,
    )
    if not teach(lesson, catalog, around):
        return None
    painter = paint.EvaluationPainter(
        model,
        workspace_models=around.models,
        inputs=around.inputs,
        report=around.report,
        should_stop=around.should_stop,
        loras=out / "loras",
    )
    known = references.references(
        load_objects(source),
        lambda picture: paint.through(painter.vae, _lines(edges, picture, side)),
        side=_DRAWN,
        report=around.report,
        should_stop=around.should_stop,
    )
    painted = _painted(painter, asked)
    if known is None or painted is None:
        return None
    files.write(out / "style.png", png(_sheet([pairs[n][0] for n in range(10)], painted)))
    found = _measured(painted, pairs, drawings(asked, edges, side, "other"), asked, known)
    files.write(out / "style.json", (json.dumps(asdict(found), indent=1) + "\n").encode())
    return found


def _lines(edges: Edges, picture: Image.Image, side: int) -> Image.Image:
    return edges.drawing(picture).resize((side, side), Image.Resampling.LANCZOS)


def _write(folder: Path, shown: Sequence[SceneObject], pictures: Sequence[Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for thing, picture in zip(shown, pictures, strict=True):
        file = folder / f"{thing.name.replace(' ', '-')}.png"
        if not file.exists():
            files.write(file.with_suffix(".txt"), caption(thing).encode())
            files.write(file, png(picture))


def _painted(
    painter: paint.EvaluationPainter, asked: Sequence[SceneObject]
) -> dict[str, list[Image.Image]] | None:
    """Pictures of `asked` by name of the way; None where it was stopped."""
    plain = [f"{article(one.name) if one.article else one.name}" for one in asked]
    styled = [caption(one) for one in asked]
    found: dict[str, list[Image.Image]] = {}
    for way, texts, loras in (
        ("without", styled, ""),
        ("with", styled, NAME),
        ("unasked", plain, NAME),
    ):
        for number, text in enumerate(texts):
            picture = painter(text, _FIRST_SEED + number, loras)
            if picture is None:
                return None
            found.setdefault(way, []).append(picture)
    return found


def _measured(
    painted: dict[str, list[Image.Image]],
    taught: Sequence[tuple[Image.Image, Image.Image]],
    drawn: Sequence[tuple[Image.Image, Image.Image]],
    asked: Sequence[SceneObject],
    known: references.References,
) -> StyleReport:
    nearer = _nearer([lines for lines, _ in taught], [scene for _, scene in taught])
    styled = {way: _counted(map(nearer, pictures)) for way, pictures in painted.items()}
    lines, scenes = (likeness.looks(pair[which] for pair in drawn) for which in (0, 1))
    looks = {way: likeness.looks(pictures) for way, pictures in painted.items()}
    right = _counted(
        known.look(picture, one.sprites[0].emoji).nearest in _emoji(one)
        for picture, one in zip(painted["with"], asked, strict=True)
    )
    return StyleReport(
        styled=styled,
        right=right,
        to_style={way: _distance(one, lines) for way, one in looks.items()},
        to_plain={way: _distance(one, scenes) for way, one in looks.items()},
    )


def _emoji(thing: SceneObject) -> set[str]:
    return {sprite.emoji for sprite in thing.sprites}


def _distance(one: Looks, other: Looks) -> float:
    found = one.against(other)
    assert found is not None
    return round(found.distance, 3)


def _counted(hits: Any) -> Count:
    found = Count()
    for hit in hits:
        found = found.plus(hit=bool(hit))
    return found


def _nearer(
    style: Sequence[Image.Image], plain: Sequence[Image.Image]
) -> Callable[[Image.Image], bool]:
    """Whether a picture's features are nearer to the mean of `style` than to that of `plain`."""
    means = [likeness.looks(pictures).vectors.mean(0) for pictures in (style, plain)]

    def nearer(picture: Image.Image) -> bool:
        (vector,) = likeness.looks([picture]).vectors
        far = [torch.linalg.norm(vector - mean) for mean in means]
        return bool(far[0] < far[1])

    return nearer


def _sheet(taught: Sequence[Image.Image], painted: dict[str, list[Image.Image]]) -> Image.Image:
    """Ten of the drawings, and the first twenty new prompts each way, in rows of ten."""
    rows = [taught]
    for block in (0, 10):
        rows += [painted[way][block : block + 10] for way in ("without", "with", "unasked")]
    wide, high = taught[0].size
    sheet = Image.new("RGB", (10 * wide, len(rows) * high), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * wide, row * high))
    return sheet


def table(report: StyleReport) -> str:
    """The report in Markdown."""
    words = {
        "without": "the style's words, without the LoRA",
        "with": "the same with the LoRA",
        "unasked": "with the LoRA, without the words",
    }
    lines = [
        "| | in the style | distance to line drawings | distance to plain scenes |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {words[way]} | {one.hits} of {one.total} | {report.to_style[way]:.1f}"
        f" | {report.to_plain[way]:.1f} |"
        for way, one in report.styled.items()
    ]
    right = report.right
    lines += ["", f"Recognised in the line drawings: {right.hits} of {right.total}."]
    return "\n".join(lines) + "\n"
