"""The verb `bench`: how much faster than stock diffusers, on this machine."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict
from typing import Annotated, Any

import typer

from app.status import Status
from pipelines.errors import RequestError
from pipelines.memory import before_torch

_MIN_ROUNDS, _MAX_ROUNDS = 3, 1000


def bench(
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 7,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Count processor time of one thread: for busy machines."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object per line on stdout.")] = False,
) -> None:
    """Paint by turns with the studio and with stock diffusers, and tell the ratios."""
    if not _MIN_ROUNDS <= rounds <= _MAX_ROUNDS:
        raise RequestError("rounds", f"{rounds} rounds: it must be {_MIN_ROUNDS} to {_MAX_ROUNDS}.")
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    status = Status(sys.stderr)
    status.text("Loading")
    try:
        before_torch()
        from pipelines import benchmark, loader

        clock = benchmark.Clock(rounds=rounds, cpu_time=cpu_time)
        machine = loader.probe()
        if not as_json:
            status.clear()
            print(f"On {machine.name}; more than 1 means faster than stock diffusers.")
        status.text("Measuring, about a minute each")
        for result in benchmark.run(machine, clock, stopped.is_set):
            status.clear()
            values = {**asdict(result), "device": machine.name}
            print(json.dumps(values) if as_json else _line(values), flush=True)
            status.text("Measuring, about a minute each")
    finally:
        status.clear()
        signal.signal(signal.SIGINT, before)
    if stopped.is_set():
        raise KeyboardInterrupt


def _line(values: dict[str, Any]) -> str:
    ours, stock = values["seconds"]["ours"], values["seconds"]["stock"]
    ratio = f"{values['ratio']:.2f} x" if values["ratio"] else "too noisy"
    facts = "; ".join(f"{name} {_short(value)}" for name, value in values["facts"].items())
    return (
        f"{values['name']}: {ratio} ({ours:.3g} s against {stock:.3g} s,"
        f" quartiles within {values['spread']:.0%})\n    {facts}"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
