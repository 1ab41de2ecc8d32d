"""What processes that were killed have left in the workspace, taken away when the next one starts:
the page, or a command that writes there."""

from __future__ import annotations

import logging
import time

from app.settings import Settings, workspace_path
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


def writer(workspace: str | None) -> Settings:
    """The settings of a command that writes into the workspace, after `sweep`. Raises SaveError."""
    settings = Settings(workspace=workspace_path(workspace))
    sweep(settings)
    return settings
