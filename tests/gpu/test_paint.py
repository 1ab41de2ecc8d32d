"""Painting on a GPU. Skipped, visibly, where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.catalog import Catalog
from pipelines.denoising import samplers
from pipelines.engine import Engine
from pipelines.request import complete

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    found = Engine(Catalog(), inputs=tmp_path_factory.mktemp("inputs"))
    assert found.machine.device == "cuda"
    return found


@pytest.mark.parametrize("sampler", [r.id for r in samplers.SAMPLERS.values() if not r.distilled])
def test_every_sampler_paints_the_colour_that_was_asked_for(engine: Engine, sampler: str) -> None:
    request = complete(
        {"prompt": "a castle on a blue background", "seed": 1, "model": "nano", "sampler": sampler},
        Catalog(),
    )
    (picture,) = engine.generate(request, lambda progress: None, lambda: False)
    border = np.asarray(picture.image, dtype=float)[:8].mean(axis=(0, 1))
    assert border[2] > border[:2].max() + 20


def test_the_gpu_paints_nearly_what_the_processor_paints(engine: Engine, tmp_path: Path) -> None:
    """The noise is the processor's; bf16 changes details, not the picture."""
    from tests.pipelines.conftest import CPU

    request = complete({"prompt": "a red apple on a blue background", "seed": 3}, Catalog())
    pictures = [
        np.asarray(next(iter(e.generate(request, lambda p: None, lambda: False))).image, float)
        for e in (engine, Engine(Catalog(), inputs=tmp_path, machine=CPU))
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() < 12
