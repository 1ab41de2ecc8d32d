"""The lock files: every package that the set-up installs, with the SHA-256 of each of its files.

`app.setup.relock` makes them from the pins, for all systems and every Python that the studio runs
on. pip takes what they name and nothing else (decisions/0015). Standard library only.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from app.setup.installer import SetupError

PACKAGES = "requirements.lock"
# torch as the default registry has it, with what only this build needs.
TORCH = "requirements-torch.lock"
# What the tests need beyond the first.
TESTS = "requirements-dev.lock"
REMAKE = "python -m app.setup.relock"
# Without dependencies, because each is named in the lock itself. Wheels only: to build a package
# from its source pip fetches tools that no lock names, and runs them.
INSTALL_OPTIONS = ("--require-hashes", "--no-deps", "--only-binary=:all:")
ENTRY = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)


def read_lock(path: Path) -> str:
    """Read a lock file, its line ends made `\\n`. Raises SetupError where it is missing."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SetupError(
            f"{path} cannot be read ({reason}): get a complete copy of PixArt Studio."
        ) from error


def digest(paths: Iterable[Path]) -> str:
    """The SHA-256 over the texts of these lock files, in hexadecimal. Raises SetupError."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(read_lock(path).encode())
    return whole.hexdigest()


def locked_versions(text: str) -> dict[str, set[str]]:
    """Map each name in a lock to its versions; a package may have one for each range of Python."""
    versions: dict[str, set[str]] = {}
    for name, version in ENTRY.findall(text):
        versions.setdefault(name.lower(), set()).add(version)
    return versions


def require_fit(pins: Mapping[str, str], paths: Iterable[Path]) -> None:
    """Raise SetupError unless these lock files hold every pin."""
    versions = locked_versions("".join(read_lock(path) for path in paths))
    for name, version in pins.items():
        locked = versions.get(re.sub(r"[-_.]+", "-", name), set())
        if version not in locked:
            have = " or ".join(sorted(locked)) if locked else "none"
            raise SetupError(
                f"The requirements ask for {name}=={version}, and the lock files have {have}: get "
                f"a complete copy of PixArt Studio, or, if you changed that pin, run '{REMAKE}' "
                "with the Python of .venv (CONTRIBUTING.md) and start again."
            )
