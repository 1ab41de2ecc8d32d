"""A page's process on ZeroGPU without the page: orders in, one line of JSON for each event out.

Started by test_zero.py in a process of its own, because the platform forks it: a process in which
torch has computed already must not be forked.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from app.gallery.pictures import PictureFile
from app.painting.zero import ZeroRunner
from app.parts import assemble
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.errors import StudioError
from pipelines.progress import Progress
from pipelines.request import complete
from tests.app.painting.held import may_be_held


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def main(workspace: Path) -> None:
    settings = Settings(workspace=workspace)
    runner = assemble(settings).worker
    assert isinstance(runner, ZeroRunner)
    # In the forks as well, which have what this process has.
    may_be_held(workspace)
    runner.start(preload="nano")
    say(event="ready", here=os.getpid(), device=runner.state.device, phase=runner.state.phase)
    for line in sys.stdin:
        order = json.loads(line)
        seen: list[Progress] = []

        def report(progress: Progress, seen: list[Progress] = seen) -> None:
            seen.append(progress)
            say(
                event="progress",
                stage=progress.stage,
                done=progress.done,
                preview=bool(progress.preview),
                phase=runner.state.phase,
            )

        def keep(file: PictureFile) -> None:
            say(event="picture", path=str(file.path), weights=file.weights)

        stop_at = order.pop("stop_at", None)
        try:
            runner.paint(
                complete(order, Catalog(user_models=settings.models)),
                report=report,
                keep=keep,
                should_stop=lambda seen=seen, at=stop_at: (  # type: ignore[misc]
                    at is not None and any(p.done >= at for p in seen)
                ),
            )
        except StudioError as error:
            say(event="failed", kind=type(error).__name__, said=str(error))
        machine = runner.state.machine
        say(event="end", phase=runner.state.phase, machine=asdict(machine) if machine else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
