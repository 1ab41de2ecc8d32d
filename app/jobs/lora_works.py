"""The kind of job that makes something of LoRAs: merged, smaller, compared, baked into a model.

Nothing is left of one that was stopped, failed or was ended by a restart: it begins anew.
"""

from __future__ import annotations

from collections.abc import Callable

from app.jobs.kinds import JobControl, Kind, Lane, announce
from app.models import lora_orders, lora_process
from app.models.lora_orders import LoraOrder
from app.settings import Settings

LORA_WORK = "lora-work"


def kind(settings: Settings, changed: Callable[[], None]) -> Kind:
    """The row of the table. `changed` is called after a model came, before the end is told."""

    def run(control: JobControl) -> bool:
        order: LoraOrder = control.entry.job.payload
        made = lora_process.run(
            order, settings, report=control.report, should_stop=control.should_stop
        )
        if made is None:
            return False
        control.give(made)
        if order.verb == "bake":
            announce(changed)
        return True

    return Kind(
        name=LORA_WORK,
        lane=Lane.DISK,
        resumes=False,
        run=run,
        write=LoraOrder.to_json,
        read=lora_orders.of_json,
        title=lambda order: order.said,
        interrupted=("The studio was restarted before it was done.", "Retry it; it begins anew."),
        # One note on the Models tab.
        most_each=1,
    )
