"""What a helper would ask first: machine, packages, space, models; nothing that names a person.

The report holds no prompts, no tokens and no file contents, and paths below the home folder begin
with "~", so that it can be pasted anywhere.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.settings import VERSION, Settings
from app.setup.pins import PINS, missing_pins, read_pin_file
from pipelines.catalog import ROOT, Catalog
from pipelines.errors import StudioError, printable
from pipelines.memory import forecast, model_numbers, planning
from pipelines.memory.planning import Machine, MemoryRequest

Verdict = Literal["ok", "warning", "fault"]
_LITTLE_SPACE = 2_000_000_000
# Shorter names are syllables of other words.
_SHORTEST_NAME = 3
_SIGNS: dict[Verdict, str] = {"ok": "  ", "warning": "! ", "fault": "X "}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; `state` says whether something should be done, `fact` what is."""

    name: str
    state: Verdict
    fact: str

    def line(self) -> str:
        """The finding as the command line prints it."""
        return f"{_SIGNS[self.state]}{self.name}: {self.fact}"


def examine(settings: Settings, probe: Callable[[], Machine | None]) -> Iterator[Finding]:
    """Every finding, quick ones first. `probe` looks at the device, which may take seconds.

    Where it gives None, nothing is said of what a picture would need.
    """
    yield Finding(name="studio", state="ok", fact=VERSION)
    yield Finding(
        name="system",
        state="ok",
        fact=f"{platform.system()} {platform.release()} {platform.machine()},"
        f" Python {platform.python_version()}",
    )
    yield _packages()
    yield _workspace(settings.workspace)
    machine = probe()
    if machine is None:
        yield Finding(
            name="device", state="warning", fact="not known; the painting process has not told yet"
        )
    else:
        yield _device(machine)
    yield from _models(settings, machine)


def report(findings: Iterable[Finding]) -> str:
    """The findings as text that can be pasted anywhere."""
    return "\n".join(finding.line().rstrip() for finding in findings)


def _packages() -> Finding:
    missing = missing_pins(read_pin_file(ROOT / PINS))
    if not missing:
        return Finding(name="packages", state="ok", fact="as pinned")
    shown = ", ".join(missing[:6]) + (" and more" if len(missing) > 6 else "")
    return Finding(
        name="packages",
        state="warning",
        fact=f"not as pinned: {shown}; start the studio with “python3 launch.py” to repair it",
    )


def _workspace(folder: Path) -> Finding:
    shown = redacted(str(folder))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(
            name="workspace", state="fault", fact=f"{shown} cannot be written ({error.strerror})"
        )
    fact = f"{shown}, {free / 1e9:.1f} GB free"
    if free < _LITTLE_SPACE:
        return Finding(name="workspace", state="warning", fact=f"{fact}: little space is left")
    return Finding(name="workspace", state="ok", fact=fact)


def _device(machine: Machine) -> Finding:
    parts = [machine.name]
    if machine.vram_total:
        parts.append(_of(machine.vram_free, machine.vram_total, "of the GPU's memory free"))
    if machine.ram_total:
        parts.append(_of(machine.ram_free, machine.ram_total, "of main memory free"))
    parts.append("bf16" if machine.bf16 else "no bf16")
    if machine.compiles:
        parts.append("small kernels joined by torch.compile")
    elif planning.wants_compiling():
        parts.append(f"{planning.COMPILE_VARIABLE} has no effect: no NVIDIA GPU with Triton")
        return Finding(name="device", state="warning", fact=", ".join(parts))
    return Finding(name="device", state="ok", fact=", ".join(parts))


def _of(free: int, total: int, words: str) -> str:
    return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB {words}"


def _models(settings: Settings, machine: Machine | None) -> Iterator[Finding]:
    catalog = Catalog(user_models=settings.models, loras=settings.loras)
    for spec in catalog:
        size = spec.default_size
        try:
            sizes = model_numbers.of(spec)
        except StudioError as error:
            yield Finding(name=spec.id, state="fault", fact=redacted(str(error)))
            continue
        if machine is None:
            yield Finding(name=spec.id, state="ok", fact=f"{size.width}x{size.height}")
            continue
        memory_request = MemoryRequest(width=size.width, height=size.height)
        plan = planning.plan(machine, sizes, memory_request)
        state: Verdict = "ok" if planning.fits(machine, plan) else "warning"
        told = f"{size.width}x{size.height} {forecast.told(machine, sizes, memory_request)}"
        yield Finding(name=spec.id, state=state, fact=told)
    for problem in catalog.problems:
        yield Finding(name="model", state="warning", fact=redacted(problem))
    # Some LoRAs lie among the models: what is wrong there is said above.
    for problem in (p for p in catalog.loras.problems() if p not in catalog.unlisted):
        yield Finding(name="LoRA", state="warning", fact=redacted(problem))


def redacted(text: str) -> str:
    """`text` in one line, with the home folder as "~" and the user's name left out of paths."""
    home = _home()
    plain = text.replace(home, "~") if len(home) > 1 else text
    for name in _user_names():
        for before in ("/home/", "/Users/", "\\Users\\"):
            plain = plain.replace(before + name, f"{before}…")
        if len(name) >= _SHORTEST_NAME:
            # As a word anywhere behind the first separator: disks are mounted, and folders called,
            # by people's names. Some words too many do no harm.
            word = re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", re.IGNORECASE)
            start = re.search(r"[/\\]", plain)
            cut = start.start() if start else len(plain)
            plain = plain[:cut] + word.sub("…", plain[cut:])
    return printable(plain, 400)


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:
        return ""


def _user_names() -> list[str]:
    """Everything by which this system may know the user, longest first."""
    names = {os.environ.get("USER"), os.environ.get("USERNAME"), Path(_home()).name}
    # Without an account, as in some containers, nobody is named.
    with suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return sorted((name for name in names if name and len(name) > 1), key=len, reverse=True)
