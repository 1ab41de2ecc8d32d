"""Folders for what one studio needs only while it runs, so that another one never deletes it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from lora_manager import drafts
from pipelines.errors import SaveError


@cache
def folder(parent: Path) -> Path:
    """This process's own folder in `parent`; those of processes that are dead are deleted.

    Where `parent` cannot be written it is a temporary one: a workspace on a read-only disk can
    still be looked at. Raises SaveError where there is no place for that either.
    """
    drafts.sweep_folders(parent)
    try:
        made = drafts.own_folder(parent)
    except OSError:
        made = _temporary(parent)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _temporary(parent: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f"pixart-studio-{parent.name}-"))
    except OSError as error:
        raise SaveError(
            f"Neither {parent} nor a temporary folder can be written ({error.strerror}).",
            "Free some space, or set TMPDIR to a folder that can be written.",
        ) from None
