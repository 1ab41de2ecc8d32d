"""The kind of job that makes a LoRA of a checkpoint, which a training has kept on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app.jobs.entry import Entry
from app.jobs.kinds import JobControl, Kind, Lane, announce, count_of, with_result
from app.settings import Settings
from app.training import checkpoint_process
from app.training.training_order import NAME
from pipelines.errors import RequestError

CHECKPOINT = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckpointOrder:
    """The checkpoint behind update `step` of the run `name`."""

    name: str
    step: int


def kind(settings: Settings, changed: Callable[[], None]) -> Kind:
    """The row of the table. `changed` is called after a LoRA came."""

    def run(control: JobControl) -> bool:
        order: CheckpointOrder = control.entry.job.payload
        made = checkpoint_process.run(
            order.name, order.step, settings, should_stop=control.should_stop
        )
        if made is not None:
            control.give(made)
            announce(changed)
        return made is not None

    return Kind(
        name=CHECKPOINT,
        lane=Lane.DISK,
        resumes=True,
        run=run,
        write=asdict,
        read=_read,
        title=lambda order: f"Make a LoRA of {order.name}, update {order.step:,}",
        keep=lambda entry: {"made": entry.job.result or ""},
        restore=_restore,
    )


def _read(payload: Any) -> CheckpointOrder:
    told = payload if isinstance(payload, dict) else {}
    name, step = told.get("name"), count_of(told.get("step"))
    if not isinstance(name, str) or not NAME.fullmatch(name) or step is None:
        raise RequestError("checkpoint", "This is no checkpoint of a training.")
    return CheckpointOrder(name=name, step=step)


def _restore(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    made = kept.get("made", "")
    return with_result(entry, made[:80] if isinstance(made, str) and made else None)
