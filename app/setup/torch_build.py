"""Which build of torch fits this machine, and where it comes from.

The default package registry has one build per system; PyTorch's own index has one per kind of GPU.
A laptop without an NVIDIA GPU must not download gigabytes of CUDA. Standard library only.
"""

import math
import os
import platform
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.setup.installer import SetupError

BUILDS = ("auto", "cpu", "cuda", "rocm")
# A company mirror of PyTorch's index can be named here.
INDEX_VARIABLE = "PIXART_STUDIO_TORCH_INDEX"
INDEX = "https://download.pytorch.org/whl"
# The folders of that index, newest first; which of them has the pinned version is looked up there.
FOLDERS = {
    "cpu": ("cpu",),
    "cuda": ("cu132", "cu130", "cu126"),
    "rocm": ("rocm7.4", "rocm7.3", "rocm7.2", "rocm7.1"),
}
# Builds for later CUDA have no kernels for GPUs before this compute capability (Turing).
OLD_CARDS = 7.5
OLD_FOLDERS = ("cu126",)
# What only one build of torch needs: another build would leave gigabytes of it lying about.
TORCH_AND_COMPANIONS = re.compile(r"(pytorch-)?(torch|triton)(-rocm|-windows)?|(nvidia|cuda)-.+")
# Disk space of the finished environment with room for the download, in 10^9 bytes.
SPACE_GB = {"cpu": 3.0, "metal": 3.0, "cuda": 8.0, "rocm": 18.0}
# How long PyTorch's index may take to begin its answer, and then to finish it on a slow line.
ANSWER_SECONDS = 5.0
LISTING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """The facts that decide: `system` as platform.system() says it, and whose GPUs are in it."""

    system: str
    nvidia: bool
    amd: bool


@dataclass(frozen=True, kw_only=True)
class TorchSource:
    """The build to install, its index (None: the default registry), and what to tell the user."""

    build: str
    index: str | None = None
    note: str | None = None


def probe_machine() -> MachineFacts:
    """Look for the GPUs by the traces of their drivers; starts no process and takes no time."""
    system = platform.system()
    nvidia = shutil.which("nvidia-smi") is not None
    if system == "Windows":
        windows = Path(os.environ.get("SystemRoot", r"C:\Windows"))
        nvidia = nvidia or (windows / "System32" / "nvcuda.dll").exists()
    else:
        nvidia = nvidia or Path("/proc/driver/nvidia").exists()
    amd = system == "Linux" and (Path("/opt/rocm").exists() or Path("/dev/kfd").exists())
    return MachineFacts(system=system, nvidia=nvidia, amd=amd)


def take_option(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split `--torch X` off a command line; returns the build (None: not said) and the rest.

    What stands after `--` is left alone. Raises SetupError for a missing or unknown value.
    """
    wanted_build: str | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--torch" or word.startswith("--torch="):
            wanted_build = word[8:] if "=" in word else next(words, "")
            if wanted_build not in BUILDS:
                said = f"not {wanted_build!r}" if wanted_build else "and one of them must follow it"
                raise SetupError(f"--torch takes {', '.join(BUILDS[:-1])} or {BUILDS[-1]}, {said}.")
        else:
            rest.append(word)
    return wanted_build, rest


def choose_build(wanted_build: str, machine: MachineFacts) -> str:
    """What was asked for as a build: cpu, cuda, rocm, or metal (the one build that macOS has).

    Raises SetupError where that system has no such build.
    """
    if machine.system == "Darwin":
        if wanted_build in ("cuda", "rocm"):
            raise SetupError(
                f"There is no {wanted_build} build of torch for macOS: leave --torch away, the "
                "normal build uses the Apple GPU."
            )
        return "metal"
    if wanted_build == "rocm" and machine.system != "Linux":
        raise SetupError(
            "The rocm build of torch exists for Linux only: use --torch cpu here, or run the "
            "studio under Linux."
        )
    if wanted_build != "auto":
        return wanted_build
    if machine.nvidia:
        return "cuda"
    return "rocm" if machine.amd else "cpu"


def registry_build(machine: MachineFacts) -> str:
    """The build that the default package registry has for this system (as of torch 2.15)."""
    return {"Darwin": "metal", "Linux": "cuda"}.get(machine.system, "cpu")


def build_of(version: str, machine: MachineFacts) -> str:
    """Read the build off an installed version: 2.15.0+cpu, 2.15.0+rocm7.1; bare: the registry's."""
    _, _, local = version.partition("+")
    if local.startswith("cu"):
        return "cuda"
    return next((b for b in ("cpu", "rocm") if local.startswith(b)), registry_build(machine))


def torch_packages(names: Iterable[str]) -> list[str]:
    """Pick torch and what only its present build needs from the names of the installed packages."""
    plain = {name.lower().replace("_", "-") for name in names if name}
    return sorted(name for name in plain if TORCH_AND_COMPANIONS.fullmatch(name))


def find_source(build: str, version: str, machine: MachineFacts) -> TorchSource:
    """Find where this build of torch comes from; asks PyTorch's index if the registry lacks it.

    Falls back to what the default registry has, with a sentence about the consequence.
    """
    fallback = registry_build(machine)
    is_old = build == "cuda" and card_capability() < OLD_CARDS
    if build == fallback and not is_old:
        return TorchSource(build=build)
    base = os.environ.get(INDEX_VARIABLE, INDEX).rstrip("/")
    try:
        for folder in OLD_FOLDERS if is_old else FOLDERS[build]:
            if _lists(f"{base}/{folder}/torch/", version):
                return TorchSource(build=build, index=f"{base}/{folder}")
        reason = f"{base} has no {build} build of torch {version}"
    except OSError:
        reason = f"{base} cannot be reached from here"
    if is_old:
        reason += f" for GPUs before compute capability {OLD_CARDS}"
    if build == "cpu":
        effect = f"its {fallback} build, a larger download that runs on the CPU as well"
    else:
        effect = (
            f"its {fallback} build, which leaves this machine's GPU unused (to try again later, "
            "delete the .venv folder and start again)"
        )
    return TorchSource(
        build=fallback, note=f"{reason}: taking torch from the default registry, {effect}."
    )


def card_capability() -> float:
    """The compute capability of the newest NVIDIA GPU, as 8.6; infinite where unknown."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return max(float(line) for line in told.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return math.inf


def _lists(page: str, version: str) -> bool:
    """Say whether an index page lists this version of torch; OSError where it is unreachable."""
    answer: queue.SimpleQueue[str | OSError | None] = queue.SimpleQueue()
    # A thread, because looking up a host name heeds no timeout.
    threading.Thread(target=_fetch, args=(page, answer.put), daemon=True).start()
    try:
        found = answer.get(timeout=ANSWER_SECONDS)
        if found is None:
            found = answer.get(timeout=LISTING_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"{page} did not answer") from None
    if not isinstance(found, str):
        raise found or ConnectionError(page)
    return re.search(rf"torch-{re.escape(version)}(\+|%2B)", found, re.IGNORECASE) is not None


def _fetch(page: str, put: Callable[[str | OSError | None], None]) -> None:
    """Put None when the answer begins and its text when it is whole; or the error, once."""
    # Not above: these take longer to import than all that a start without set-up does.
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(page, timeout=ANSWER_SECONDS) as reply:
            put(None)
            put(reply.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        # 403 and 404 are how the index says that a folder does not exist.
        put("" if error.code in (403, 404) else error)
    except OSError as error:
        put(error)
    except (ValueError, http.client.HTTPException) as error:
        put(ConnectionError(str(error)))
