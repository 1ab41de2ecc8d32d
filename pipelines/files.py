"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_manager import drafts
from pipelines.errors import SaveError, printable

_SPARE_BYTES = 32_000_000


def write(file: Path, data: bytes) -> None:
    """Writes `file` so that nobody ever sees half of it. Raises SaveError."""
    part = drafts.beside(file)
    with _written(part, data, file):
        part.replace(file)


def check_writable(folder: Path) -> None:
    """Writes a file into `folder` and takes it away again. Raises SaveError where that fails."""
    with _written(drafts.beside(folder / "probe"), b"\0", folder):
        return


@contextmanager
def _written(part: Path, data: bytes, told: Path) -> Iterator[None]:
    """A draft that is on the disk during the block, and gone after it. Raises SaveError."""
    try:
        with open(part, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SaveError(
                f"There is no space left on the disk for {told}.",
                "Free some space; the pictures painted before are kept.",
            ) from None
        raise SaveError(
            f"{told} cannot be written ({error.strerror}).", "Choose another folder."
        ) from None
    finally:
        # Also after Ctrl+C; where the folder itself refuses, the first error is the one to tell.
        with suppress(OSError):
            part.unlink()


@contextmanager
def whole(target: Path, needed: int, *, replaces: bool = True) -> Iterator[Path]:
    """A path beside `target` to make a file or folder at, which then takes the place of `target`.

    `needed` bytes are looked for on the disk first. What is made is synced before it gets its
    name; after any failure nothing of it is left and `target` is as it was. The block's own
    OSErrors become SaveError, too, and without `replaces` whatever came to `target` meanwhile,
    but for an empty folder. What processes that were killed have left beside `target` goes first.
    """
    draft, old = drafts.beside(target), drafts.beside(target, "old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        drafts.sweep(target.parent)
        if shutil.disk_usage(target.parent).free < needed + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield draft
        for path in [*draft.rglob("*"), draft] if draft.is_dir() else [draft]:
            # What a link leads to belongs to somebody else, and may have gigabytes.
            if not path.is_symlink():
                sync(path)
        if not replaces:
            _take(draft, target)
        elif target.is_dir():
            # Folders cannot be replaced in one step; the old one is put back if the new one fails.
            target.rename(old)
        if replaces:
            draft.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SaveError(
                f"There is no space for {needed / 1e6:,.0f} MB in {target.parent}.",
                "Free some space, or choose another folder.",
            ) from None
        raise SaveError(
            f"{target} cannot be written ({printable(error.strerror or error, 120)}).",
            "Choose another place.",
        ) from None
    finally:
        with suppress(OSError):
            if old.exists() and not target.exists():
                old.rename(target)
            draft.unlink()
        shutil.rmtree(draft, ignore_errors=True)
        # A name that is too long can be asked nothing.
        with suppress(OSError):
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)


def _take(draft: Path, target: Path) -> None:
    """Gives `draft` its name, if nobody has it. Raises OSError."""
    if draft.is_dir():
        if target.is_dir() and not target.is_symlink():
            target.rmdir()
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        draft.rename(target)
        return
    try:
        # Unlike a renaming, this refuses a name that is taken.
        os.link(draft, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links; Windows refuses the renaming by itself.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        draft.rename(target)


def sync(path: Path) -> None:
    """Makes sure that a file, or a folder's list of names, is on the disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
