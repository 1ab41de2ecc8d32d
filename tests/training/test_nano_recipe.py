"""The recipe of the small model: its data commands, and its walk from nothing in miniature."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from pipelines import sizes
from pipelines.catalog import ROOT
from tests.training import small
from tests.training.test_stages import Place
from training import recipes
from training.config import RunConfig
from training.scenes.captions import several
from training.scenes.compose import KINDS, sample_scene
from training.scenes.objects import all_objects
from training.stages import results

RECIPE = recipes.find("nano")
DOCS = ROOT / "docs" / "train-from-scratch.md"
PICTURES = 24


def commands(text: str) -> dict[str, dict[str, str]]:
    """The options of the `train scenes` commands of `text`, by the folder that each draws into."""
    found = {}
    for line in re.findall(r"^#?\s*\$draw data/(.*)$", text, re.MULTILINE):
        folder, *words = shlex.split(line)
        found[folder] = dict(zip(words[::2], words[1::2], strict=True))
    return found


def drawn_side(options: dict[str, str]) -> int:
    """The shortest side of the pictures that a command draws."""
    if "--bins" in options:
        return min(min(size.width, size.height) for size in sizes.bins(options["--bins"]))
    return int(options["--size"])


def test_recipe_and_docs_draw_the_same_pictures() -> None:
    made = commands(RECIPE.read_text("utf-8"))
    assert made == commands(DOCS.read_text("utf-8"))
    assert {stage.data.source for stage in recipes.read(RECIPE).stages} == set(made)
    for options in made.values():
        weights = dict(pair.split("=") for pair in options["--kinds"].split(","))
        assert set(weights) <= set(KINDS)
        assert sum(map(float, weights.values())) == pytest.approx(1)


def test_no_stage_scales_pictures_up() -> None:
    made = commands(RECIPE.read_text("utf-8"))
    for stage in recipes.read(RECIPE).stages:
        options = made[stage.data.source]
        if stage.data.bins is not None:
            assert options["--bins"] == stage.data.bins
        elif stage.data.side is not None:
            assert drawn_side(options) >= stage.data.side


def test_the_model_paints_the_sizes_that_it_learns_last() -> None:
    recipe = recipes.read(RECIPE)
    last, row = recipe.stages[-1], recipe.publish
    assert row is not None
    table = sizes.bins(row.bins)
    assert row.bins == last.data.bins
    assert sizes.parse(row.size) == sizes.nearest(sizes.Size(1, 1), table)
    for size in table:
        assert size.width % 16 == size.height % 16 == 0
        assert size.width * size.height == pytest.approx(256 * 256, rel=0.04)


def test_every_caption_fits_into_the_tokens() -> None:
    """Words and signs are tokens; the end of a text is one more."""
    recipe = recipes.read(RECIPE)
    limits = {s.data.tokens for s in recipe.stages if s.method in ("text-encoder", "text-to-image")}
    (limit,) = limits
    objects = all_objects()
    longest = max(
        len(re.findall(r"[^\s,:;.!?]+|[,:;.!?]", caption))
        for number in range(1500)
        for caption in several(sample_scene("trio", f"t/{number}", objects, 1.0), f"t/{number}", 3)
    )
    assert longest + 1 <= limit


def miniature(stage: RunConfig) -> list[str]:
    """What makes a stage small; which stages there are and what they hand over stays."""
    name = stage.name
    made = [f"{name}.steps=2", f"{name}.batch=4", f"{name}.preview.steps=2"]
    made += [f"{name}.validation.pictures=4", f"{name}.precision=fp32"]
    if "channels" in stage.net:
        made += [f"{name}.net.channels=[16, 16, 16, 16]"]
    if "heads" in stage.net:
        made += [f"{name}.net.heads=2", f"{name}.net.head_dim=24", f"{name}.net.layers=1"]
    if "vocabulary" in stage.net:
        made += [f"{name}.net.vocabulary=128"]
    return made


def test_the_walk_from_an_empty_disk(tmp_path: Path) -> None:
    """Every stage of the recipe starts, ends, hands its result on and paints a preview."""
    whole = recipes.read(RECIPE)
    recipe = recipes.read(RECIPE, [o for stage in whole.stages for o in miniature(stage)])
    place = Place(tmp_path)
    for source in {stage.data.source for stage in recipe.stages}:
        small.pictures(place.data / source, PICTURES)
    assert place.walk(recipe).reason == "finished"
    for number, stage in enumerate(recipe.stages, start=1):
        folder = place.run / f"{number:02d}-{stage.name}"
        assert (folder / "result" / "training.json").is_file()
        painted = sorted((folder / "previews").glob("*.png"))
        # A text encoder has nothing to show.
        assert len(painted) == (0 if stage.method == "text-encoder" else 2)
        for file in painted:
            with Image.open(file) as sheet:
                assert min(sheet.size) >= 64
    parts = results(recipe, place.run)
    assert {"vae", "text", "transformer"} <= set(parts)
    assert parts["vae"].folder.parent.name == "02-vae-sharp"
