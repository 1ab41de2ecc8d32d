"""The environment that the studio runs in: found, made, repaired, entered.

launch.py calls `prepare` before anything else. The outer start (any Python) makes `.venv` and
restarts inside it; the inner start (the Python of `.venv`) installs what is missing there. Either
can be killed at any moment: the next start looks again. Standard library only, like all it imports.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from app.setup import locks, torch_build
from app.setup.installer import LOCK_NAME, LOG_NAME, SetupError, StatusLine, run_steps, setup_lock
from app.setup.pins import (
    Requirements,
    cut_off_packages,
    missing_pins,
    read_wanted,
    remove_cut_off_packages,
)
from app.setup.setup_plan import (
    current_build,
    find_torch,
    lock_files,
    plan_steps,
    require_ensurepip,
)

__all__ = ["SetupError", "prepare", "run_tests"]

STAMP_NAME = "studio-stamp.json"
OLDEST_PYTHON = (3, 11)
# Set across the restart: an environment that cannot be entered must not be entered again and again.
ENTERED = "PIXART_STUDIO_ENTERED"
# Free space to ask for when torch is there already, in 10^9 bytes.
SMALL_SPACE_GB = 0.5


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What `.venv` was made for; written last, so an environment without it is not finished.

    `requirements` is the digest of the studio's lock files, empty while an installation is under
    way; `tests` that of the tests' lock, empty where nobody asked for them; `torch` the build that
    was wished, which need not be the one that could be had.
    """

    requirements: str
    tests: str
    torch: str
    python: str

    @property
    def locks(self) -> tuple[str, str]:
        return self.requirements, self.tests


def prepare(root: str | Path, argv: Sequence[str]) -> list[str]:
    """Return the command line without the launcher's options, once this interpreter can run it.

    Where another interpreter can, that one takes this process over. Raises SetupError, with a
    sentence for the user, where none can.
    """
    wanted_build, rest = torch_build.take_option(argv)
    entered = os.environ.pop(ENTERED, None) is not None
    wanted = read_wanted(Path(root), with_tests=rest[:1] == ["test"])
    line = StatusLine(sys.stderr)
    try:
        if is_inside(wanted.venv):
            complete(wanted, wanted_build, line)
        elif missing_pins(wanted.pins):
            if entered:
                raise SetupError(
                    f"The Python in {wanted.venv} does not use that environment: take the variable "
                    "PYTHONHOME away if it is set, or delete the .venv folder, and start again."
                )
            enter(wanted, wanted_build, line, argv)
        elif wanted_build is not None:
            line.say(
                "--torch changes nothing here: this Python has all that the studio needs, and the "
                "torch that came with it stays."
            )
    except OSError as error:
        raise SetupError(
            f"The set-up in {wanted.venv} failed ({error}): check that the folder is yours and "
            "that the disk is not full, or move the studio to another folder, and start again."
        ) from error
    finally:
        line.clear()
    return rest


def run_tests(root: str | Path, arguments: Sequence[str]) -> NoReturn:
    """Become pytest in the project's folder; its exit code is this process's."""
    replace_process([sys.executable, "-m", "pytest", *arguments], folder=Path(root))


def is_inside(folder: Path) -> bool:
    """Say whether this interpreter is the one of that environment."""
    return Path(sys.prefix).resolve() == folder.resolve()


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def settings_of(folder: Path) -> dict[str, str]:
    """What pyvenv.cfg says; empty where it is lost."""
    try:
        text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))


def version_of(folder: Path) -> tuple[int, ...]:
    """The Python version (major, minor) that an environment was made with; () where it is lost."""
    settings = settings_of(folder)
    match = re.match(r"(\d+)\.(\d+)", settings.get("version", settings.get("version_info", "")))
    return (int(match[1]), int(match[2])) if match else ()


def can_start(folder: Path) -> bool:
    """Say whether an environment looks fit to be entered; starts no process to find out.

    The Python that it was made from must still be on the machine.
    """
    home = settings_of(folder).get("home")
    return (
        version_of(folder) >= OLDEST_PYTHON
        and home is not None
        and Path(home).is_dir()
        and os.access(python_of(folder), os.X_OK)
    )


def enter(
    wanted: Requirements, wanted_build: str | None, line: StatusLine, argv: Sequence[str]
) -> NoReturn:
    """Restart inside `.venv`, made or repaired first. Raises SetupError where that fails."""
    if not can_start(wanted.venv):
        make(wanted, wanted_build, line)
    line.clear()
    command = [str(python_of(wanted.venv)), str(wanted.root / "launch.py"), *argv]
    os.environ[ENTERED] = "1"
    try:
        replace_process(command)
    except OSError:
        # It is there but no program: cut off while it was written, or made for another machine.
        python_of(wanted.venv).unlink(missing_ok=True)
        make(wanted, wanted_build, line)
        replace_process(command)


