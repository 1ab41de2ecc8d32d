"""Kills the page, the painting process or the trainer at random moments, with two trainings and two
paintings in the queue.

    python -m tests.app.training.kill_trainings 20     so many moments of each; prints what each did

The page is a real studio without gradio, the trainings are real ones of a tiny model, and what
paints is the painting process of `kill_many`. After each kill of the page the studio is started
again where it was killed; every job then ends, and the LoRAs are those of a studio that nobody
killed.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests import tiny, warm
from tests.app.jobs import kill_many
from tests.app.jobs.page_process import Page, kill, query, say

VICTIMS = ("page", "trainer", "painter")
PHASES = ("preparing", "training", "checkpoint", "publishing")
"""What the first training does when the page or the trainer is killed."""
NAMES = ("first", "second")
PICTURES, STEPS = 3, 10
RECIPE = {
    "batch": "1",
    "accumulate": "1",
    "precision": "fp32",
    "text_precision": "fp32",
    "gradient_checkpointing": "false",
    "log_every": "1",
    "data.side": "64",
    "schedule.warmup": "0",
    "checkpoints.every": "2",
    "checkpoints.keep": "2",
    "preview.every": "0",
    "steps": str(STEPS),
}
_FIRST_SEED = 1000
_POLL = 0.0005


# --- the page


def run_page(folder: str) -> None:
    """Begins trainings and paintings, if there are none, and waits until all of them have ended."""
    warm.serve_forks()
    from app.painting import process
    from app.settings import Settings
    from app.studio import Studio
    from pipelines.processes import child

    process.main = kill_many.paint_squares
    child.multiprocessing = _Warm  # type: ignore[assignment,attr-defined]
    studio = Studio.of(Settings(workspace=Path(folder)))
    studio.start()
    if not studio._jobs.jobs():
        prepared = {one.name: one for one in studio.trainings.preparations.all()}
        for number, name in enumerate(NAMES):
            studio.trainings.start(prepared[name])
            seed = _FIRST_SEED * number
            values = {"prompt": "x", "seed": seed, "count": PICTURES, "steps": 4}
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
    say("ended", told=[f"{job.kind} {job.state}: {job.error}" for job in jobs])
    studio.close()


class _Warm:
    """What `pipelines.processes.child` takes its processes from."""

    @staticmethod
    def get_context(method: str) -> type[warm.Children]:
        return warm.Children


# --- the test


class Bench:
    """A workspace in which everything is prepared, and what a studio makes of it undisturbed."""

    def __init__(self, folder: Path) -> None:
        from app.settings import Settings
        from app.training.preparation import Preparations
        from tests.training import small

        self._folder, self._workspace = folder, folder / "whole"
        settings = Settings(workspace=self._workspace)
        tiny.build(settings.models / "tiny")
        photos = small.pictures(folder / "photos", count=4)
        (photos / "metadata.jsonl").unlink()
        preparations = Preparations(settings.trainings)
        for name in NAMES:
            made = preparations.add(preparations.new("subject", "tiny").id, "photos", photos)
            seeded = RECIPE | {"seed": str(len(name))}
            preparations.change(made.id, subject="disc", name=name, settings=seeded)
        shutil.copytree(self._workspace, folder / "prepared")
        page = Page(run_page, self._workspace)
        page.end()
        self._wanted = loras(self._workspace)
        check(self._workspace, [page], self._wanted)

    def moment(self, victim: str, phase: str, seconds: float) -> dict[str, Any]:
        """Kills `victim` so long after `phase` began; checks what is left in the end."""
        workspace = self._folder / "killed"
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(self._folder / "prepared", workspace)
        pages = [Page(run_page, workspace)]
        pages[0].until("queued")
        told = _kill(pages[0], workspace, victim, phase, seconds)
        if victim == "page":
            # At once: what the page had started may live on for a while.
            pages.append(Page(run_page, workspace))
        for page in pages:
            page.end()
        check(workspace, pages, self._wanted)
        return {"victim": victim, "phase": phase, "seconds": round(seconds, 4)} | told


def _kill(page: Page, workspace: Path, victim: str, phase: str, seconds: float) -> dict[str, Any]:
    """Waits for the moment; what was there when it came."""
    if victim == "painter":
        page.until("shown")
    else:
        _until(workspace, phase)
        while phase == "preparing" and not _writes(page.pid, "training.log"):
            time.sleep(_POLL)
    time.sleep(seconds)
    found = _writes(page.pid, "worker.log" if victim == "painter" else "training.log")
    if victim == "page":
        page.kill()
    for process in found if victim != "page" else ():
        kill(process)
    run = workspace / "runs" / NAMES[0]
    steps = [f.name for f in sorted(run.glob("*/checkpoints/step-*"))]
    return {"alive": len(found), "checkpoint": steps[-1][-2:] if steps else ""}


def _until(workspace: Path, phase: str) -> None:
    """Waits until the first training is at `phase`."""
    run, end = workspace / "runs" / NAMES[0], time.monotonic() + 120
    signs = {
        "preparing": "order.json",
        "training": "*/events.jsonl",
        "checkpoint": "*/checkpoints/.*.part",
        "publishing": "*/result/training.json",
    }
    while not any(run.glob(signs[phase])):
        assert time.monotonic() < end, f"it never came to {phase}"
        time.sleep(_POLL)


def _writes(page: int, log: str) -> list[int]:
    """The processes below the page that have a log open: forks have no names of their own."""
    found = []
    try:
        for one in psutil.Process(page).children(recursive=True):
            try:
                if any(file.path.endswith(log) for file in one.open_files()):
                    found.append(one.pid)
            except psutil.Error:
                continue
    except psutil.Error:
        return found
    return found


def loras(workspace: Path) -> dict[str, dict[str, Any]]:
    """The tensors of each LoRA of the library."""
    from safetensors.torch import load_file

    return {file.stem: load_file(file) for file in (workspace / "loras").glob("*.safetensors")}


def check(workspace: Path, pages: list[Page], wanted: dict[str, dict[str, Any]]) -> None:
    """Each training is done once, as if nobody had been killed; so is each painting."""
    import torch

    from training.loop import checkpoint

    told = pages[-1].told("ended")[-1]["told"]
    states = query(workspace, "SELECT kind, state, started FROM jobs ORDER BY started")
    assert [state for _, state, _ in states] == ["done"] * 4, told
    assert query(workspace, "PRAGMA integrity_check") == [("ok",)]
    trained = query(workspace, "SELECT payload FROM jobs WHERE kind='train' ORDER BY started")
    assert [json.loads(row[0])["name"] for row in trained] == list(NAMES), "in their order"
    made = loras(workspace)
    assert set(made) == set(NAMES) == set(wanted), "each is published once"
    for name, tensors in made.items():
        assert tensors.keys() == wanted[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, wanted[name][key]), f"{name}: {key} differs"
    files = {f"{f.parent.name}/{f.name}" for f in (workspace / "outputs").rglob("*.png")}
    assert {one["name"] for page in pages for one in page.told("shown")} <= files
    seeds = Counter(int(name.split("-")[3]) for name in files)
    assert seeds == Counter(_FIRST_SEED * j + i for j in range(2) for i in range(PICTURES)), seeds
    for name in NAMES:
        (stage,) = (workspace / "runs" / name).glob("[0-9][0-9]-*")
        for folder in checkpoint.found(stage / "checkpoints"):
            checkpoint.read(folder)
    drafts = [file for file in workspace.rglob(".*") if file.suffix in (".part", ".old", ".gone")]
    assert not drafts, drafts


def main(arguments: list[str]) -> int:
    """So many moments of each victim; 1 where one of them did not end as it should."""
    dice, failed = random.Random(15), 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for number in range(int(arguments[0])):
            for victim in VICTIMS:
                phase = "painting" if victim == "painter" else PHASES[number % len(PHASES)]
                # A checkpoint is written in some milliseconds, and published in some more.
                longest = {"preparing": 1.0, "training": 0.5, "checkpoint": 0.01}.get(phase, 0.03)
                seconds = dice.uniform(0, 0.2 if victim == "painter" else longest)
                try:
                    began = time.monotonic()
                    told = bench.moment(victim, phase, seconds)
                    print(told, f"{time.monotonic() - began:.0f} s", flush=True)
                except AssertionError as fault:
                    failed += 1
                    print(f"FAILED {victim} {phase} {seconds:.4f}: {fault}", flush=True)
    print(f"{failed} of {len(VICTIMS) * int(arguments[0])} moments did not end as they should")
    return 1 if failed else 0


if __name__ == "__main__":
    # By its name: the process of the page imports it.
    from tests.app.training import kill_trainings

    sys.exit(kill_trainings.main(sys.argv[1:]))
