"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from pipelines.errors import SaveError


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
