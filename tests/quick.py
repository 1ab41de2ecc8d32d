"""`--quick`: the tests that need no torch and start no process, so no model and no browser either.

Nobody marks them. In a quick run the libraries of the models cannot be imported and no process can
be started: a test that asks for one of them is left out at that moment, and the run says for each
what it asked for (`-rs`). What the fixtures of a folder need is imported inside them, so that its
other tests stay quick.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

_LIBRARIES = frozenset(("torch", "diffusers", "transformers", "peft", "playwright"))
_STARTS = frozenset(
    (
        "subprocess.Popen",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.exec",
        "_winapi.CreateProcess",
    )
)
# Every one of their tests would be left out, some after a long way.
_FOLDERS = frozenset(("attack", "browser", "gpu"))


class _Refusal(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the libraries, so that nobody takes them for missing, and lets nobody load them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _LIBRARIES:
            return None
        return importlib.util.spec_from_loader(name, self)

    def exec_module(self, module: ModuleType) -> None:
        _leave_out(f"imports {module.__name__}")


def _leave_out(why: str) -> NoReturn:
    # In no `except Exception` on the way, and at the top of a test's module, too.
    raise pytest.skip.Exception(f"not quick: {why}", allow_module_level=True)


def refuse_what_is_slow() -> None:
    """From now on, in this process."""
    loaded = _LIBRARIES & set(sys.modules)
    assert not loaded, f"{loaded} cannot be kept out any more"
    # Asks the program `uname`, once; pytest-xdist and others say what machine this is.
    platform.processor()
    sys.meta_path.insert(0, _Refusal())

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS:
            _leave_out(f"starts {arguments[0] if arguments else 'a process'}")

    sys.addaudithook(hear)

    # The one way to start a process that tells the hook nothing.
    def refuse(path: Any, *_: Any) -> NoReturn:
        _leave_out(f"starts {os.fsdecode(path)}")

    multiprocessing.util.spawnv_passfds = refuse  # type: ignore[assignment]


def is_never_quick(path: Path) -> bool:
    """True for the folders whose tests all have a process, a browser or a GPU of their own."""
    here = Path(__file__).parent
    return path.parent == here and path.name in _FOLDERS
