"""The judge names drawn objects, and is kept so that it is trained once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.errors import SaveError
from pipelines.progress import Progress, Stage
from training.evaluation import judge as judges
from training.evaluation.judge import Judge, find, train
from training.scenes.compose import draw, sample_scene
from training.scenes.objects import SceneObject, Sprite, all_objects, named


def test_drawn_objects_are_named(things: tuple[SceneObject, ...], judge: Judge) -> None:
    assert judge.accuracy >= 0.9
    right = total = 0
    for seed in range(24):
        scene = sample_scene("single", f"test/{seed}", things)
        seen = judge.see(draw(scene, 128, 128))
        if scene.ground.kind == "plain":
            assert seen.colour == scene.ground.colours[0]
        right += seen.guesses[0][:1] == (scene.items[0].object.name,)
        total += 1
    # A sprite on a ground of its own colour cannot be seen.
    assert right / total >= 0.9


def test_both_of_a_pair_are_named(things: tuple[SceneObject, ...], judge: Judge) -> None:
    scenes = (sample_scene("pair", f"test/{seed}", things) for seed in range(40))
    beside = [scene for scene in scenes if scene.arrangement == "next"]
    assert len(beside) > 10
    right = 0
    for scene in beside:
        seen = judge.see(draw(scene, 128, 128), parts=2)
        names = tuple(item.object.name for item in scene.items)
        right += tuple(guesses[0] for guesses in seen.guesses if guesses) == names
    assert right / len(beside) >= 0.8


@pytest.mark.parametrize("parts", [1, 2])
def test_nothing_is_named_where_nothing_is(judge: Judge, parts: int) -> None:
    noise = Image.effect_noise((64, 64), 120).convert("RGB")
    for picture in (Image.new("RGB", (128, 128), (212, 36, 40)), noise):
        seen = judge.see(picture, parts=parts)
        assert seen.guesses == ((),) * parts
        assert seen.place == ""


def test_guesses_are_five_different_names(things: tuple[SceneObject, ...], judge: Judge) -> None:
    scene = next(
        s
        for n in range(99)
        if (s := sample_scene("single", n, things)).ground.colours == ("white",)
    )
    guesses = judge.see(draw(scene, 128, 128)).guesses[0]
    assert len(set(guesses)) == 5
    assert set(guesses) <= set(judge.names)


def test_each_of_several_is_named(things: tuple[SceneObject, ...], judge: Judge) -> None:
    """Counted where they stand apart, on plain grounds that hide none of them."""
    right = total = three = 0
    for seed in range(60):
        scene = sample_scene("number", f"test/{seed}", things)
        if scene.ground.kind != "plain" or scene.ground.colours[0] not in ("white", "gray"):
            continue
        seen = judge.see(draw(scene, 128, 128), apart=True)
        right += [guesses[0] for guesses in seen.guesses] == [scene.items[0].object.name] * len(
            scene.items
        )
        total += 1
        three += len(scene.items) > 2
    assert min(total, three) >= 3
    assert right / total >= 0.8


def test_three_are_named_from_left_to_right(things: tuple[SceneObject, ...], judge: Judge) -> None:
    right = total = 0
    for seed in range(120):
        scene = sample_scene("trio", f"test/{seed}", things)
        if scene.ground.colours == ("white",):
            seen = judge.see(draw(scene, 256, 256), parts=3)
            names = tuple(item.object.name for item in scene.items)
            right += tuple(guesses[0] for guesses in seen.guesses if guesses) == names
            total += 1
    assert total >= 3
    assert right / total >= 0.6


def test_a_thing_of_another_colour_is_not_what_was_asked_for() -> None:
    """One object in two colours, and one whose colour the painter changed."""
    square = next(thing for thing in all_objects() if thing.name == "square")
    rabbit = next(thing for thing in all_objects() if thing.name == "rabbit")
    drawn = {"red": (212, 36, 40), "blue": (36, 80, 204), "white": (246, 246, 245)}

    def block(sprite: Sprite) -> Sprite:
        level = Image.new("RGBA", (60, 60), drawn[sprite.colour]).convert("RGBa")
        return replace(sprite, levels=(level,))

    red, blue = (s for s in square.sprites if s.colour in ("red", "blue"))
    things = (
        replace(square, sprites=(block(red), block(blue))),
        replace(rabbit, sprites=(block(rabbit.sprites[0]),)),
    )
    judge = train(things, lambda step: None, lambda: False, views=1, checks=1)
    assert judge is not None

    def tinted(colour: tuple[int, int, int], name: str) -> bool:
        picture = Image.new("RGB", (128, 128), (140, 140, 142))
        picture.paste(colour, (40, 40, 90, 90))
        wanted = named(things, name)
        assert wanted is not None
        return judge.see(picture, wanted=[wanted]).tints == (True,)

    assert tinted((212, 36, 40), "red square")
    assert tinted((36, 80, 204), "blue square")
    assert not tinted((36, 80, 204), "red square")
    assert not tinted((212, 36, 40), "blue square")
    assert tinted((230, 230, 240), "white rabbit")
    assert not tinted((250, 216, 52), "white rabbit")
    # Nothing has no colour.
    nothing = Image.new("RGB", (128, 128), (246, 246, 245))
    assert judge.see(nothing, wanted=[things[1]]).tints == (False,)


def test_the_same_sprites_give_the_same_judge(things: tuple[SceneObject, ...]) -> None:
    one, other = (
        train(things[:2], lambda step: None, lambda: False, views=2, checks=1) for _ in range(2)
    )
    assert one is not None
    assert other is not None
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name


def test_a_judge_is_kept(
    things: tuple[SceneObject, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "VIEWS", 2)
    monkeypatch.setattr(judges, "CHECKS", 1)
    cache, steps = tmp_path / "cache", list[Progress]()
    first = find(things[:2], cache, steps.append, lambda: False)
    assert first is not None
    assert {step.stage for step in steps} == {Stage.FEATURES}
    assert steps[-1].done == steps[-1].total == 6
    assert {file.suffix for file in cache.iterdir()} == {".safetensors", ".json"}
    steps.clear()
    again = find(things[:2], cache, steps.append, lambda: False)
    assert again is not None
    assert steps == []
    assert (again.names, again.accuracy) == (first.names, first.accuracy)
    assert torch.equal(again.weights["layer"], first.weights["layer"])
    # Other sprites have a judge of their own, and a damaged file is made again.
    find(things[1:3], cache, steps.append, lambda: False)
    assert steps
    for suffix in (".safetensors", ".json"):
        for file in cache.glob(f"*{suffix}"):
            file.write_bytes(b"{}")
        steps.clear()
        repaired = find(things[:2], cache, steps.append, lambda: False)
        assert steps
        assert repaired is not None
        assert torch.equal(repaired.weights["layer"], first.weights["layer"])


def test_a_stopped_judge_leaves_nothing(things: tuple[SceneObject, ...], tmp_path: Path) -> None:
    assert find(things, tmp_path / "cache", lambda step: None, lambda: True) is None
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_made(
    things: tuple[SceneObject, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "VIEWS", 1)
    monkeypatch.setattr(judges, "CHECKS", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be made"):
        find(things[:2], tmp_path / "file" / "cache", lambda step: None, lambda: False)
