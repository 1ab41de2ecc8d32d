"""Kills the page, the painting process or both at random moments, with twelve jobs in the queue.

    python -m tests.app.jobs.kill_many 40       so many moments; prints what each one did

The page is a real studio without gradio, its painting process a real one whose engine paints grey
squares. After each kill the studio is started again where it was killed, and lets every job end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
JOBS, PICTURES = 12, 2
VICTIMS = ("page", "worker", "both")
# Pictures have their seeds from here on: each job a range of its own.
_SEEDS = 1000
_STEP_SECONDS = 0.02


# --- the painting process


def paint_squares(pipe: Any, workspace: str, preload: str | None) -> None:
    """The real painting process with an engine that needs no torch."""
    from app.painting import process

    engine = ModuleType("pipelines.engine")
    engine.Engine = SquareEngine  # type: ignore[attr-defined]
    sys.modules["pipelines.engine"] = engine
    process.main(pipe, workspace, preload)


class SquareEngine:
    def __init__(self, *_: Any, **__: Any) -> None:
        from pipelines.memory.planning import Machine

        self.machine = Machine(device="cpu", name="CPU", bf16=False, ram_total=1, ram_free=1)

    def load(self, *_: Any) -> None:
        """Nothing."""

    def generate(
        self, request: Any, report: Any, should_stop: Any, *, upcoming: Any = ()
    ) -> Iterator[Any]:
        from PIL import Image

        from pipelines.picture_record import Picture
        from pipelines.progress import Progress, Stage

        for index in range(request.count):
            for step in range(4):
                report(Progress(stage=Stage.DENOISING, done=step, total=4, picture=index + 1))
                time.sleep(_STEP_SECONDS)
                if should_stop():
                    return
            one, image = request.single(index), Image.new("RGB", (64, 64))
            yield Picture(image=image, request=one, seconds=0.05, weights="a1")


# --- the page


def run_page(workspace: Path) -> None:
    """Queues the jobs, if there are none, and waits until all have ended; says what it shows."""
    from app.painting import process
    from app.painting.worker import WorkerRunner
    from app.settings import Settings
    from app.studio import Studio

    # What the child runs is looked up by this name; there it is the real one again.
    process.main = paint_squares
    studio = Studio.of(Settings(workspace=workspace))
    studio.start()
    # Of this studio's own worker: the test kills it.
    assert isinstance(studio._worker, WorkerRunner)
    assert studio._worker._child is not None
    say("worker", pid=studio._worker._child.pid)
    for number in range(JOBS if not studio._jobs.jobs() else 0):
        values = {"prompt": f"job {number}", "seed": _SEEDS * number, "count": PICTURES, "steps": 4}
        studio.submit(studio.request(values), "somebody")
    say("queued")
    shown: set[str] = set()
    active = True
    while active:
        jobs = studio._jobs.jobs()
        active = any(job.active for job in jobs)
        for name in {p.name for job in jobs for p in job.pictures} - shown:
            shown.add(name)
            say("shown", name=name)
        time.sleep(0.02)
    say("ended", states=Counter(job.state for job in jobs))
    studio.close()


def say(what: str, **more: Any) -> None:
    print(json.dumps({"say": what, **more}), flush=True)


# --- the test


class Page:
    """A studio in a process of its own."""

    def __init__(self, workspace: Path) -> None:
        self.said: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.app.jobs.kill_many", "--page", str(workspace)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, what: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(json.loads(line))
            if self.said[-1]["say"] == what:
                return self.said[-1]
        assert self._process.stderr is not None
        raise AssertionError(f"never said “{what}”: {self._process.stderr.read()}")

    def kill(self, victim: str, pictures: int, seconds: float) -> None:
        worker = self.until("worker")["pid"]
        self.until("queued")
        for _ in range(pictures):
            self.until("shown")
        time.sleep(seconds)
        if victim in ("worker", "both"):
            kill(worker)
        if victim in ("page", "both"):
            self._process.kill()

    def end(self) -> None:
        """Reads what it still says; the process is over then."""
        out, errors = self._process.communicate(timeout=120)
        self.said += [json.loads(line) for line in out.splitlines()]
        if self._process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(errors)

    @property
    def shown(self) -> set[str]:
        return {one["name"] for one in self.said if one["say"] == "shown"}


def kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        # It had ended already, as everything had.
        return


def one_moment(workspace: Path, victim: str, pictures: int, seconds: float) -> dict[str, Any]:
    """Kills `victim` so long after so many pictures were shown; checks what is left in the end."""
    first = Page(workspace)
    first.kill(victim, pictures, seconds)
    first.end()
    pages = [first]
    if victim != "worker":
        again = Page(workspace)
        again.end()
        pages.append(again)
    check(workspace, set().union(*(page.shown for page in pages)))
    return {"victim": victim, "seconds": round(seconds, 3), "shown": len(first.shown)}


def check(workspace: Path, shown: set[str]) -> None:
    """Every job is done once, every picture is there once, in the order of asking."""
    files = {f"{f.parent.name}/{f.name}" for f in (workspace / "outputs").rglob("*.png")}
    assert shown <= files, "what was shown is there"
    seeds = Counter(int(name.split("-")[3]) for name in files)
    wanted = {_SEEDS * job + index for job in range(JOBS) for index in range(PICTURES)}
    assert set(seeds) == wanted, "every picture is there"
    assert set(seeds.values()) == {1}, f"painted twice: {[s for s, n in seeds.items() if n > 1]}"
    assert _rows(workspace, "PRAGMA integrity_check") == [("ok",)]
    rows = _rows(workspace, "SELECT state, started, result FROM jobs ORDER BY created")
    assert [row[0] for row in rows] == ["done"] * JOBS, [row[0] for row in rows]
    started = [row[1] for row in rows]
    assert started == sorted(started), "they began in their order"
    named = [picture["name"] for row in rows for picture in json.loads(row[2])["pictures"]]
    assert len(named) == len(set(named))
    assert set(named) == files, "every picture belongs to its job"


def _rows(workspace: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(workspace / "jobs.db")
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


def main(arguments: list[str]) -> None:
    """The page, or as many moments as are asked for."""
    if arguments[:1] == ["--page"]:
        run_page(Path(arguments[1]))
        return
    dice = random.Random(14)
    for number in range(int(arguments[0])):
        with tempfile.TemporaryDirectory() as folder:
            moment = dice.randrange(JOBS * PICTURES - 1), dice.uniform(0, 0.2)
            told = one_moment(Path(folder), VICTIMS[number % 3], *moment)
        print(f"{number + 1}: {told}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
