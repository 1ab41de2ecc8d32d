"""Forecasts on the page follow what others do with the memory, and do not flicker."""

from __future__ import annotations

import pytest

from app.hardware import Forecasts
from pipelines.catalog import Catalog
from pipelines.memory.planning import GIB, Machine, MemoryRequest

CPU = Machine(device="cpu", name="CPU", bf16=False, ram_total=100 * GIB, ram_free=60 * GIB)
WISH = MemoryRequest(width=128, height=128)


def test_what_is_free_is_followed() -> None:
    free = 50.0
    forecasts, model = Forecasts(lambda: int(free * GIB)), Catalog().find("nano")

    def told(machine: Machine = CPU) -> float:
        words = forecasts.of(machine, model, WISH).split()
        return float(words[words.index("are") - 2]) * 1e9 / GIB

    # The painting process counts what it would give back itself.
    assert told() == pytest.approx(60, abs=0.1)
    free = 48.0
    assert told() == pytest.approx(60, abs=0.1), "small changes are not told"
    free = 20.0
    assert told() == pytest.approx(30, abs=0.1)
    free = 22.0
    assert told() == pytest.approx(30, abs=0.1)
    free = 49.0
    assert told() == pytest.approx(59, abs=0.1)
    # A newer word of the painting process counts from then on.
    newer = Machine(device="cpu", name="CPU", bf16=False, ram_total=100 * GIB, ram_free=10 * GIB)
    assert told(newer) == pytest.approx(10, abs=0.1)


def test_unknown_memory_stays_unknown() -> None:
    unknown = Machine(device="cpu", name="CPU", bf16=False)
    assert "free" not in Forecasts().of(unknown, Catalog().find("nano"), WISH)
