"""Folders that a person may not have yet, and why one that is there cannot be listed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lora_manager.errors import printable

WAY_OUT = "Repair that folder or its link."
_NOWHERE = "it is a link that leads nowhere"
_CIRCLE = "links in it lead in circles"


def trouble(folder: Path) -> str:
    """Why the entries of `folder` cannot be listed; "" where they can, or where it is not there.

    A folder behind a link that leads nowhere, as one to a disk that is not mounted, is in trouble:
    nobody knows what is in it.
    """
    try:
        with os.scandir(folder):
            return ""
    except FileNotFoundError:
        return next(filter(None, map(dead_link, (folder, *folder.parents))), "")
    except NotADirectoryError:
        return "it is a file, not a folder"
    except OSError as error:
        return _CIRCLE if error.errno == errno.ELOOP else printable(error.strerror or error, 120)


def dead_link(path: Path) -> str:
    """Why nothing is behind the link `path`, in a few words; "" for what is no such link."""
    if not path.is_symlink():
        return ""
    try:
        path.stat()
    except FileNotFoundError:
        return _NOWHERE
    except OSError as error:
        return _CIRCLE if error.errno == errno.ELOOP else printable(error.strerror or error, 120)
    return ""
