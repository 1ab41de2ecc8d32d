"""Work that waits for slow things, in a thread of its own: watched, and stopped within a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from pipelines.models.hub import PassingError
from pipelines.models.transfer import Cancelled, Meter, Reading, StopGate
from pipelines.progress import ShouldStop

_TICK = 0.1
_GRACE = 0.6
Result = TypeVar("Result")
OnReading = Callable[[Reading], None]


def cancellable(
    work: Callable[[StopGate], Result], meter: Meter, report: OnReading, should_stop: ShouldStop
) -> Result | None:
    """Runs `work` in a thread; reports and stops it from this one. None where it was stopped."""
    gate = StopGate()
    results: list[Result] = []
    faults: list[Exception] = []

    def run() -> None:
        try:
            results.append(work(gate))
        except PassingError as fault:
            faults.append(fault.error)
        # Whatever it is, the caller's thread raises it again.
        except Exception as fault:
            faults.append(fault)

    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_TICK)
            if should_stop():
                break
            report(meter.read())
    finally:
        if thread.is_alive():
            gate.close()
            # A look-up of a name or a connection that hangs ends by itself, and writes nothing.
            thread.join(_GRACE)
    if results:
        return results[0]
    if faults and not isinstance(faults[0], Cancelled):
        raise faults[0]
    return None
