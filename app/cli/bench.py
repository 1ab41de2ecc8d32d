"""The verb `bench`: how much faster than stock diffusers, on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.status import Status
from pipelines.errors import RequestError, UnknownNameError
from pipelines.heavy_imports import importing_diffusers
from pipelines.memory.planning import Machine

if TYPE_CHECKING:
    from pipelines.benchmarks.benchmark import Result, Timing

_SUITES = ("quick", "full")
_MIN_ROUNDS, _MAX_ROUNDS = 3, 1000


def bench(
    suite: Annotated[
        str,
        typer.Option(help="quick, or full: the real size on a GPU, 12 GB of temporary files."),
    ] = "quick",
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 7,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Count processor time of one thread: for busy machines."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object per line on stdout.")] = False,
) -> None:
    """Paint by turns with the studio and with stock diffusers, and tell the ratios."""
    if suite not in _SUITES:
        raise UnknownNameError("suite", "suite", suite, _SUITES)
    if not _MIN_ROUNDS <= rounds <= _MAX_ROUNDS:
        raise RequestError("rounds", f"{rounds} rounds: it must be {_MIN_ROUNDS} to {_MAX_ROUNDS}.")
    status = Status(sys.stderr)
    status.text("Loading")
    try:
        with importing_diffusers():
            from pipelines.benchmarks import benchmark
            from pipelines.memory import probe

        clock = benchmark.Timing(rounds=rounds, cpu_time=cpu_time)
        machine = probe.machine()
        if not as_json:
            status.clear()
            print(f"On {machine.name}; more than 1 means faster than stock diffusers.")
        status.text("Measuring, about a minute each")
        for result in _results(suite, machine, clock):
            status.clear()
            values = {**asdict(result), "device": machine.name}
            print(json.dumps(values) if as_json else _line(values), flush=True)
            status.text("Measuring, about a minute each")
    finally:
        status.clear()


def _results(suite: str, machine: Machine, clock: Timing) -> Iterator[Result]:
    from pipelines.benchmarks import benchmark, benchmark_full

    if suite == "quick":
        yield from benchmark.run(machine, clock)
        return
    with tempfile.TemporaryDirectory(prefix="pixart-bench-") as folder:
        yield from benchmark_full.run(machine, clock, Path(folder))


def _line(values: dict[str, Any]) -> str:
    ratio = f"{values['ratio']:.2f} x" if values["ratio"] else "too noisy"
    facts = "; ".join(f"{name} {_short(value)}" for name, value in values["facts"].items())
    if not values["seconds"]:
        return f"{values['name']}: {ratio}, {values['compared']}\n    {facts}"
    ours, stock = values["seconds"]["ours"], values["seconds"]["stock"]
    return (
        f"{values['name']}: {ratio} ({ours:.3g} s against {stock:.3g} s,"
        f" quartiles within {values['spread']:.0%})\n    {facts}"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
