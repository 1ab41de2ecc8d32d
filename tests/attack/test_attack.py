"""The short form of `python -m tests.attack`: every attack once, against real studios."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attack import rows
from tests.attack.attack import Attack, Target
from tests.attack.started import started


@pytest.fixture(scope="module", params=["alone", "shared"])
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    with started(folder, short=True, shared=request.param == "shared") as target:
        yield target


@pytest.mark.parametrize("attack", rows.attacks(), ids=lambda one: one.promise)
def test_the_promise_holds(target: Target, attack: Attack) -> None:
    (row,) = rows.tried(target, [attack])
    # An attack that needs the other studio is tried there; no row may be tried nowhere.
    assert row.result in ("held", "not tried"), row.said
