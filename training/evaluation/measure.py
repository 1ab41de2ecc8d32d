"""Paints the prompts, asks the judge, counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from pipelines import progress
from pipelines.progress import Progress, Stage
from training.evaluation.prompts import ScenePrompt

if TYPE_CHECKING:
    from training.evaluation.judge import Judge, Seen

Paint = Callable[[str, int], Image.Image | None]
"""(prompt, seed) -> its picture, None where painting was stopped."""

OBJECT, FIVE, BACKGROUND = "object", "object in the first five", "background colour"
POSITION, BOTH, ORDER = "position", "both objects", "both objects in order"
MEASURES = (OBJECT, FIVE, BACKGROUND, POSITION, BOTH, ORDER)
_WHAT = {
    OBJECT: "object, first guess",
    FIVE: "object, among the first five",
    BACKGROUND: "background colour",
    POSITION: "position (left, right, top, bottom)",
    BOTH: "two objects, both there",
    ORDER: "two objects, the first at the left",
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
class Row:
    """One prompt, its seed, what the judge saw, and which measures hit."""

    prompt: str
    seed: int
    seen: Seen
    hits: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was counted on `rows`, of `asked` prompts; fewer rows where it was stopped.

    `measures` by the names in MEASURES; `objects` counts each object wherever it was asked for.
    `ceiling` holds the measures of the judge on right pictures, where that was measured: what it
    misses there, no model can reach.
    """

    asked: int
    rows: tuple[Row, ...]
    measures: Mapping[str, Count]
    objects: Mapping[str, Count]
    ceiling: Mapping[str, Count] | None = None

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
) -> Report:
    """Paints prompt i with seed i and counts what the judge finds. `keep` gets each picture.

    Ends early, with the rows so far, once `should_stop()` is true. Raises StudioError.
    """
    rows: list[Row] = []
    started = time.perf_counter()
    for seed, asked in enumerate(prompts):
        left = (time.perf_counter() - started) * (len(prompts) / seed - 1) if seed else None
        report(
            Progress(
                stage=Stage.DENOISING, picture=seed + 1, pictures=len(prompts), seconds_left=left
            )
        )
        picture = None if should_stop() else paint(asked.prompt, seed)
        if picture is None:
            break
        if keep is not None:
            keep(picture)
        seen = judge.see(picture, parts=len(asked.objects))
        rows.append(Row(prompt=asked.prompt, seed=seed, seen=seen, hits=marks(asked, seen)))
    return count(rows, prompts)


def marks(asked: ScenePrompt, seen: Seen) -> dict[str, bool]:
    """Which of the measures that `asked` takes part in are hit by what was `seen`."""
    hits = {BACKGROUND: seen.colour == asked.colour}
    first = tuple(guesses[0] if guesses else "" for guesses in seen.guesses)
    if asked.kind == "pair":
        hits[BOTH] = sorted(first) == sorted(asked.objects)
        hits[ORDER] = first == asked.objects
        return hits
    hits[OBJECT] = first == asked.objects
    hits[FIVE] = asked.objects[0] in seen.guesses[0]
    if asked.kind == "placed":
        hits[POSITION] = seen.place == asked.place
    return hits


def count(rows: Sequence[Row], prompts: Sequence[ScenePrompt]) -> Report:
    """The report on `rows`, which belong to the first of `prompts`."""
    measures = dict.fromkeys(MEASURES, Count())
    objects: dict[str, Count] = {}
    for row, asked in zip(rows, prompts, strict=False):
        for name, hit in row.hits.items():
            measures[name] = measures[name].plus(hit=hit)
        found = {guesses[0] for guesses in row.seen.guesses if guesses}
        for name in asked.objects:
            objects[name] = objects.get(name, Count()).plus(hit=name in found)
    return Report(
        asked=len(prompts),
        rows=tuple(rows),
        measures=measures,
        objects=dict(sorted(objects.items())),
    )


# ---- to read ----


def table(report: Report) -> str:
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
    if not report.complete:
        lines += ["", f"Stopped after {len(report.rows)} of {report.asked} prompts."]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "asked": report.asked,
        "done": len(report.rows),
        "measures": _counts(report.measures),
        "ceiling": None if report.ceiling is None else _counts(report.ceiling),
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
