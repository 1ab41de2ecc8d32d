"""The peak of a piece of work is what it really took: each in a process that holds nothing yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20
BEGIN = """
import torch
from pipelines.memory.measured import held, measured
CPU = torch.device("cpu")
def take(count):  # MiB whose pages are all written
    return torch.ones(count * 2**20, dtype=torch.uint8)
"""


def run(script: str) -> list[float]:
    """The numbers that `script` prints as JSON, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_was_given_back_counts_and_what_was_held_before_does_not() -> None:
    peak, seconds = run(
        """
before = take(64)
with measured(CPU, every=0.001) as peak:
    inside = take(128)
    import time; time.sleep(0.05)
    del inside
print([peak.bytes, peak.seconds])
"""
    )
    assert 120 * MIB <= peak <= 170 * MIB
    assert seconds >= 0.05


def test_a_given_start_counts_what_came_since() -> None:
    peak, inside = run(
        """
start = held(CPU)
kept = take(96)
with measured(CPU, before=start, every=0.001) as peak:
    pass
with measured(CPU, every=0.001) as later:
    pass
print([peak.bytes, later.bytes])
"""
    )
    assert 90 * MIB <= peak <= 130 * MIB
    assert inside < 10 * MIB
