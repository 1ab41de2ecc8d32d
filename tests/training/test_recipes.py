"""Recipes: what ships is right, and what is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as some

from app.cli.train import app
from pipelines import sizes
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, StudioError
from tests import tiny
from tests.training import small
from training import bases, recipes
from training.config import differences

ROW = {"id": "x", "title": "X"}
ALONE = [small.stage("a", "vae")]


def resolved(*overrides: str, **changes: Any) -> Any:
    values = small.recipe() | changes
    return recipes.resolve(values, overrides, name="small")


@pytest.mark.parametrize("name", recipes.names())
def test_what_ships_can_be_read(name: str) -> None:
    recipe = recipes.read(recipes.find(name))
    assert recipe.publish is not None
    assert recipe.publish.bins in sizes.names()
    for stage in recipe.stages:
        assert stage.data.bins is None or stage.data.bins in sizes.names()
    # What a recipe is for has a place to go to, and a command that walks it.
    row = recipe.stages[-1].row
    assert row.published is not None
    assert row.verb in typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_small_models_get_their_own_recipes(tmp_path: Path) -> None:
    """A recipe that ships gives way to its sibling for small models, one of the user's never."""
    tiny.build(tmp_path / "tiny")
    large = tiny.build(tmp_path / "large")
    shape = large / "transformer" / "config.json"
    values = json.loads(shape.read_bytes())
    shape.write_text(json.dumps(values | {"num_layers": 28, "num_attention_heads": 100}))
    catalog = Catalog(user_models=tmp_path)
    for name in ("dreambooth", "lora-style"):
        file = recipes.find(name)
        suited = {}
        for base in ("nano", "tiny", "large", "nobody"):
            recipe = recipes.read(file, [f"base.model={base}"])
            suited[base] = recipes.for_base(file, recipe, catalog).stem
        assert suited == {
            "nano": f"{name}-small",
            "tiny": f"{name}-small",
            "large": name,
            "nobody": name,
        }
        own = tmp_path / f"{name}.toml"
        own.write_bytes(file.read_bytes())
        (tmp_path / f"{name}-small.toml").write_bytes(file.read_bytes())
        recipe = recipes.read(own, ["base.model=nano"])
        assert recipes.for_base(own, recipe, catalog) == own
        # The sibling of a sibling is itself.
        small_one = recipes.find(f"{name}-small")
        assert recipes.for_base(small_one, recipes.read(small_one), catalog) == small_one
    shape.write_text("[")
    assert not bases.is_small("large", catalog)


