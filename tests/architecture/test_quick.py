"""What `--quick` leaves out: whatever asks for torch or for another process, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import multiprocessing
import subprocess
import sys
import threading

import pytest


def test_plain():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def test_model():
    try:
        from torch import nn
    except Exception:
        pass


def test_process():
    subprocess.run(["true"], check=False)


def test_spawn():
    multiprocessing.get_context("spawn").Process(target=int).start()


@pytest.fixture(scope="module")
def page():
    return subprocess.Popen(["true"])


def test_one(page):
    pass


def test_two(page):
    pass


def test_wrong():
    assert "torch" in sys.modules
"""


def test_a_quick_run_loads_no_torch_and_starts_no_process(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_top.py").write_text("import diffusers\n\ndef test_never():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "--quick", "-rsf", "-p", "tests.conftest", "."]
    out = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "1 failed, 1 passed, 6 skipped" in out, out
    assert "test_some.py::test_wrong - AssertionError" in out
    for reason in ("imports torch", "imports diffusers", "starts true", "starts /"):
        assert f"not quick: {reason}" in out, out