def replace_process(command: list[str], *, folder: Path | None = None) -> NoReturn:
    """Let another program take this process over, or on Windows wait for it and end as it ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        if folder is not None:
            os.chdir(folder)
        os.execv(command[0], command)
    child = subprocess.Popen(command, cwd=folder)
    while True:
        # Ctrl+C reaches the child as well, and what it means is the child's to say.
        with suppress(KeyboardInterrupt):
            raise SystemExit(child.wait())


def make(wanted: Requirements, wanted_build: str | None, line: StatusLine) -> None:
    """Make `.venv` with nothing in it, or give it a working interpreter again.

    Packages of the same Python version stay, so that a lost interpreter costs no second download.
    Raises SetupError.
    """
    folder = wanted.venv
    require_ensurepip()
    build = torch_build.choose_build(wanted_build or "auto", torch_build.probe_machine())
    if not folder.exists():
        require_space(wanted, build)
    try:
        folder.mkdir(exist_ok=True)
        (folder / LOCK_NAME).touch()
    except OSError as error:
        raise SetupError(
            f"The studio cannot write into {wanted.root} ({error.strerror}): move it to a folder "
            "of your own and start it there."
        ) from error
    with setup_lock(folder, line):
        if can_start(folder):
            return
        line.show("making .venv", "")
        kept = {LOCK_NAME, LOG_NAME}
        if version_of(folder) == sys.version_info[:2]:
            kept |= {STAMP_NAME, "lib", "lib64", "Lib"}
        for entry in folder.iterdir():
            if entry.name in kept:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        # Not above, because most starts make nothing, and it takes a while to import.
        import venv

        # pip comes later, from inside: that step takes seconds and can be watched there.
        venv.EnvBuilder(symlinks=os.name != "nt").create(folder)


def require_space(wanted: Requirements, build: str) -> None:
    """Raise SetupError where the disk has no room for what is missing with this build of torch."""
    heavy = "torch" in missing_pins(wanted.pins)
    needed = torch_build.SPACE_GB[build] if heavy else SMALL_SPACE_GB
    free = shutil.disk_usage(wanted.root).free / 1e9
    if free < needed:
        smaller = torch_build.SPACE_GB["cpu"]
        other = (
            f", or start with --torch cpu, which needs {smaller:g} GB" if needed > smaller else ""
        )
        raise SetupError(
            f"The set-up needs about {needed:g} GB of free space in {wanted.root} and finds "
            f"{free:.1f} GB: free some or move the studio to a larger disk{other}."
        )


def read_stamp(folder: Path) -> Stamp | None:
    """Read the stamp; None where there is none that can be understood."""
    try:
        stamp = Stamp(**json.loads((folder / STAMP_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return stamp if all(isinstance(value, str) for value in asdict(stamp).values()) else None


def write_stamp(folder: Path, stamp: Stamp) -> None:
    """Write the stamp in one go, so that there is never half of one."""
    draft = folder / f"{STAMP_NAME}.{os.getpid()}"
    draft.write_text(json.dumps(asdict(stamp), indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / STAMP_NAME)


def is_complete(
    wanted: Requirements, wanted_build: str | None, machine: torch_build.MachineFacts
) -> bool:
    """Say whether this environment, which must be the running one, is as asked.

    One that was filled by hand, with all that is pinned, gets its stamp without pip. One that was
    made from other lock files is not complete: what nobody pins may have changed, too.
    """
    stamp = read_stamp(wanted.venv)
    if stamp is not None and not stamp.requirements:
        return False
    if missing_pins(wanted.pins):
        return False
    if stamp is None and cut_off_packages(site_packages()):
        return False
    torch = (
        stamp.torch
        if stamp
        else current_build(machine) or torch_build.choose_build("auto", machine)
    )
    if wanted_build is not None and torch_build.choose_build(wanted_build, machine) != torch:
        return False
    fresh = stamp_for(wanted, stamp, torch)
    if stamp is not None and fresh.locks != stamp.locks:
        return False
    if fresh != stamp:
        # In an image the environment may be read-only; it serves all the same.
        with suppress(OSError):
            write_stamp(wanted.venv, fresh)
    return True


def stamp_for(wanted: Requirements, old: Stamp | None, torch: str) -> Stamp:
    """The stamp of an environment that has everything; the test tools stay known once installed."""
    kept = old.tests if old else ""
    return Stamp(
        requirements=locks.digest(wanted.root / n for n in (locks.PACKAGES, locks.TORCH)),
        tests=locks.digest([wanted.root / locks.TESTS]) if wanted.with_tests else kept,
        torch=torch,
        python="{}.{}.{}".format(*sys.version_info),
    )


def site_packages() -> Path:
    """Where the packages of the running interpreter lie."""
    return Path(sysconfig.get_path("purelib"))


def complete(wanted: Requirements, wanted_build: str | None, line: StatusLine) -> None:
    """Install what the running environment lacks. Raises SetupError."""
    machine = torch_build.probe_machine()
    if is_complete(wanted, wanted_build, machine):
        return
    folder = wanted.venv
    with setup_lock(folder, line) as keep_open:
        if is_complete(wanted, wanted_build, machine):
            return
        locks.require_fit(wanted.pins, lock_files(wanted))
        line.say("Setting up PixArt Studio in .venv; this is done once and can take some minutes.")
        old = read_stamp(folder)
        torch = torch_build.choose_build(wanted_build or (old.torch if old else "auto"), machine)
        stamp = stamp_for(wanted, old, torch)
        remove_cut_off_packages(site_packages())
        source = find_torch(wanted, torch, machine)
        if source.note:
            line.say(source.note)
        require_space(wanted, source.build)
        write_stamp(folder, replace(stamp, requirements=""))
        run_steps(
            plan_steps(wanted, source, machine), folder=folder, line=line, keep_open=keep_open
        )
        importlib.invalidate_caches()
        if missing := missing_pins(wanted.pins):
            raise SetupError(
                f"pip ended well and yet {', '.join(missing)} is not there: delete the .venv "
                f"folder and start again; pip's output is in {folder / LOG_NAME}."
            )
        write_stamp(folder, stamp)
        line.say(f"PixArt Studio is set up ({line.elapsed()}).")
