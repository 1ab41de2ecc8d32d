"""Kills the page, the painting process or both at random moments, with twelve jobs in the queue.

    python -m tests.app.jobs.kill_many 40       so many moments; prints what each one did

The page is a real studio without gradio, its painting process a real one whose engine paints grey
squares. After each kill the studio is started again where it was killed, and lets every job end.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.app.jobs.page_process import Page, kill, query, say

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


def run_page(folder: str) -> None:
    """Queues the jobs, if there are none, and waits until all have ended; says what it shows."""
    from app.painting import process
    from app.painting.worker import WorkerRunner
    from app.settings import Settings
    from app.studio import Studio

    # What the child runs is looked up by this name; there it is the real one again.
    process.main = paint_squares
    studio = Studio.of(Settings(workspace=Path(folder)))
    studio.start()
    # Of this studio's own worker: the test kills it.
    assert isinstance(studio._worker, WorkerRunner)
    assert studio._worker._child is not None
    say("worker", pid=studio._worker._child.pid)
    for number in range(JOBS if not studio._jobs.jobs() else 0):
        values = {"prompt": f"job {number}", "seed": _SEEDS * number, "count": PICTURES, "steps": 4}
        studio.submit(studio.request(values), "somebody")
    say("queued")
    told: set[str] = set()
    active = True
    while active:
        jobs = studio._jobs.jobs()
        active = any(job.active for job in jobs)
        for name in {p.name for job in jobs for p in job.pictures} - told:
            told.add(name)
            say("shown", name=name)
        time.sleep(0.02)
    say("ended", states=Counter(job.state for job in jobs))
    studio.close()


# --- the test


def kill_at(page: Page, victim: str, pictures: int, seconds: float) -> None:
    """Kills so long after so many pictures were shown."""
    worker = page.until("worker")["pid"]
    page.until("queued")
    for _ in range(pictures):
        page.until("shown")
    time.sleep(seconds)
    if victim in ("worker", "both"):
        kill(worker)
    if victim in ("page", "both"):
        page.kill()


def shown(page: Page) -> set[str]:
    return {one["name"] for one in page.told("shown")}


def one_moment(workspace: Path, victim: str, pictures: int, seconds: float) -> dict[str, Any]:
    """Kills `victim` so long after so many pictures were shown; checks what is left in the end."""
    first = Page(run_page, workspace)
    kill_at(first, victim, pictures, seconds)
    first.end()
    pages = [first]
    if victim != "worker":
        again = Page(run_page, workspace)
        again.end()
        pages.append(again)
    check(workspace, set().union(*map(shown, pages)))
    return {"victim": victim, "seconds": round(seconds, 3), "shown": len(shown(first))}


def check(workspace: Path, shown: set[str]) -> None:
    """Every job is done once, every picture is there once, in the order of asking."""
    files = {f"{f.parent.name}/{f.name}" for f in (workspace / "outputs").rglob("*.png")}
    assert shown <= files, "what was shown is there"
    seeds = Counter(int(name.split("-")[3]) for name in files)
    wanted = {_SEEDS * job + index for job in range(JOBS) for index in range(PICTURES)}
    assert set(seeds) == wanted, "every picture is there"
    assert set(seeds.values()) == {1}, f"painted twice: {[s for s, n in seeds.items() if n > 1]}"
    assert query(workspace, "PRAGMA integrity_check") == [("ok",)]
    rows = query(workspace, "SELECT state, started, result FROM jobs ORDER BY created")
    assert [row[0] for row in rows] == ["done"] * JOBS, [row[0] for row in rows]
    started = [row[1] for row in rows]
    assert started == sorted(started), "they began in their order"
    named = [picture["name"] for row in rows for picture in json.loads(row[2])["pictures"]]
    assert len(named) == len(set(named))
    assert set(named) == files, "every picture belongs to its job"


def main(arguments: list[str]) -> None:
    """As many moments as are asked for."""
    dice = random.Random(14)
    for number in range(int(arguments[0])):
        with tempfile.TemporaryDirectory() as folder:
            moment = dice.randrange(JOBS * PICTURES - 1), dice.uniform(0, 0.2)
            told = one_moment(Path(folder), VICTIMS[number % 3], *moment)
        print(f"{number + 1}: {told}", flush=True)


if __name__ == "__main__":
    # By its name: the process of the page imports it.
    from tests.app.jobs import kill_many

    kill_many.main(sys.argv[1:])
