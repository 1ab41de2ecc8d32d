"""The peak of a piece of work is what it really took."""

from __future__ import annotations

import torch

from pipelines.measured import held, measured

CPU = torch.device("cpu")
MIB = 2**20


def take(count: int) -> torch.Tensor:
    """`count` MiB whose pages are all written."""
    return torch.ones(count * MIB, dtype=torch.uint8)


def test_what_was_given_back_counts_and_what_was_held_before_does_not() -> None:
    before = take(64)
    with measured(CPU, every=0.001) as peak:
        inside = take(128)
        assert int(inside[-1]) == 1
        del inside
    assert 120 * MIB <= peak.bytes <= 170 * MIB
    assert peak.seconds > 0
    del before


def test_a_given_start_counts_what_came_since() -> None:
    start = held(CPU)
    kept = take(96)
    with measured(CPU, before=start, every=0.001) as peak:
        pass
    assert peak.bytes >= 90 * MIB
    del kept
