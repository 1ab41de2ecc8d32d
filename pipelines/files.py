"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import SaveError, printable

_SPARE_BYTES = 32_000_000
# What `whole` makes at first: .<name>.<process>-<dice>.part, and .old for what it replaces.
_DRAFT = re.compile(r"\.(?P<target>.+)\.(?P<process>\d+)-[0-9a-f]{8}\.(?P<kind>part|old)")


def write(file: Path, data: bytes) -> None:
    """Writes `file` so that nobody ever sees half of it. Raises SaveError."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SaveError(
                f"There is no space left on the disk for {file}.",
                "Free some space; the pictures painted before are kept.",
            ) from None
        raise SaveError(
            f"{file} cannot be written ({error.strerror}).", "Choose another folder."
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
    but for an empty folder.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    old = draft.with_suffix(".old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
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


def sweep(folder: Path, process: int) -> None:
    """Takes away what `whole` was making in `folder` when that process was killed.

    What it was replacing comes back. Never raises: what stays only takes room.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            draft = _DRAFT.fullmatch(path.name)
            if draft is None or int(draft["process"]) != process:
                continue
            target = folder / draft["target"]
            if draft["kind"] == "old" and not target.exists():
                path.rename(target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def sync(path: Path) -> None:
    """Makes sure that a file, or a folder's list of names, is on the disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
