"""What is being written, under names that say who writes it; swept when that process is dead.

    .<target>.<writer>-<dice>.<kind>    part: becomes the target; old: what it takes the place of;
                                        gone: is being deleted
    <writer>/                           a folder that is one process's own while it lives

A writer is `<process>-<start>-<place>`: the number of a process is given again, the moment of its
start is not, and in another container or on another computer the same number is somebody else.
What a writer of another place has left can only be judged by its age, and so are the names that
earlier versions gave.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

DraftKind = Literal["part", "old", "gone"]
OLD_SECONDS = 86_400.0
"""Nobody writes at one thing for so long without touching it."""
_WRITER = r"(?P<process>\d{1,10})-(?P<start>[0-9a-f]{6})-(?P<place>[0-9a-f]{4})"
_DRAFT = re.compile(rf"\.(?P<target>.+)\.{_WRITER}-[0-9a-f]{{8}}\.(?P<kind>part|old|gone)")
_FOLDER = re.compile(_WRITER)
# Of earlier versions: with the number of the process at most; the last are those of `publish`.
_EARLIER = (
    re.compile(r"\.(?P<target>.+)\.(\d+-)?[0-9a-f]{8}\.(?P<kind>part|old|gone)"),
    re.compile(r"\.(?P<target>.+)\.(?P<kind>draft|old)-\d+"),
)


def beside(target: Path, kind: DraftKind = "part") -> Path:
    """A new name in the folder of `target` that says that this process writes it."""
    return target.with_name(f".{target.name}.{writer()}-{secrets.token_hex(4)}.{kind}")


def writer(process: int | None = None) -> str:
    """A process, this one where none is named, as the names of its drafts tell it."""
    return _writer(os.getpid() if process is None else process)


def process_of(writer: str) -> int | None:
    """The number of the process that `writer` names; None where it is not there (any more)."""
    found = _FOLDER.fullmatch(writer)
    if found is None or _is_elsewhere(found) or _is_dead(found):
        return None
    return int(found["process"])


@cache
def _writer(process: int) -> str:
    return f"{process}-{_start(process) or '0' * 6}-{_place()}"


def sweep(folder: Path) -> None:
    """Takes away the drafts in `folder` whose writer is dead; what was replaced comes back.

    Never raises: what stays only takes room.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            with suppress(OSError):
                _sweep(path)


def sweep_below(root: Path) -> None:
    """`sweep` for `root`, which may be a link, and all folders below it; links there stay."""
    for folder, below, names in os.walk(root):
        here = Path(folder)
        # Looked at as texts: there may be hundreds of thousands of pictures.
        for name in [*names, *below]:
            if name.startswith("."):
                with suppress(OSError):
                    _sweep(here / name)


def own_folder(parent: Path) -> Path:
    """The folder in `parent` that is this process's own, made if need be. Raises OSError."""
    folder = parent / writer()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def sweep_folders(parent: Path) -> None:
    """Takes away what is in `parent` but for the own folders of processes that may live.

    What is no such folder goes by its age: earlier versions put things there. Never raises.
    """
    with suppress(OSError):
        for path in list(parent.iterdir()):
            # One that somebody else has just taken away keeps no other.
            with suppress(OSError):
                found = _FOLDER.fullmatch(path.name)
                known = found is not None and not _is_elsewhere(found)
                if _is_dead(found) if found is not None and known else _is_old(path):
                    _remove(path)


def _sweep(path: Path) -> None:
    found = _DRAFT.fullmatch(path.name)
    if found is not None:
        if not _is_dead(found) and not (_is_elsewhere(found) and _is_old(path)):
            return
    else:
        matches = (pattern.fullmatch(path.name) for pattern in _EARLIER)
        found = next(filter(None, matches), None)
        if found is None or not _is_old(path):
            return
    target = path.with_name(found["target"])
    if found["kind"] == "old" and not os.path.lexists(target):
        path.rename(target)
    else:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_elsewhere(found: re.Match[str]) -> bool:
    return found["place"] != _place() or found["start"] == "0" * 6


def _is_dead(found: re.Match[str]) -> bool:
    """True where the writer was of this place and is certainly not there any more."""
    if _is_elsewhere(found):
        return False
    process = int(found["process"])
    start = _start(process)
    return start != found["start"] if start is not None else not _exists(process)


def _is_old(path: Path) -> bool:
    """Whether nothing in it was touched for a day; a link counts as itself."""
    return time.time() - max(_times(path)) > OLD_SECONDS


def _times(path: Path) -> Iterator[float]:
    yield path.lstat().st_mtime
    if path.is_dir() and not path.is_symlink():
        for inner in path.rglob("*"):
            with suppress(OSError):
                yield inner.lstat().st_mtime


def _start(process: int) -> str | None:
    """When a process was started, as 6 hex digits; None where it is dead or cannot be asked."""
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
            # The name, in brackets before the rest, may hold anything.
            rest = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        # Dead, though nobody has asked how it ended yet.
        if rest[0] in (b"Z", b"X"):
            return "dead"
        told = f"{boot}{rest[19].decode()}"
    else:
        import psutil

        try:
            told = f"{psutil.Process(process).create_time():.2f}"
        except psutil.Error:
            return None
    return hashlib.sha256(told.encode()).hexdigest()[:6]


def _exists(process: int) -> bool:
    if sys.platform != "linux":
        import psutil

        return bool(psutil.pid_exists(process))
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # Somebody else's, whom the system hides from us.
        return True
    return True


def _place() -> str:
    """Where numbers of processes mean what they mean here, as 4 hex digits."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{platform.node()}\n{numbers}".encode()).hexdigest()[:4]
