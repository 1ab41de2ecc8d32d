"""What processes that were killed have left in the workspace, taken away when a studio starts."""

from __future__ import annotations

import logging
import time

from app.settings import Settings
from lora_manager import drafts

log = logging.getLogger(__name__)


def sweep(settings: Settings) -> None:
    """Takes away the drafts of dead processes everywhere in the workspace. Never raises.

    Whatever a process that lives is writing stays, as do downloads, which go on where they ended.
    The user's pictures to train on are not searched: there may be millions.
    """
    began = time.monotonic()
    drafts.sweep_below(settings.workspace, besides=(settings.data,))
    log.info("drafts were looked for in %.1f s", time.monotonic() - began)
