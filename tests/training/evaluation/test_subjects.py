"""Subjects: what is asked, what counts as seen, and the whole way on a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import RequestError, UnknownNameError
from tests import tiny
from tests.training.evaluation import sprites
from training.evaluation import judge as judges
from training.evaluation import (
    paint,
    references,
    segmentation,
    subject_command,
    subject_set,
    subjects,
)
from training.evaluation.judge import Judge
from training.evaluation.measure import Count
from training.evaluation.prompts import ScenePrompt
from training.evaluation.references import Look, References
from training.evaluation.subjects import Bench, Measured
from training.evaluation.teaching import Surroundings
from training.scenes.grounds import all_colours
from training.scenes.objects import SceneObject

PHOTO_COLOURS = {"white", "gray", "light blue", "brown"}


@pytest.fixture(scope="module")
def known(things: tuple[SceneObject, ...]) -> References:
    found = references.references(
        things,
        lambda picture: picture,
        side=128,
        report=lambda step: None,
        should_stop=lambda: False,
    )
    assert found is not None
    return found


def scene(thing: SceneObject, asked: ScenePrompt) -> Image.Image:
    picture = paint.drawer([thing], [asked], 128)(asked.prompt, asked.seed)
    assert picture is not None
    return picture


def asked_of(thing: SceneObject, **changes: Any) -> ScenePrompt:
    values: dict[str, Any] = {
        "prompt": "x",
        "kind": "single",
        "objects": (thing.name,),
        "colour": "green",
    }
    return ScenePrompt(**{**values, **changes})


def test_every_asked_background_is_new(things: tuple[SceneObject, ...]) -> None:
    thing = things[0]
    photos = subject_set.photos(thing, side=64)
    assert [photo.size for photo in photos] == [(64, 64)] * 6
    assert len({photo.tobytes() for photo in photos}) == 6
    behind = {segmentation.ground_colour(photo) for photo in photos} - {None}
    assert behind
    assert behind <= PHOTO_COLOURS
    asked = subject_set.prompts(thing)
    assert not {one.colour for one in asked} & PHOTO_COLOURS
    # The same for the same thing: that is what makes figures comparable.
    assert subject_set.prompts(thing, 64)[:40] == asked
    assert [p.tobytes() for p in subject_set.photos(thing, side=64)] == [
        photo.tobytes() for photo in photos
    ]


def test_half_of_the_prompts_name_a_side(things: tuple[SceneObject, ...]) -> None:
    asked = subject_set.prompts(things[0])
    assert len(asked) == len({one.seed for one in asked}) == len({one.prompt for one in asked})
    assert Counter(one.place for one in asked) == {
        "": 20,
        "left": 5,
        "right": 5,
        "top": 5,
        "bottom": 5,
    }
    for one in asked:
        assert f"sks {things[0].name}" in one.prompt
        assert one.colour in one.prompt
        assert one.place in one.prompt
        assert (one.kind == "placed") == bool(one.place)
    # No wording has only some of the colours.
    lefts = {one.colour for one in subject_set.prompts(things[0], 64) if one.place == "left"}
    assert lefts == {one.colour for one in asked}
    assert len(lefts) == 7


def test_no_background_hides_the_subject() -> None:
    red = next(
        thing for thing in sprites.things(40) if sprites.COLOURS[thing.index % 8] == "crimson"
    )
    colours = {one.colour for one in subject_set.prompts(red)}
    assert "red" not in colours
    assert {"green", "blue", "yellow"} <= colours
    assert colours <= set(all_colours())


def test_only_held_out_objects_are_subjects() -> None:
    subject_set.check(("raccoon", "teapot"))
    with pytest.raises(UnknownNameError, match="raccoon"):
        subject_set.check(("racoon",))


def test_the_nearest_reference_is_the_thing_itself(
    known: References, things: tuple[SceneObject, ...]
) -> None:
    looks = []
    for thing in things:
        for seed in range(3):
            one = asked_of(thing, kind="placed", place="left", seed=seed)
            looks.append((thing.sprites[0].emoji, known.look(scene(thing, one), _emoji(thing))))
    right = [emoji == look.nearest for emoji, look in looks]
    assert sum(right) >= 0.9 * len(right)
    assert all(look.place == "left" for _, look in looks)
    like = [look.likeness for _, look in looks]
    other = known.look(scene(things[1], asked_of(things[1])), _emoji(things[0]))
    assert other.likeness < min(like)
    nothing = known.look(Image.new("RGB", (128, 128), "green"), _emoji(things[0]))
    assert (nothing.nearest, nothing.place, nothing.likeness) == ("", "", 0.0)


def test_references_stop(things: tuple[SceneObject, ...]) -> None:
    found = references.references(
        things, lambda picture: picture, side=64, report=lambda step: None, should_stop=lambda: True
    )
    assert found is None


def _emoji(thing: SceneObject) -> str:
    return thing.sprites[0].emoji


def look(likeness: float = 0.0, **values: Any) -> Look:
    return Look(**{"colour": "red", "place": "", "nearest": "", **values}, likeness=likeness)


def test_half_lies_between_in_either_direction() -> None:
    looks = [
        [look(value) for value in row]
        for row in ([0.1, 0.1, 0.9, 0.1], [0.5, 0.95, 0.5, 0.05], [0.9, 0.9, 0.1, 0.9])
    ]
    # The last one is below both, the second above both.
    assert subjects.between(*looks) == Count(hits=2, total=4)
    assert subjects.between([look(0.5)], [look(0.485)], [look(0.9)]) == Count(hits=1, total=1)


def test_what_is_counted_of_a_picture(things: tuple[SceneObject, ...]) -> None:
    asked = [asked_of(things[0], colour="red"), asked_of(things[0], colour="red", place="left")]
    seen = [look(nearest="e", place="left"), look(nearest="f", colour=None, place="right")]
    assert subjects.counted(asked, seen, "e") == Measured(
        there=Count(hits=1, total=2), ground=Count(hits=1, total=2), placed=Count(hits=0, total=1)
    )


class Drawing:
    """Paints right pictures of the subject with the LoRA, of another thing without it."""

    def __init__(self, subject: SceneObject, other: SceneObject, stop: int = 10**6) -> None:
        self.subject, self.other = subject, other
        self.stop, self.asked = (
            stop,
            [(one.prompt, one) for one in subject_set.prompts(subject, 64)],
        )
        self.painted: list[tuple[int, str]] = []

    def __call__(self, prompt: str, seed: int, loras: str = "") -> Image.Image | None:
        self.painted.append((seed, loras))
        if len(self.painted) > self.stop:
            return None
        one = dict(self.asked).get(prompt)
        if one is None:
            return Image.new("RGB", (64, 64), "green")
        thing = self.subject if loras == "mine:1" else self.other
        return scene(thing, asked_of(thing, colour=one.colour, place=one.place, kind=one.kind))


def bench(known: References, judge: Judge, painter: Drawing) -> Bench:
    return Bench(
        paint=painter,
        drawn=scene,
        references=known,
        judge=judge,
        report=lambda step: None,
        should_stop=lambda: False,
    )


def test_a_right_lora_is_told_from_none(
    known: References,
    judge: Judge,
    things: tuple[SceneObject, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject_set, "PROMPTS", 6)
    monkeypatch.setattr(subject_set, "HALF_PROMPTS", 8)
    painter = Drawing(things[2], things[3])
    kept: list[tuple[str, float]] = []
    report = subjects.subject(
        bench(known, judge, painter),
        things[2],
        "mine",
        None,
        lambda one, weight, picture: kept.append((one.prompt, weight)),
    )
    assert report is not None
    assert len(kept) == 8 * 3
    # One seed for all weights of a prompt.
    first = painter.painted[:3]
    assert {seed for seed, _ in first} == {5000}
    assert [loras for _, loras in first] == ["", "mine:0.5", "mine:1"]
    assert report.at[1.0].there.share > 0.8
    assert report.at[0.0].there.hits == 0
    assert report.at[1.0].ground.share > 0.8
    assert report.at[1.0].there.total == report.ceiling.there.total == 6
    assert report.at[1.0].placed.total == 3
    assert report.ceiling.there.share > 0.8
    assert report.likeness[1.0] > report.likeness[0.0]
    assert report.between.total == 8
    # All single things of the first list, without and with the LoRA.
    assert {weight: one.total for weight, one in report.others.items()} == {0.0: 140, 1.0: 140}
    assert subjects.fallen(report) == 0
    text = subjects.table({"a": report, "b": report})
    assert text.count("\n") == 5
    assert "| mean |" in text
    assert json.loads(json.dumps(subjects.as_json(report)))["between"]["total"] == 8


def test_what_the_base_paints_is_counted_once(
    known: References, judge: Judge, things: tuple[SceneObject, ...], monkeypatch: Any
) -> None:
    monkeypatch.setattr(subject_set, "HALF_PROMPTS", 1)
    painter = Drawing(things[2], things[3])
    base = Count(hits=70, total=140)
    report = subjects.subject(bench(known, judge, painter), things[2], "mine", base)
    assert report is not None
    assert report.others[0.0] == base
    assert len(painter.painted) == 3 + 140
    assert subjects.fallen(report) == 50


def test_a_stop_gives_no_report(
    known: References, judge: Judge, things: tuple[SceneObject, ...], monkeypatch: Any
) -> None:
    monkeypatch.setattr(subject_set, "HALF_PROMPTS", 2)
    for stop in (4, 6):
        painter = Drawing(things[2], things[3], stop)
        assert subjects.subject(bench(known, judge, painter), things[2], "mine", None) is None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = subject_set._preset()["lookalikes"].values()
    return sprites.package(tmp_path_factory.mktemp("npm"), *more)


class Seeing:
    """Sees in everything what it is asked about."""

    def look(self, picture: Image.Image, emoji: str) -> Look:
        return look(nearest=emoji)


def test_the_whole_way(
    source: Path, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos are drawn, taught by the recipe for small models, measured; a second call trains
    nothing again."""
    monkeypatch.setattr(subject_set, "PROMPTS", 2)
    monkeypatch.setattr(subject_set, "HALF_PROMPTS", 2)
    monkeypatch.setattr(subjects, "others", lambda bench, loras: Count(hits=1, total=2))
    monkeypatch.setattr(judges, "find", lambda *_: judge)
    seen: list[int] = []

    def few(things: Any, soften: Any, **_: Any) -> Seeing:
        seen.append(len(things))
        assert soften(Image.new("RGB", (64, 64), "red")).size == (64, 64)
        return Seeing()

    monkeypatch.setattr(references, "references", few)
    tiny.build(tmp_path / "models" / "tiny")
    told: list[str] = []
    around = Surroundings(
        models=tmp_path / "models",
        inputs=tmp_path / "inputs",
        cache=tmp_path / "cache",
        report=lambda step: None,
        tell=told.append,
        should_stop=lambda: False,
    )
    order = subject_command.SubjectOrder(
        model="tiny",
        source=source,
        out=tmp_path / "out",
        subjects=("raccoon", "steam train"),
        changes=("steps=1", "batch=2", "lora.rank=2", "precision=fp32", "preview.every=0"),
    )
    found = subject_command.run(order, around)
    assert found is not None
    assert list(found) == ["raccoon", "steam-train"]
    # Objects, held-out ones and lookalikes.
    assert seen == [208 + 8 + len(subject_set._preset()["lookalikes"])]
    out = tmp_path / "out"
    assert len(list((out / "photos" / "raccoon").iterdir())) == 6
    assert {file.stem for file in (out / "loras").glob("*.safetensors")} == set(found)
    report = json.loads((out / "report.json").read_bytes())
    assert report["raccoon"]["at"]["1"]["there"] == {"hits": 2, "total": 2}
    assert (out / "raccoon.png").is_file()
    config = json.loads((out / "runs" / "raccoon" / "01-dreambooth" / "config.json").read_bytes())
    assert config["subject"]["keep"], "the recipe for small models"
    assert (config["subject"]["word"], config["subject"]["kind"]) == ("sks", "raccoon")
    result = out / "runs" / "raccoon" / "01-dreambooth" / "result" / "lora.safetensors"
    before = result.stat().st_mtime_ns
    assert subject_command.run(order, around) is not None
    assert result.stat().st_mtime_ns == before


def test_it_measures_loras_only(source: Path, tmp_path: Path) -> None:
    tiny.build(tmp_path / "models" / "tiny")
    around = Surroundings(
        models=tmp_path / "models",
        inputs=tmp_path,
        cache=tmp_path,
        report=lambda step: None,
        tell=lambda sentence: None,
        should_stop=lambda: False,
    )
    order = subject_command.SubjectOrder(
        model="tiny",
        source=source,
        out=tmp_path / "out",
        subjects=("raccoon",),
        changes=("method=dreambooth-net",),
    )
    with pytest.raises(RequestError):
        subject_command.run(order, around)
    assert not (tmp_path / "out" / "runs").exists()
