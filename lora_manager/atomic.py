"""Files and folders of LoRAs that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lora_manager import drafts
from lora_manager.errors import LoraError, printable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written(file: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A stream to a draft beside `file`, which gets that name once it is on the disk.

    Raises LoraError where it cannot be written, and without `replace` where `file` exists.
    """
    part = drafts.beside(file)
    try:
        with open(part, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            part.replace(file)
        else:
            _put(part, file)
        # It has its name; a folder that cannot be synced does not take it away.
        with suppress(OSError):
            _sync(file.parent)
    except OSError as error:
        raise _refused(file, error) from None
    finally:
        # Also after Ctrl+C; where the folder itself refuses, the first error is the one to tell.
        with suppress(OSError):
            part.unlink()


@contextmanager
def folder(target: Path, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """A new folder to write files into, which gets the name `target` once they are on the disk.

    A folder that is there is replaced only if it is empty, or if it holds nothing but what
    `replaces` names. Raises LoraError; what was there is there again then.
    """
    draft, old = drafts.beside(target), drafts.beside(target, "old")
    try:
        draft.mkdir()
        yield draft
        for path in [*draft.iterdir(), draft]:
            _sync(path)
        if os.path.lexists(target):
            _check_replaced(target, replaces)
            target.rename(old)
        draft.rename(target)
        with suppress(OSError):
            _sync(target.parent)
    except OSError as error:
        raise _refused(target, error) from None
    finally:
        with suppress(OSError):
            if old.exists() and not os.path.lexists(target):
                old.rename(target)
        for path in (draft, old):
            shutil.rmtree(path, ignore_errors=True)


def _check_replaced(target: Path, names: Collection[str]) -> None:
    # A link is somebody's way to another place.
    plain = target.is_dir() and not target.is_symlink()
    if not plain or not {path.name for path in target.iterdir()} <= set(names):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _refused(path: Path, error: OSError) -> LoraError:
    shown = printable(path, 200)
    if isinstance(error, FileExistsError):
        return LoraError(f"{shown} exists.", "Take another name.")
    if error.errno in _FULL:
        return LoraError(f"There is no space left on the disk for {shown}.", "Free some space.")
    reason = printable(error.strerror or error, 120)
    return LoraError(f"{shown} cannot be written ({reason}).", "Choose another folder.")


def _put(part: Path, file: Path) -> None:
    """Gives `part` the name of `file`, which must be free. Raises OSError."""
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems know no links; there only the look before is left.
        if file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        part.replace(file)


def _sync(path: Path) -> None:
    """Makes sure that a file, or a folder's list of names, is on the disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
