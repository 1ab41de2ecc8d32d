"""LoRAs on a GPU: added to the weights there, and gone with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.catalog import Catalog
from pipelines.engine import Engine
from pipelines.request import complete
from tests import tiny
from tests.small_loras import lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


def test_a_lora_changes_the_picture_and_leaves_no_trace(tmp_path: Path) -> None:
    tiny.build(tmp_path / "models" / "tiny")
    lora(tmp_path / "loras" / "ink.safetensors")
    catalog = Catalog(user_models=tmp_path / "models", loras=tmp_path / "loras")
    engine = Engine(catalog, inputs=tmp_path / "inputs")
    assert engine.machine.device == "cuda"

    def paint(loras: str) -> np.ndarray:
        values = {"prompt": "a cat", "model": "tiny", "seed": 1, "steps": 3, "loras": loras}
        request = complete(values, catalog)
        (picture,) = engine.generate(request, lambda progress: None, lambda: False)
        return np.asarray(picture.image, dtype=int)

    plain, active = paint(""), paint("ink")
    assert np.abs(active - plain).mean() > 1
    assert np.array_equal(paint(""), plain)
    assert np.array_equal(paint("ink"), active)
