"""What the set-up runs: the commands that bring the running environment to what is locked.

Standard library only.
"""

import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from app.setup import locks, torch_build
from app.setup.installer import SetupError, SetupStep, install_options
from app.setup.pins import Requirements, installed_version, missing_pins


def lock_files(wanted: Requirements) -> list[Path]:
    """The lock files that together hold everything wanted, torch too."""
    names = [locks.PACKAGES, locks.TORCH, *([locks.TESTS] if wanted.with_tests else [])]
    return [wanted.root / name for name in names]


def require_ensurepip() -> None:
    """Raise SetupError where this Python was packaged without the means to install anything."""
    if importlib.util.find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info)
        raise SetupError(
            "This Python comes without its module ensurepip, so it cannot make an environment: on "
            f"Debian and Ubuntu run 'sudo apt install {package}', elsewhere use the Python from "
            "https://www.python.org/downloads/, and start again."
        )


def current_build(machine: torch_build.MachineFacts) -> str | None:
    """The build of the torch that is installed here; None without torch."""
    version = installed_version("torch")
    return None if version is None else torch_build.build_of(version, machine)


def find_torch(
    wanted: Requirements, build: str, machine: torch_build.MachineFacts
) -> torch_build.TorchSource:
    """Where torch comes from; asks nobody where the right torch is here or none is wanted."""
    version = wanted.pins.get("torch")
    at_hand = "torch" not in missing_pins(wanted.pins) and current_build(machine) == build
    if version is None or at_hand:
        return torch_build.TorchSource(build=build)
    return torch_build.find_source(build, version, machine)


def plan_steps(
    wanted: Requirements, source: torch_build.TorchSource, machine: torch_build.MachineFacts
) -> list[SetupStep]:
    """The commands that make the running environment as wanted; pip skips what is there."""
    pip = (sys.executable, "-m", "pip")
    steps = []
    pip_version = installed_version("pip")
    if pip_version is None:
        require_ensurepip()
        pip_version = importlib.import_module("ensurepip").version()
        steps.append(
            SetupStep(name="pip", command=(sys.executable, "-m", "ensurepip", "--default-pip"))
        )
    install = (*pip, "install", *install_options(pip_version))
    files = [wanted.root / locks.PACKAGES]
    if wanted.with_tests:
        files.append(wanted.root / locks.TESTS)
    old = replaced_torch(wanted, source, machine)
    torch = torch_command(wanted, source, replaced=bool(old))
    if torch == locked(wanted.root / locks.TORCH) and not old:
        files.append(wanted.root / locks.TORCH)
        torch = ()
    steps.append(SetupStep(name="packages", command=(*install, *locked(*files))))
    if old:
        steps.append(SetupStep(name="old torch", command=(*pip, "uninstall", "--yes", *old)))
    if torch:
        steps.append(SetupStep(name=f"torch for {source.build}", command=(*install, *torch)))
    return steps


def replaced_torch(
    wanted: Requirements, source: torch_build.TorchSource, machine: torch_build.MachineFacts
) -> list[str]:
    """The installed packages of another build of torch than the one that is to come."""
    if "torch" not in wanted.pins or current_build(machine) in (None, source.build):
        return []
    return torch_build.torch_packages(d.name for d in metadata.distributions())


def torch_command(
    wanted: Requirements, source: torch_build.TorchSource, *, replaced: bool
) -> tuple[str, ...]:
    """What `pip install` is told about torch; nothing where the torch that is there stays.

    The wheels of PyTorch's own index are in no lock: their version is what holds them.
    """
    if "torch" not in wanted.pins:
        return ()
    missing = replaced or "torch" in missing_pins(wanted.pins)
    if missing and source.index is not None:
        wheel = (f"torch=={wanted.pins['torch']}", "--index-url", source.index)
        # All that the build for the CPU needs is in the lock of the packages.
        return (*wheel, "--only-binary=:all:", *(("--no-deps",) if source.build == "cpu" else ()))
    if not missing and "+" in (installed_version("torch") or ""):
        return ()
    return locked(wanted.root / locks.TORCH)


def locked(*files: Path) -> tuple[str, ...]:
    """What `pip install` is told about lock files."""
    return (*locks.INSTALL_OPTIONS, *(word for file in files for word in ("-r", str(file))))