def test_the_paper() -> None:
    """PixArt-α, table 5: updates and pictures of each stage."""
    recipe = recipes.read(recipes.find("pixart-xl2"))
    table = [(s.name, s.steps, s.batch, s.optimizer.lr) for s in recipe.stages]
    assert table == [
        ("pixels", 300_000, 128, 2e-5),
        ("words", 150_000, 178, 2e-5),
        ("beauty-256", 90_000, 178, 2e-5),
        ("beauty-512", 100_000, 40, 2e-5),
        ("beauty-1024", 16_000, 12, 2e-5),
    ]
    assert recipe.stage("pixels").net == {
        "heads": 16,
        "head_dim": 72,
        "layers": 28,
        "interpolation_scale": 0.5,
    }


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["vae.stepz=3"], "There is no key of a stage called “stepz”. Did you mean “steps”?"),
        (["optimiser.lr=1"], "Did you mean “optimizer”?"),
        (["optimizer.learning_rate=1"], "There is no key of [optimizer]"),
        (["steps=many"], "steps: Input should be a valid integer (got 'many')"),
        (["steps=0"], "greater than or equal to 1 (got 0)"),
        (["optimizer.lr=-1"], "optimizer.lr: Input should be greater than 0"),
        (["optimizer.lr=nan"], "finite number"),
        (["optimizer.name=adan"], "'adamw', 'adamw8bit', 'muon' or 'prodigy'"),
        (["method=gan"], "there is no such method; the methods are vae, text-encoder"),
        (["method=text-to-images"], "did you mean text-to-image?"),
        (["data=3"], "“data” is a table"),
        (["data.bins=128"], "valid string"),
        (["data.side=100"], "side must be a multiple of 16"),
        (['words.data.bins="128"'], "give either side or bins, not both"),
        (["vae.net.chanels=[8]"], "did you mean channels?"),
        (["vae.net.channels=8"], "net.channels is a list"),
        (["pixels.net.layers=1000"], "net.layers must lie between 1 and 64"),
        (["beauty.net.heads=2", "beauty.net.head_dim=20"], "must be divisible by 3"),
        (["validation.timesteps=[]"], "validation.timesteps is empty"),
        (["seed=4294967296"], "seed"),
        (["words.data.side=48"], "at least 64"),
        (['pixels.data={"source"="x","bins"="128"}'], "trains on squares"),
        (["vae.net.channels=[8,8]"], "has four numbers"),
        (["vae.net.channels=[8,8,8,9]"], "divisible by 4"),
        (["vae.net.norm_num_groups=2.5"], "norm_num_groups must lie between"),
        (["pixels.net.layers=true"], "net.layers must lie between"),
        (["steps=" + "9" * 5000], "steps"),
        ([".".join("a" * 800) + "=1"], "deeper than any recipe"),
        (["validation.timesteps=[1000]"], "between 0 and 999"),
        (["seed=99999999999999999999"], "seed"),
        (["precision=fp16", "optimizer.name=muon"], "use bf16 with muon"),
        (["words.base.transformer=stage:pixel"], "earlier stage called “pixel”. Did you mean"),
        (["pixels.base.transformer=stage:words"], "There is no earlier stage called “words”"),
        (["text.name=vae"], "Two stages of the recipe are called “vae”"),
        (["steps"], "is not of the form key=value"),
        (["=3"], "is not of the form key=value"),
        (["vae=3"], "names a stage but no key"),
        (["steps.a=3"], "goes below a plain value"),
    ],
)
def test_wrong_values_are_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolved(*overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_one_stage_or_all() -> None:
    recipe = resolved("steps=9", "words.steps=7", "words.data.limit=5", "beauty.title=Fine")
    assert [stage.steps for stage in recipe.stages] == [9, 9, 9, 7, 9]
    assert recipe.stage("words").data.limit == 5
    assert recipe.stage("beauty").title == "Fine"


def test_shared_values_are_merged_below() -> None:
    values = {
        "all": {"steps": 5, "data": {"tokens": 9, "held_out": 0.1}},
        "stage": [
            {"name": "a", "method": "vae", "data": {"source": "x", "held_out": 0.2}},
        ],
    }
    (stage,) = recipes.resolve(values, name="merged").stages
    assert (stage.steps, stage.data.tokens, stage.data.held_out) == (5, 9, 0.2)


def test_a_recipe_of_one_stage_needs_no_stage_table() -> None:
    values = {"method": "vae", "steps": 3, "data": {"source": "x"}}
    (stage,) = recipes.resolve(values, name="alone").stages
    assert stage.name == "alone"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "method"),
        ({"stage": []}, "has no stage"),
        ({"stage": 3}, "written [[stage]]"),
        ({"stage": [3]}, "written [[stage]]"),
        ({"stage": [], "stages": []}, "Did you mean “stage”?"),
        ({"publish": 3, "stage": [small.stage("a", "vae")]}, "written [publish]"),
        ({"publish": {"id": "../x", "title": ""}, "stage": [small.stage("a", "vae")]}, "id"),
        (
            {
                "publish": {"id": "x", "title": "", "bins": "129"},
                "stage": [small.stage("a", "vae")],
            },
            "no table of sizes",
        ),
        (
            {"publish": {"id": "x", "title": "", "size": "7x"}, "stage": [small.stage("a", "vae")]},
            "is not a size",
        ),
        ({"publish": {"idd": "x"}, "stage": [small.stage("a", "vae")]}, "Did you mean “id”?"),
    ],
)
def test_wrong_shapes_are_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        recipes.resolve(values, name="wrong")
    assert sentence in str(caught.value)


def test_files_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    with pytest.raises(RequestError, match="no recipe at"):
        recipes.find(str(file))
    with pytest.raises(RequestError, match="Did you mean “nano”"):
        recipes.find("nanoo")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="not a recipe in TOML"):
        recipes.read(recipes.find(str(file)))
    file.write_text("a = " + "[" * 5000, "utf-8")
    with pytest.raises(RequestError, match="not a recipe in TOML"):
        recipes.read(file)
    file.write_bytes(b"#" * (recipes.MAX_RECIPE_BYTES + 1))
    with pytest.raises(RequestError, match="too large"):
        recipes.read(file)


_VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner),
    max_leaves=8,
)
_KEYS = some.sampled_from(
    ["steps", "method", "data", "net", "optimizer", "base", "objective", "seed", "x", "name"]
)


@settings(max_examples=200, deadline=None)
@given(some.dictionaries(_KEYS, _VALUES, max_size=5))
def test_any_table_is_a_recipe_or_a_sentence(values: dict[str, Any]) -> None:
    try:
        recipes.resolve({"stage": [values]}, name="any")
    except StudioError as error:
        assert len(str(error).splitlines()) <= 1


def test_differences_name_what_changed() -> None:
    one = resolved().stage("words")
    other = resolved("words.optimizer.lr=0.5", "words.steps=99").stage("words")
    assert differences(one, other) == ["optimizer.lr: 0.001 -> 0.5"]
