"""The painting process of a studio that was killed is waited for; that of this studio is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs.queue import PAINTER, JobQueue
from app.jobs.store import JobStore
from lora_manager import drafts
from tests.app.jobs.test_store import OWNER, Painter, request


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when it is told to."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_a_studio_does_not_wait_for_its_own_painting_process(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    painter, store = Painter(tmp_path / "outputs"), JobStore(tmp_path / "jobs.db")
    jobs = JobQueue(painter, store, painter.gallery, runs=False)
    # As the page does: the process is started first, and the jobs after it.
    store.note(PAINTER, drafts.writer(process.pid))
    jobs.start()
    job = jobs.submit(request("a"), OWNER)
    painter.go.release(9)
    ended = jobs.wait(job.id, OWNER, 60)
    jobs.close()
    assert ended is not None
    assert not ended.active
    assert process.poll() is None


def test_that_of_the_studio_before_is_waited_for(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    store = JobStore(tmp_path / "jobs.db")
    store.hold()
    store.note(PAINTER, drafts.writer(process.pid))
    store.close()
    painter = Painter(tmp_path / "outputs")
    painter.go.release(9)
    jobs = JobQueue(painter, JobStore(tmp_path / "jobs.db"), painter.gallery)
    job = jobs.submit(request("a"), OWNER)
    waiting = jobs.wait(job.id, OWNER, 0.5)
    assert waiting is not None
    assert not painter.asked
    process.kill()
    process.wait()
    ended = jobs.wait(job.id, OWNER, 60)
    jobs.close()
    assert ended is not None
    assert not ended.active
