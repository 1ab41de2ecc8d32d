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


def test_freed_memory_hides_nothing_once_it_is_given_back() -> None:
    hidden, peak = run(
        """
from pipelines.memory.measured import give_back
def pieces():  # 125 MiB below the size from which memory comes from the system itself
    return [torch.ones(100_000, dtype=torch.uint8) for _ in range(1311)]
first = pieces()
above = torch.ones(1000, dtype=torch.uint8)  # the heap cannot shrink
first.clear()
with measured(CPU, every=0.001) as hidden:
    first = pieces()
first.clear()
give_back()
with measured(CPU, every=0.001) as peak:
    first = pieces()
print([hidden.bytes, peak.bytes])
"""
    )
    assert hidden < 60 * MIB
    assert peak > 110 * MIB


def test_weights_in_a_file_are_not_what_a_step_needs(tmp_path: Path) -> None:
    """A base that is read as it lies on the disk comes into memory with the first product."""
    read, settled = run(
        f"""
from safetensors.torch import load_file, save_file
from training.loop.tensors import settle
file = {str(tmp_path / "w.safetensors")!r}
def net():
    made = torch.nn.Linear(4096, 8192, bias=False, device="meta").requires_grad_(False)
    made.load_state_dict(load_file(file), assign=True)
    return made.requires_grad_(False)
save_file({{"weight": torch.ones(8192, 4096)}}, file)
x = torch.ones(1, 4096)
torch.nn.functional.linear(torch.ones(1, 64), torch.ones(64, 64))
one = net()
with measured(CPU, every=0.001) as read, torch.no_grad():
    one(x)
del one
two = net()
settle(two)
with measured(CPU, every=0.001) as settled, torch.no_grad():
    two(x)
print([read.bytes, settled.bytes])
"""
    )
    assert read > 120 * MIB
    assert settled < 20 * MIB
