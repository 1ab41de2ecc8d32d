"""A studio without gradio in a process of its own, which says on its output what it shows: for
tests that kill it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import warm


def say(what: str, **more: Any) -> None:
    """Tells the test something: called in the process."""
    print(json.dumps({"say": what, **more}), flush=True)


class Page:
    """Runs `studio`, a function at the top of a module, with the path of a workspace."""

    def __init__(self, studio: Callable[[str], object], workspace: Path) -> None:
        self.said: list[dict[str, Any]] = []
        self._process = warm.Started(studio, str(workspace))

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def until(self, what: str) -> dict[str, Any]:
        """The next thing of the kind `what` that it says."""
        for line in self._process.stdout:
            self.said.append(json.loads(line))
            if self.said[-1]["say"] == what:
                return self.said[-1]
        self._process.wait()
        raise AssertionError(f"never said “{what}”: {self._process.stderr}")

    def kill(self) -> None:
        """SIGKILL to the page alone: what it has started finds itself without one."""
        kill(self.pid)

    def end(self) -> None:
        """Reads what it still says; the process is over then."""
        self.said += [json.loads(line) for line in self._process.stdout]
        if self._process.wait() not in (0, -signal.SIGKILL):
            raise AssertionError(self._process.stderr)

    def told(self, what: str) -> list[dict[str, Any]]:
        """Everything of a kind that it has said."""
        return [one for one in self.said if one["say"] == what]


def kill(process: int) -> None:
    """SIGKILL, where it lives."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        # It had ended already, as everything had.
        return


def query(workspace: Path, sql: str) -> list[tuple[Any, ...]]:
    """What the database of the jobs answers."""
    connection = sqlite3.connect(workspace / "jobs.db")
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()
