"""The sizes of a model's parts, and configurations that do not tell them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.catalog import Catalog, ModelSpec
from pipelines.errors import ModelError
from pipelines.memory import model_numbers
from pipelines.models.hub_rows import Known, known
from tests.pipelines.memory.test_planning import REAL


def copied(folder: Path) -> ModelSpec:
    model = Catalog().find("nano")
    for part in ("text_encoder", "transformer", "vae"):
        shutil.copytree(model.part(part), folder / part)
    return model.model_copy(update={"folder": folder})


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("vae", "block_out_channels"),
        ("text_encoder", "d_model"),
        ("transformer", "attention_head_dim"),
    ],
)
def test_a_missing_number_is_a_sentence(tmp_path: Path, part: str, key: str) -> None:
    model = copied(tmp_path)
    assert model_numbers.of(model).transformer > 1_000_000
    file = tmp_path / part / "config.json"
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is incomplete"):
        model_numbers.of(model)


@pytest.mark.parametrize("row", known().values(), ids=lambda row: row.id)
def test_released_models_are_foreseen_before_they_are_here(row: Known) -> None:
    found = model_numbers.expected(row)
    assert (found is not None) is row.paints
    if found is not None:
        for name, value in vars(REAL).items():
            assert getattr(found, name) == pytest.approx(value, rel=0.03), name
