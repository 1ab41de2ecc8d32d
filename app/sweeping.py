"""What processes that were killed have left in the workspace, taken away when the next one starts:
the page, or a command that writes there."""

from __future__ import annotations

import logging
import shutil
import time

from app.settings import Settings, workspace_path
from lora_manager import drafts

log = logging.getLogger(__name__)


def sweep(settings: Settings) -> None:
    """Takes away the drafts of dead processes in the folders of the workspace. Never raises.

    Whatever a process that lives is writing stays, as do downloads, which go on where they ended.
    The user's pictures to train on are not searched, nor what else lies in the workspace, which may
    be somebody's home: there may be millions of files.
    """
    began = time.monotonic()
    drafts.sweep(settings.workspace)
    # Where earlier versions kept what each browser saw last.
    shutil.rmtree(settings.cache / "jobs", ignore_errors=True)
    # Each by itself: one that is a link to another disk is searched, too.
    written = (settings.outputs, settings.inputs, settings.models, settings.loras)
    for folder in (*written, settings.runs, settings.cache, settings.logs):
        drafts.sweep_below(folder)
    log.info("drafts were looked for in %.1f s", time.monotonic() - began)


def writer(workspace: str | None) -> Settings:
    """The settings of a command that writes into the workspace, after `sweep`. Raises SaveError."""
    settings = Settings(workspace=workspace_path(workspace))
    sweep(settings)
    return settings
