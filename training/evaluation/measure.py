"""Paints the prompts, asks the judge, counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from pipelines import progress
from pipelines.progress import Progress, Stage
from training.evaluation.prompts import (
    BARE,
    BINDING,
    COUNTS,
    FIRST,
    FULL,
    TRIOS,
    WORDINGS,
    ScenePrompt,
)

if TYPE_CHECKING:
    from training.evaluation.judge import Judge, Seen
    from training.evaluation.likeness import Likeness

Paint = Callable[[str, int], Image.Image | None]
"""(prompt, seed) -> its picture, None where painting was stopped."""

OBJECT, FIVE, BACKGROUND = "object", "object in the first five", "background colour"
POSITION, BOTH, ORDER = "position", "both objects", "both objects in order"
BOUND, FREE, TWO_THREE, FOUR = "colours bound", "free wording", "counts to three", "four"
THREE, OBJECT_BARE, OBJECT_FULL = "three objects", "bare prompt", "full prompt"
# Counts up to this are expected of a small model.
MOST_COUNTED = 3
MEASURES = (
    *(OBJECT, FIVE, BACKGROUND, POSITION, BOTH, ORDER),
    *(BOUND, FREE, TWO_THREE, FOUR, THREE, OBJECT_BARE, OBJECT_FULL),
)
_WHAT = {
    OBJECT: "object, first guess",
    FIVE: "object, among the first five",
    BACKGROUND: "background colour",
    POSITION: "position (left, right, top, bottom)",
    BOTH: "two objects, both there",
    ORDER: "two objects, the first at the left",
    BOUND: "a coloured object on a ground of another colour, all right",
    FREE: "wordings that no caption has, all right",
    TWO_THREE: "two or three of one object",
    FOUR: "four of one object",
    THREE: "three objects, all there",
    OBJECT_BARE: "object of a bare prompt",
    OBJECT_FULL: "the same objects with a ground",
}


@dataclass(frozen=True, kw_only=True)
class Count:
    """`hits` of `total`."""

    hits: int = 0
    total: int = 0

    def plus(self, *, hit: bool) -> Count:
        return Count(hits=self.hits + hit, total=self.total + 1)

    @property
    def share(self) -> float:
        """0..1; 0 where nothing was asked."""
        return self.hits / self.total if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class EvaluatedPrompt:
    """One prompt, its seed, what the judge saw, and which measures hit."""

    prompt: str
    seed: int
    seen: Seen
    hits: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """What was counted on `rows`, of `asked` prompts; fewer rows where it was stopped.

    `measures` by the names in MEASURES; `objects` counts each object wherever it was asked for.
    `likeness` compares the pictures with drawn scenes of the same prompts. `ceiling` holds the
    measures of the judge on right pictures and `best` their likeness, where those were measured:
    what the judge misses there, no model can reach.
    """

    asked: int
    rows: tuple[EvaluatedPrompt, ...]
    measures: Mapping[str, Count]
    objects: Mapping[str, Count]
    likeness: Likeness | None = None
    ceiling: Mapping[str, Count] | None = None
    best: Likeness | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(row.seed for row in self.rows)

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.asked


def evaluate(
    paint: Paint,
    prompts: Sequence[ScenePrompt],
    judge: Judge,
    report: progress.Report,
    should_stop: progress.ShouldStop,
    *,
    keep: Callable[[Image.Image], None] | None = None,
) -> EvaluationReport:
    """Paints each prompt with its seed and counts what the judge finds. `keep` gets each picture.

    Ends early, with the rows so far, once `should_stop()` is true. Raises StudioError.
    """
    rows: list[EvaluatedPrompt] = []
    started = time.perf_counter()
    for done, asked in enumerate(prompts):
        left = (time.perf_counter() - started) * (len(prompts) / done - 1) if done else None
        report(
            Progress(
                stage=Stage.DENOISING, picture=done + 1, pictures=len(prompts), seconds_left=left
            )
        )
        picture = None if should_stop() else paint(asked.prompt, asked.seed)
        if picture is None:
            break
        if keep is not None:
            keep(picture)
        seen = judge.see(
            picture,
            parts=len(asked.objects),
            apart=asked.kind == "number",
            wanted=asked.things(judge.things) if asked.list in (BINDING, WORDINGS) else (),
        )
        hits = marks(asked, seen)
        rows.append(EvaluatedPrompt(prompt=asked.prompt, seed=asked.seed, seen=seen, hits=hits))
    return count(rows, prompts)


def marks(asked: ScenePrompt, seen: Seen) -> dict[str, bool]:
    """Which of the measures that `asked` takes part in are hit by what was `seen`."""
    first = tuple(guesses[0] if guesses else "" for guesses in seen.guesses)
    ground = seen.colour == asked.colour
    if asked.list == FIRST:
        return {BACKGROUND: ground, **_first_marks(asked, seen, first)}
    if asked.list == COUNTS:
        right = sum(name == asked.names[0] for name in first)
        hit = len(first) == asked.count and 2 * right > asked.count
        return {TWO_THREE if asked.count <= MOST_COUNTED else FOUR: hit}
    things = sorted(first) == sorted(asked.names)
    if asked.list == BINDING:
        return {BOUND: things and all(seen.tints) and ground}
    if asked.list == WORDINGS:
        place = not asked.place or seen.place == asked.place
        tinted = all(seen.tints) if len(asked.objects) == 1 else True
        return {FREE: things and tinted and place and (ground or not asked.colour)}
    return {{TRIOS: THREE, BARE: OBJECT_BARE, FULL: OBJECT_FULL}[asked.list]: things}


def _first_marks(asked: ScenePrompt, seen: Seen, first: tuple[str, ...]) -> dict[str, bool]:
    names = asked.names
    if asked.kind == "pair":
        return {BOTH: sorted(first) == sorted(names), ORDER: first == names}
    hits = {OBJECT: first == names, FIVE: names[0] in seen.guesses[0]}
    if asked.kind == "placed":
        hits[POSITION] = seen.place == asked.place
    return hits


def count(rows: Sequence[EvaluatedPrompt], prompts: Sequence[ScenePrompt]) -> EvaluationReport:
    """The report on `rows`, which belong to the first of `prompts`."""
    measures = dict.fromkeys(MEASURES, Count())
    objects: dict[str, Count] = {}
    for row, asked in zip(rows, prompts, strict=False):
        for name, hit in row.hits.items():
            measures[name] = measures[name].plus(hit=hit)
        found = {guesses[0] for guesses in row.seen.guesses if guesses}
        for name in asked.names:
            objects[name] = objects.get(name, Count()).plus(hit=name in found)
    return EvaluationReport(
        asked=len(prompts),
        rows=tuple(rows),
        measures=measures,
        objects=dict(sorted(objects.items())),
    )


# ---- to read ----


def table(report: EvaluationReport) -> str:
    """The report in Markdown."""
    ceiling = report.ceiling
    lines = ["| asked for | right | % |", "|---|---|---|"]
    if ceiling is not None:
        lines = ["| asked for | right | % | ceiling of the judge, % |", "|---|---|---|---|"]
    for name in MEASURES:
        value = report.measures[name]
        if value.total:
            most = f" {100 * ceiling[name].share:.1f} |" if ceiling is not None else ""
            lines.append(
                f"| {_WHAT[name]} | {value.hits} of {value.total} | {100 * value.share:.1f} |{most}"
            )
    lines += _alike(report)
    if not report.complete:
        lines += ["", f"Stopped after {len(report.rows)} of {report.asked} prompts."]
    return "\n".join(lines) + "\n"


def _alike(report: EvaluationReport) -> list[str]:
    """Rows about how the pictures look, not what they show."""
    if report.likeness is None:
        return []
    painted, best = report.likeness, report.best
    energy, distance = "gradient energy, % of drawn scenes'", "Fréchet distance in VGG features"
    rows = [
        (energy, 100 * painted.energy, best and 100 * best.energy),
        (distance, painted.distance, best and best.distance),
    ]
    lines = []
    for what, value, most in rows:
        last = f" {most:.1f} |" if most is not None else ""
        last = " |" if report.ceiling is not None and most is None else last
        lines.append(f"| {what} | | {value:.1f} |{last}")
    return lines


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "asked": report.asked,
        "done": len(report.rows),
        "measures": _counts(report.measures),
        "ceiling": None if report.ceiling is None else _counts(report.ceiling),
        "likeness": None if report.likeness is None else asdict(report.likeness),
        "best": None if report.best is None else asdict(report.best),
        "objects": _counts(report.objects),
        "pictures": [
            {
                "prompt": row.prompt,
                "seed": row.seed,
                "colour": row.seen.colour,
                "place": row.seen.place,
                "guesses": [list(guesses) for guesses in row.seen.guesses],
                "hits": dict(row.hits),
            }
            for row in report.rows
        ],
    }


def _counts(counts: Mapping[str, Count]) -> dict[str, dict[str, int]]:
    return {name: {"hits": c.hits, "total": c.total} for name, c in counts.items() if c.total}


def grid(
    pictures: Sequence[Image.Image], prompts: Sequence[ScenePrompt], *, columns: int = 10
) -> Image.Image:
    """`pictures` in rows on white, each with its prompt below. Raises ValueError for none."""
    if not pictures:
        raise ValueError("a grid needs a picture")
    font = ImageFont.load_default(10)
    wide, high = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    text, gap = 3 * 12 + 4, 6
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (columns * (wide + gap) + gap, rows * (high + text + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, asked) in enumerate(zip(pictures, prompts, strict=False)):
        x = gap + (index % columns) * (wide + gap)
        y = gap + (index // columns) * (high + text + gap)
        sheet.paste(picture, (x, y))
        for number, line in enumerate(_wrapped(asked.prompt, font, wide)[:3]):
            pen.text((x, y + high + 2 + 12 * number), line, fill="black", font=font)
    return sheet


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
