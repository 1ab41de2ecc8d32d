"""Main memory: what this process may use of it, also inside a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

# The limits that a container's memory has, in the two versions of Linux's control groups: the
# limit, what is used, and what of it the system would give back.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Ram:
    """Bytes of main memory. `swap` is what is free of the disk that stands in for it."""

    total: int
    free: int
    swap: int


def look() -> Ram:
    """What there is now: the computer's, or less where a container has a limit."""
    found = psutil.virtual_memory()
    total, free, swap = int(found.total), int(found.available), int(psutil.swap_memory().free)
    for limit, used, cached in _GROUPS:
        most = _number(_ROOT / limit)
        if most is None or most >= total:
            continue
        taken = max(0, (_number(_ROOT / used) or 0) - _listed(_ROOT / used, cached))
        # Whether a container may swap is told in many ways: it is not counted on.
        return Ram(total=most, free=max(0, min(free, most - taken)), swap=0)
    return Ram(total=total, free=free, swap=swap)


def private() -> int:
    """Bytes that only this process holds. Weights that are mapped from their files do not count:
    the system takes them back whenever it wants."""
    process = psutil.Process()
    told = process.memory_info()
    if hasattr(told, "shared"):
        return int(told.rss - told.shared)
    return int(process.memory_full_info().uss)


def _number(file: Path) -> int | None:
    """None where there is no such file, or no limit ("max")."""
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _listed(beside: Path, name: str) -> int:
    try:
        rows = dict(line.split(maxsplit=1) for line in _lines(beside.parent / "memory.stat"))
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0


def _lines(file: Path) -> list[str]:
    return file.read_text("ascii").splitlines()
