"""What is counted: right pictures are hits, wrong ones misses, whatever is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.progress import Progress
from training.evaluation.judge import Judge, Seen
from training.evaluation.likeness import Likeness
from training.evaluation.measure import (
    BACKGROUND,
    BOTH,
    FIVE,
    FOUR,
    OBJECT,
    ORDER,
    POSITION,
    TWO_THREE,
    Count,
    EvaluationReport,
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
        prompt="a dog at the left",
        kind="placed",
        objects=("dog",),
        colour="pink",
        place="left",
        seed=1,
    ),
    ScenePrompt(
        prompt="dog and wolf", kind="pair", objects=("dog", "wolf"), colour="white", seed=2
    ),
    ScenePrompt(
        prompt="a wolf at the top",
        kind="placed",
        objects=("wolf",),
        colour="gray",
        place="top",
        seed=3,
    ),
)
FIRST_MEASURES = (OBJECT, FIVE, BACKGROUND, POSITION, BOTH, ORDER)
Change = Callable[[ScenePrompt], ScenePrompt]


def measured(things: tuple[SceneObject, ...], judge: Judge, change: Change) -> EvaluationReport:
    """The report on right pictures of changed prompts."""
    drawn = [change(asked) for asked in PROMPTS]
    paint = drawer(things, drawn, 128)
    return evaluate(paint, PROMPTS, judge, lambda step: None, lambda: False)


def shares(report: EvaluationReport) -> dict[str, float]:
    return {name: report.measures[name].share for name in FIRST_MEASURES}


def test_right_pictures_are_hits(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: asked)
    assert set(shares(report).values()) == {1.0}
    assert {name: report.measures[name].total for name in FIRST_MEASURES} == {
        OBJECT: 3,
        FIVE: 3,
        BACKGROUND: 4,
        POSITION: 2,
        BOTH: 1,
        ORDER: 1,
    }
    assert report.objects == {
        "cat": Count(hits=1, total=1),
        "wolf": Count(hits=2, total=2),
        "dog": Count(hits=2, total=2),
    }
    assert report.seeds == (0, 1, 2, 3)
    assert report.complete


def test_other_grounds_are_misses(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: replace(asked, colour="black"))
    assert shares(report) == dict.fromkeys(FIRST_MEASURES, 1.0) | {BACKGROUND: 0.0}


def test_other_objects_are_misses(things: tuple[SceneObject, ...], judge: Judge) -> None:
    swap = {"cat": "tiger", "dog": "fox", "wolf": "lion"}
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
    assert shares(report) == dict.fromkeys(FIRST_MEASURES, 1.0) | {POSITION: 0.0}


def test_a_pair_in_the_other_order_has_both(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: replace(asked, objects=asked.objects[::-1]))
    assert shares(report) == dict.fromkeys(FIRST_MEASURES, 1.0) | {ORDER: 0.0}


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
    hits = {name: report.measures[name].hits for name in FIRST_MEASURES}
    assert hits == dict.fromkeys(FIRST_MEASURES, 0) | {BACKGROUND: grounds}


def test_one_object_twice_is_no_pair() -> None:
    asked = PROMPTS[2]
    for guesses, both, order in (
        ((("dog",), ("wolf",)), True, True),
        ((("wolf",), ("dog",)), True, False),
        ((("dog",), ("dog",)), False, False),
        ((("dog",), ()), False, False),
        ((("cat", "dog"), ("wolf",)), False, False),
    ):
        hits = marks(asked, Seen(colour="white", place="middle", guesses=guesses))
        assert (hits[BOTH], hits[ORDER]) == (both, order)


def test_five_guesses() -> None:
    seen = Seen(colour=None, place="", guesses=(("tiger", "wolf", "cat"),))
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
    best = dict.fromkeys(FIRST_MEASURES, Count(hits=3, total=4))
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


def hit(asked: ScenePrompt, *guesses: str, **seen: Any) -> bool:
    """The one measure that `asked` takes part in."""
    values = {"colour": "blue", "place": "middle", "tints": (True,), **seen}
    hits = marks(asked, Seen(guesses=tuple((g,) if g else () for g in guesses), **values))
    (result,) = hits.values()
    return result


def test_binding_needs_the_thing_its_colour_and_the_ground() -> None:
    asked = ScenePrompt(
        prompt="a black cat on blue",
        kind="single",
        objects=("black cat",),
        colour="blue",
        list="binding",
    )
    assert hit(asked, "cat")
    assert not hit(asked, "dog")
    assert not hit(asked, "")
    assert not hit(asked, "cat", tints=(False,))
    assert not hit(asked, "cat", colour="black")
    assert not hit(asked, "cat", colour=None)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_counts_need_as_many_of_the_object(count: int) -> None:
    asked = ScenePrompt(
        prompt="cats", kind="number", objects=("cat",), colour="blue", count=count, list="counts"
    )
    assert hit(asked, *["cat"] * count)
    assert not hit(asked, *["cat"] * (count - 1))
    assert not hit(asked, *["cat"] * (count + 1))
    assert not hit(asked, *["dog"] * count)
    assert not hit(asked)
    # One that is not recognised among three is no other count.
    assert hit(asked, *["cat"] * (count - 1), "dog") == (count > 2)
    seen = Seen(colour="blue", place="", guesses=())
    assert list(marks(asked, seen)) == [TWO_THREE if count < 4 else FOUR]


def test_three_things_need_all_three() -> None:
    asked = ScenePrompt(
        prompt="three", kind="trio", objects=("cat", "red car", "dog"), colour="blue", list="three"
    )
    assert hit(asked, "dog", "cat", "car")
    assert not hit(asked, "dog", "dog", "car")
    assert not hit(asked, "dog", "cat", "")


def test_other_wordings_need_all_that_they_say() -> None:
    asked = ScenePrompt(
        prompt="left, a dog",
        kind="placed",
        objects=("dog",),
        colour="blue",
        place="left",
        list="free",
    )
    assert hit(asked, "dog", place="left")
    assert not hit(asked, "dog", place="right")
    assert not hit(asked, "cat", place="left")
    assert not hit(asked, "dog", place="left", colour="red")
    open_ground = replace(asked, colour="", place="")
    assert hit(open_ground, "dog", colour=None)
    for name in ("bare", "full"):
        assert hit(replace(open_ground, list=name), "dog", colour=None)
        assert not hit(replace(open_ground, list=name), "cat")


def test_drawn_scenes_of_all_lists_are_hits(things: tuple[SceneObject, ...], judge: Judge) -> None:
    """What is drawn is what was asked for, and the judge finds it."""
    asked = [
        ScenePrompt(
            prompt="two", kind="number", objects=("dog",), colour="white", count=2, list="counts"
        ),
        ScenePrompt(
            prompt="3", kind="trio", objects=("fox", "cat", "lion"), colour="white", list="three"
        ),
        ScenePrompt(prompt="lion", kind="single", objects=("lion",), list="bare"),
        ScenePrompt(prompt="a dog", kind="single", objects=("dog",), colour="white", list="free"),
    ]
    asked = [replace(prompt, seed=seed) for seed, prompt in enumerate(asked)]
    report = evaluate(drawer(things, asked, 256), asked, judge, lambda step: None, lambda: False)
    assert [tuple(row.hits.values()) for row in report.rows] == [(True,)] * 4


def test_looks_are_in_the_table(things: tuple[SceneObject, ...], judge: Judge) -> None:
    report = measured(things, judge, lambda asked: asked)
    alike = replace(report, likeness=Likeness(energy=0.5, distance=2.25))
    assert "| gradient energy, % of drawn scenes' | | 50.0 |" in table(alike)
    both = replace(alike, ceiling=report.measures, best=Likeness(energy=0.97, distance=0.125))
    assert "| Fréchet distance in VGG features | | 2.2 | 0.1 |" in table(both)
    assert as_json(both)["best"] == {"energy": 0.97, "distance": 0.125}
    assert len({line.count("|") for line in table(both).splitlines()}) == 1
    lone = replace(alike, ceiling=report.measures)
    assert len({line.count("|") for line in table(lone).splitlines()}) == 1
