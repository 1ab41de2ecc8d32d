"""Main memory, also where a container allows less than the computer has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.catalog import ROOT
from pipelines.memory import ram

GB = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ram, "_ROOT", tmp_path)
    return tmp_path


def write(folder: Path, **values: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        (folder / f"memory.{name}").write_text(value)


def test_without_a_limit_it_is_the_computers(groups: Path) -> None:
    total = psutil.virtual_memory().total
    assert ram.look().total == total
    write(groups, max="max\n", current="5\n")
    assert ram.look().total == total
    # What cgroup v1 says where there is none.
    write(groups / "memory", limit_in_bytes="9223372036854771712\n", usage_in_bytes="5\n")
    assert ram.look().total == total


def test_a_limit_counts_with_what_can_be_given_back(groups: Path) -> None:
    write(groups, max=f"{GB}\n", current=f"{GB // 2}\n")
    assert (ram.look().total, ram.look().free) == (GB, GB // 2)
    write(groups, stat=f"anon 7\ninactive_file {GB // 4}\n")
    assert ram.look().free == 3 * GB // 4
    write(groups, current=f"{2 * GB}\n")
    assert ram.look() == ram.Ram(total=GB, free=0, swap=0)


def test_the_older_control_groups_are_read_too(groups: Path) -> None:
    write(
        groups / "memory",
        limit_in_bytes=f"{GB}\n",
        usage_in_bytes=f"{GB // 2}\n",
        stat=f"total_inactive_file {GB // 4}\n",
    )
    assert (ram.look().total, ram.look().free) == (GB, 3 * GB // 4)


@pytest.mark.parametrize("text", ["", "many", "\xff", "1 2"])
def test_files_that_are_no_numbers_are_no_limit(groups: Path, text: str) -> None:
    (groups / "memory.max").write_text(text, "latin-1")
    assert ram.look().total == psutil.virtual_memory().total


_GROWTH = """
import mmap, sys
from pipelines.memory import ram
from pipelines.catalog import ROOT

size = 64 * 2**20
before = ram.private()
with open(sys.argv[1], "rb") as stream:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    assert sum(mapped[:: mmap.PAGESIZE]) > 0
    while_mapped = ram.private() - before
held = b"x" * size
print(while_mapped / size, (ram.private() - before) / size)
"""


def test_what_is_mapped_is_not_private(tmp_path: Path) -> None:
    """In a process of its own: this one takes and gives back memory as it likes."""
    (tmp_path / "weights").write_bytes(b"x" * 64 * 2**20)
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(tmp_path / "weights")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    mapped, held = map(float, done.stdout.split())
    assert mapped < 0.25
    assert 0.75 < held < 1.25
