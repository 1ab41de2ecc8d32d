"""Engines and reference pipelines, built once: loading is what costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.catalog import Catalog
from pipelines.memory.planning import Machine
from tests import tiny

if TYPE_CHECKING:
    from pipelines.engine import Engine

CPU = Machine(device="cpu", name="CPU", bf16=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with "tiny" and "tiny-1024" (micro-conditions)."""
    folder = tmp_path_factory.mktemp("models")
    tiny.build(folder / "tiny")
    tiny.build(folder / "tiny-1024", micro_conditions=True, seed=1)
    return folder


@pytest.fixture(scope="session")
def catalog(models: Path) -> Catalog:
    found = Catalog(user_models=models)
    assert found.problems == []
    return found


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="session")
def engine(catalog: Catalog, inputs: Path) -> Engine:
    from pipelines.engine import Engine

    # On the processor, also where there is a GPU: the references below run there in float32.
    return Engine(catalog, inputs=inputs, machine=CPU)
