"""The verb `doctor`: what to look at when something does not work."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import typer

from app.cli.options import JsonOption, WorkspaceOption
from app.cli.status import Status
from app.doctor import Finding, examine
from app.settings import Settings, workspace_path
from pipelines.errors import OutOfMemoryError, StudioError
from pipelines.heavy_imports import importing_torch
from pipelines.memory.planning import Machine


def doctor(
    context: typer.Context,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at the machine, the packages, the space and the models. Nothing personal is told."""
    settings = Settings(workspace=workspace_path(workspace or context.obj))
    status = Status(sys.stderr)
    faults: list[Finding] = []
    shortages: list[OutOfMemoryError] = []
    for finding in examine(settings, lambda: _probe(status, shortages)):
        status.clear()
        if as_json:
            print(json.dumps(asdict(finding)), flush=True)
        else:
            print(finding.line(), flush=True)
        if finding.state == "fault":
            faults.append(finding)
    if shortages:
        raise shortages[0]
    if faults:
        raise StudioError(f"Something is broken, {faults[0].name}: {faults[0].fact}")


def _probe(status: Status, shortages: list[OutOfMemoryError]) -> Machine | None:
    """The device; None, and why in `shortages`, where there is no room to look at it."""
    status.text("Looking at the device")
    try:
        # Here and not above: loading torch takes seconds.
        with importing_torch():
            from pipelines.memory import probe
    except OutOfMemoryError as error:
        shortages.append(error)
        return None
    return probe.machine()
