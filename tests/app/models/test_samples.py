"""Pictures on a card are real, or there are none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from app.models import samples
from pipelines.catalog import Catalog, ModelSpec
from pipelines.models.weights_digest import digest
from tests.tiny import NANO

SHIPPED = [spec for spec in Catalog() if spec.embedded]


@pytest.mark.parametrize("model", SHIPPED, ids=lambda model: model.id)
def test_the_samples_are_those_of_the_weights_that_ship(model: ModelSpec) -> None:
    found = samples.read(model)
    assert found is not None, "paint them anew: .venv/bin/python -m app.models.samples"
    assert found.prompts == model.examples
    with Image.open(found.file) as strip:
        assert strip.size == (samples.CELL * len(found.prompts), samples.CELL)
    assert found.file.stat().st_size < 200_000


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "x.safetensors").write_bytes(b"weights")
    return Catalog().find("nano").model_copy(update={"folder": tmp_path})


def write(model: ModelSpec, *, across: int = 2, **story: Any) -> None:
    whole = {"prompts": ["a", "b"], "weights": digest(model.part("transformer")), "seed": 1}
    text = PngImagePlugin.PngInfo()
    text.add_text("pixart-studio-samples", json.dumps(whole | story))
    Image.new("RGB", (8 * across, 8)).save(model.folder / samples.FILE, pnginfo=text)


def test_pictures_of_other_weights_are_not_shown(model: ModelSpec) -> None:
    assert samples.read(model) is None
    write(model)
    found = samples.read(model)
    assert found is not None
    assert found.prompts == ("a", "b")
    file = model.part("transformer") / "x.safetensors"
    file.write_bytes(b"other w")
    os.utime(file, (1, 1))
    assert samples.read(model) is None


def test_only_models_that_ship_have_them(model: ModelSpec) -> None:
    write(model)
    assert samples.read(model.model_copy(update={"embedded": False})) is None


@pytest.mark.parametrize("story", [{"prompts": None}, {"prompts": 7}, {"weights": "0" * 10}])
def test_a_story_that_is_none_is_not_told(model: ModelSpec, story: dict[str, Any]) -> None:
    write(model, **story)
    assert samples.read(model) is None


def test_a_strip_that_is_none_is_not_shown(model: ModelSpec) -> None:
    write(model, across=3)
    assert samples.read(model) is None
    (model.folder / samples.FILE).write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")
    assert samples.read(model) is None
    shutil.copyfile(NANO / "tokenizer" / "tokenizer.json", model.folder / samples.FILE)
    assert samples.read(model) is None
