"""The files of pinned requirements, and which of the pins an interpreter lacks.

The answer comes from the metadata of the installed packages, never from importing them, so that a
start which needs nothing costs a few milliseconds. Standard library only.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from app.setup.installer import SetupError

PINS = "requirements.txt"
TEST_PINS = "requirements-dev.txt"
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?\s*==\s*([^\s;,*]+)\s*(?:;\s*(.+))?")
CONDITION = re.compile(r"\s*(\w+)\s*(==|!=)\s*(['\"])(.*?)\3\s*")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a start asks of the environment in `root`: `pins` maps names to versions."""

    root: Path
    pins: Mapping[str, str]
    with_tests: bool

    @property
    def venv(self) -> Path:
        return self.root / ".venv"


def read_wanted(root: Path, *, with_tests: bool) -> Requirements:
    """Read what the studio needs, and with the test tools if asked. Raises SetupError."""
    names = (PINS, TEST_PINS) if with_tests else (PINS,)
    pins: dict[str, str] = {}
    for name in names:
        pins |= read_pin_file(root / name)
    return Requirements(root=root, pins=pins, with_tests=with_tests)


def read_pin_file(path: Path) -> dict[str, str]:
    """Read a file of pins. Raises SetupError where it is missing or holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(
            f"{path} cannot be read ({error.strerror}): get a complete copy of PixArt Studio."
        ) from error
    return read_pins(text, path.name)


def read_pins(text: str, name: str) -> dict[str, str]:
    """Read lines `package[extra]==version ; marker  # comment`; pins for other systems are skipped.

    Raises SetupError, with the line, for anything else.
    """
    pins = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if not content:
            continue
        match = REQUIREMENT.fullmatch(content)
        try:
            if match is None:
                raise ValueError("not a pin")
            if match[3] is None or holds(match[3]):
                pins[match[1].lower()] = match[2]
        except ValueError:
            raise SetupError(
                f"Line {number} of {name} is not of the form name==version: {content!r}; get the "
                "file anew or repair that line."
            ) from None
    return pins


def holds(marker: str, facts: Mapping[str, str] | None = None) -> bool:
    """Evaluate an environment marker made of `==` and `!=` joined by `and` and `or`.

    Raises ValueError for what goes beyond that; pip knows more, but the pins here need no more.
    """
    known = facts or {
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "os_name": os.name,
        "python_version": "{}.{}".format(*sys.version_info),
    }

    def condition(text: str) -> bool:
        match = CONDITION.fullmatch(text)
        if match is None or match[1] not in known:
            raise ValueError(text)
        return (known[match[1]] == match[4]) == (match[2] == "==")

    # Lists, so that a condition which cannot be read is refused whatever stands before it.
    sides = [
        all([condition(part) for part in re.split(r"\band\b", side)])
        for side in re.split(r"\bor\b", marker)
    ]
    return any(sides)


def installed_version(name: str) -> str | None:
    """The version of an installed package, with its local suffix; None where it is not there."""
    try:
        # A cut-off installation may have left no version at all, whatever the type says.
        return metadata.distribution(name).metadata["Version"] or None
    except metadata.PackageNotFoundError:
        return None


def missing_pins(pins: Mapping[str, str]) -> list[str]:
    """Name the pins that this interpreter lacks; an installed 2.15.0+cpu is as good as 2.15.0."""
    missing = []
    for name, version in pins.items():
        have = installed_version(name) or ""
        if have.partition("+")[0] != version.partition("+")[0]:
            missing.append(name)
    return missing


def cut_off_packages(site_packages: Path) -> list[Path]:
    """Find what a killed pip left: `~name`, and metadata without the file that pip writes last.

    pip would take such a package for installed, or complain about it for ever.
    """
    return [
        entry
        for entry in site_packages.iterdir()
        if entry.is_dir()
        and (
            entry.name.startswith("~")
            or (entry.name.endswith(".dist-info") and not (entry / "INSTALLER").exists())
        )
    ]


def remove_cut_off_packages(site_packages: Path) -> None:
    """Take those leftovers away, so that pip installs the packages anew."""
    for entry in cut_off_packages(site_packages):
        shutil.rmtree(entry)
