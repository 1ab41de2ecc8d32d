"""Three moments of `kill_trainings`: real processes, really killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.training.kill_trainings import Bench


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_is_killed_ends_as_if_nobody_had_been(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.moment("page", "training", 0.03)["alive"] == 1
    bench.moment("trainer", "checkpoint", 0.0)
    assert bench.moment("painter", "painting", 0.02)["alive"] == 1
