"""What the tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.ui.serving import one_loop


@pytest.fixture(scope="session", autouse=True)
def _one_loop() -> Iterator[None]:
    with one_loop():
        yield


@pytest.fixture(autouse=True)
def _warm(warm_children: None) -> None:
    """What the page starts need not load torch first."""
