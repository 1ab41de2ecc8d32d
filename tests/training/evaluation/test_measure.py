"""What is counted: right pictures are hits, wrong ones misses, whatever is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.progress import Progress
from training.evaluation.judge import Judge, Seen
from training.evaluation.measure import (
    BACKGROUND,
    BOTH,
    FIVE,
    MEASURES,
    OBJECT,
    ORDER,
    POSITION,
    Count,
    Report,
    as_json,
    evaluate,
    grid,
    marks,
    table,
)
from training.evaluation.paint import drawer
from training.evaluation.prompts import ScenePrompt
from training.scenes.objects import SceneObject

PROMPTS = (
    ScenePrompt(prompt="a cat on white", kind="single", objects=("cat",), colour="white"),
    ScenePrompt(
        prompt="a dog at the left", kind="placed", objects=("dog",), colour="pink", place="left"
    ),
    ScenePrompt(prompt="dog and cow", kind="pair", objects=("dog", "cow"), colour="white"),
    ScenePrompt(
        prompt="a cow at the top", kind="placed", objects=("cow",), colour="gray", place="top"
    ),
)
Change = Callable[[ScenePrompt], ScenePrompt]


def measured(things: tuple[SceneObject, ...], judge: Judge, change: Change) -> Report:
    """The report on right pictures of changed prompts."""
    drawn = [change(asked) for asked in PROMPTS]
    paint = drawer(things, drawn, 128)
    return evaluate(paint, PROMPTS, judge, lambda step: None, lambda: False)


def shares(report: Report) -> dict[str, float]:
    return {name: report.measures[name].share for name in MEASURES}


def test_right_pictures_are_hits(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: asked)
    assert set(shares(report).values()) == {1.0}
    assert {name: report.measures[name].total for name in MEASURES} == {
        OBJECT: 3,
        FIVE: 3,
        BACKGROUND: 4,
        POSITION: 2,
        BOTH: 1,
        ORDER: 1,
    }
    assert report.objects == {
        "cat": Count(hits=1, total=1),
        "cow": Count(hits=2, total=2),
        "dog": Count(hits=2, total=2),
    }
    assert report.seeds == (0, 1, 2, 3)
    assert report.complete


def test_other_grounds_are_misses(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: replace(asked, colour="black"))
    assert shares(report) == dict.fromkeys(MEASURES, 1.0) | {BACKGROUND: 0.0}


def test_other_objects_are_misses(things: tuple[SceneObject, ...], judge: Judge) -> None:
    swap = {"cat": "pig", "dog": "fox", "cow": "lion"}
    report = measured(
        things,
        judge,
        lambda asked: replace(asked, objects=tuple(swap[name] for name in asked.objects)),
    )
    found = shares(report)
    assert (found[OBJECT], found[BOTH], found[ORDER]) == (0, 0, 0)
    assert (found[BACKGROUND], found[POSITION]) == (1, 1)
    assert {count.hits for count in report.objects.values()} == {0}


def test_other_places_are_misses(things: tuple[SceneObject, ...], judge: Judge) -> None:
    other = {"left": "right", "top": "left", "": ""}
    report = measured(things, judge, lambda asked: replace(asked, place=other[asked.place]))
    assert shares(report) == dict.fromkeys(MEASURES, 1.0) | {POSITION: 0.0}


def test_a_pair_in_the_other_order_has_both(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: replace(asked, objects=asked.objects[::-1]))
    assert shares(report) == dict.fromkeys(MEASURES, 1.0) | {ORDER: 0.0}


def _noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _ground(seed: int) -> Image.Image:
    return Image.new("RGB", (128, 128), (246, 246, 245))


@pytest.mark.parametrize(("paint", "grounds"), [(_noise, 0), (_ground, 2)])
def test_pictures_of_nothing_are_misses(
    judge: Judge, paint: Callable[[int], Image.Image], grounds: int
) -> None:
    report = evaluate(
        lambda prompt, seed: paint(seed), PROMPTS, judge, lambda step: None, lambda: False
    )
    hits = {name: report.measures[name].hits for name in MEASURES}
    assert hits == dict.fromkeys(MEASURES, 0) | {BACKGROUND: grounds}


def test_one_object_twice_is_no_pair() -> None:
    asked = PROMPTS[2]
    for guesses, both, order in (
        ((("dog",), ("cow",)), True, True),
        ((("cow",), ("dog",)), True, False),
        ((("dog",), ("dog",)), False, False),
        ((("dog",), ()), False, False),
        ((("cat", "dog"), ("cow",)), False, False),
    ):
        hits = marks(asked, Seen(colour="white", place="middle", guesses=guesses))
        assert (hits[BOTH], hits[ORDER]) == (both, order)


def test_five_guesses() -> None:
    seen = Seen(colour=None, place="", guesses=(("pig", "cow", "cat"),))
    assert marks(PROMPTS[0], seen) == {BACKGROUND: False, OBJECT: False, FIVE: True}


def test_prompts_and_seeds_reach_the_painter_and_progress_is_told(
    things: tuple[SceneObject, ...], judge: Judge
) -> None:
    calls, steps, kept = list[tuple[str, int]](), list[Progress](), list[Image.Image]()
    right = drawer(things, PROMPTS, 64)

    def paint(prompt: str, seed: int) -> Image.Image | None:
        calls.append((prompt, seed))
        return right(prompt, seed)

    evaluate(paint, PROMPTS, judge, steps.append, lambda: False, keep=kept.append)
    assert calls == [(asked.prompt, seed) for seed, asked in enumerate(PROMPTS)]
    assert [(step.picture, step.pictures) for step in steps] == [(n, 4) for n in range(1, 5)]
    assert [picture.size for picture in kept] == [(64, 64)] * 4


def test_a_stop_leaves_what_was_counted(things: tuple[SceneObject, ...], judge: Judge) -> None:
    done: list[Image.Image] = []
    right = drawer(things, PROMPTS, 128)
    stopped = evaluate(
        right, PROMPTS, judge, lambda step: None, lambda: len(done) == 2, keep=done.append
    )
    cut = evaluate(
        lambda prompt, seed: right(prompt, seed) if seed < 2 else None,
        PROMPTS,
        judge,
        lambda step: None,
        lambda: False,
    )
    assert stopped == cut
    assert (len(cut.rows), cut.asked, cut.complete) == (2, 4, False)
    assert cut.measures[BACKGROUND] == Count(hits=2, total=2)
    assert cut.measures[BOTH] == Count()
    assert "Stopped after 2 of 4" in table(cut)
    assert "two objects" not in table(cut)


def test_table_and_json(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: replace(asked, colour="black"))
    lines = table(report).splitlines()
    assert lines[0] == "| asked for | right | % |"
    assert "| background colour | 0 of 4 | 0.0 |" in lines
    assert "| object, first guess | 3 of 3 | 100.0 |" in lines
    best = dict.fromkeys(MEASURES, Count(hits=3, total=4))
    lines = table(replace(report, ceiling=best)).splitlines()
    assert "| background colour | 0 of 4 | 0.0 | 75.0 |" in lines
    assert len({line.count("|") for line in lines}) == 1
    values = json.loads(json.dumps(as_json(replace(report, ceiling=best))))
    assert values["measures"][BACKGROUND] == {"hits": 0, "total": 4}
    assert values["ceiling"][OBJECT] == {"hits": 3, "total": 4}
    assert values["objects"]["dog"] == {"hits": 2, "total": 2}
    assert (values["asked"], values["done"]) == (4, 4)
    row = values["pictures"][1]
    assert (row["prompt"], row["seed"]) == (PROMPTS[1].prompt, 1)
    assert row["guesses"][0][0] == "dog"
    assert (row["place"], row["colour"]) == ("left", "black")


def test_a_grid_shows_every_picture() -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "black")]
    sheet = grid(pictures, PROMPTS, columns=2)
    shown = {colour for _, colour in sheet.getcolors(10**6) or []}
    assert {(255, 0, 0), (0, 0, 255), (0, 0, 0)} <= shown
    assert sheet.width < 32 * 3
    assert sheet.height > 64
    with pytest.raises(ValueError, match="needs a picture"):
        grid([], PROMPTS)
