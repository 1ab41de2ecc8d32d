"""A process that leaves without taking its modules apart has done all that others wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Stands for torch, which takes seconds; `Slow` is what taking modules apart would run into.
BEGIN = """
import atexit, os, sys, tempfile, threading, time, types, weakref
from pipelines.processes.leaving import leave
class Slow:
    def __del__(self): os.write(1, b"taken apart\\n")
slow = sys.modules["torch"] = types.ModuleType("torch")
slow.kept = Slow()
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    # What is printed waits in a buffer, as it does for somebody's pipe.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", BEGIN + script]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_it_ends_with_its_code_and_what_it_had_to_say(tmp_path: Path) -> None:
    out = run(
        f"folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
        "atexit.register(print, 'told of the end')\n"
        "print('not flushed', end=' ')\n"
        "leave(7)\n"
    )
    assert (out.returncode, out.stdout, out.stderr) == (7, "not flushed told of the end\n", "")
    assert list(tmp_path.iterdir()) == []


def test_without_torch_python_ends_it_as_ever() -> None:
    out = run("sys.modules.pop('torch'); leave(7); print('still here'); sys.exit(3)")
    assert out.returncode == 3
    assert out.stdout == "still here\ntaken apart\n"


def test_a_thread_at_work_is_waited_for() -> None:
    out = run(
        "threading.Thread(target=lambda: (time.sleep(0.3), print('written'))).start()\n"
        "leave(7)\n"
        "sys.exit(7)"
    )
    assert out.returncode == 7
    assert "written" in out.stdout


def test_a_reader_who_has_gone_is_told_as_ever() -> None:
    script = "read, write = os.pipe(); os.dup2(write, 1); os.close(write); os.close(read)\n"
    ends = "print('to nobody'); {}sys.exit(7)"
    told = [run(script + ends.format(how)) for how in ("", "leave(7); ")]
    assert told[0].returncode == told[1].returncode == 120
    assert "BrokenPipeError" in told[1].stderr
