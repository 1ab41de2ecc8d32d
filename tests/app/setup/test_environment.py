"""The decisions about the environment that no start from outside can bring about everywhere."""

import importlib.util
import os
import shutil
import sys
from collections import namedtuple
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from app.setup import environment, setup_plan, torch_build
from app.setup.environment import SetupError, Stamp
from app.setup.installer import StatusLine
from app.setup.pins import read_wanted
from app.setup.torch_build import MachineFacts

Usage = namedtuple("Usage", "total used free")
BARE_LINUX = MachineFacts(system="Linux", nvidia=False, amd=False)
NVIDIA_LINUX = MachineFacts(system="Linux", nvidia=True, amd=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that needs a torch which is nowhere, on a Linux machine without a GPU."""
    (tmp_path / "requirements.txt").write_text("torch==99.0\n")
    (tmp_path / "requirements-dev.txt").write_text("tester==99.0\n")
    monkeypatch.setattr(torch_build, "probe_machine", lambda: BARE_LINUX)
    monkeypatch.delenv(environment.ENTERED, raising=False)
    return tmp_path


def leave_gigabytes(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(free * 1e9)))


def refusal(root: Path, *argv: str) -> str:
    with pytest.raises(SetupError) as caught:
        environment.prepare(root, list(argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_small_disk_is_refused_before_anything_is_written(root, monkeypatch):
    leave_gigabytes(monkeypatch, 1.26)
    assert "needs about 3 GB of free space" in refusal(root)
    assert "finds 1.3 GB: free some" in refusal(root)
    assert "--torch cpu" not in refusal(root)
    assert "needs about 8 GB" in refusal(root, "--torch", "cuda")
    assert "or start with --torch cpu, which needs 3 GB" in refusal(root, "--torch", "cuda")
    assert not (root / ".venv").exists()


def test_card_that_is_found_asks_for_more_space(root, monkeypatch):
    monkeypatch.setattr(torch_build, "probe_machine", lambda: NVIDIA_LINUX)
    leave_gigabytes(monkeypatch, 5)
    assert "needs about 8 GB" in refusal(root)


def test_python_without_ensurepip_is_refused_before_anything_is_written(root, monkeypatch):
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "ensurepip" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    minor = sys.version_info[1]
    assert f"'sudo apt install python3.{minor}-venv'" in refusal(root)
    assert not (root / ".venv").exists()


def test_folder_that_cannot_be_written_is_refused(root, monkeypatch):
    leave_gigabytes(monkeypatch, 100)

    def refuse(self: Path, *_, **__) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert f"cannot write into {root} (Permission denied): move it" in refusal(root)


def test_file_in_the_place_of_the_environment_is_refused(root, monkeypatch):
    leave_gigabytes(monkeypatch, 100)
    (root / ".venv").write_text("mine")
    assert "cannot write into" in refusal(root)
    assert (root / ".venv").read_text() == "mine"


def test_failure_of_the_system_midway_is_a_sentence(root, monkeypatch):
    leave_gigabytes(monkeypatch, 100)

    def fail(self, folder) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("venv.EnvBuilder.create", fail)
    assert "No space left on device" in refusal(root)


def test_environment_that_cannot_be_entered_is_not_entered_again(root, monkeypatch):
    monkeypatch.setenv(environment.ENTERED, "1")
    assert "PYTHONHOME" in refusal(root)
    assert environment.ENTERED not in os.environ


def write_settings(folder: Path, version: str, home: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "pyvenv.cfg").write_text(f"home = {home}\nversion = {version}\n")
    python = environment.python_of(folder)
    python.parent.mkdir(exist_ok=True)
    python.touch()
    python.chmod(0o755)


def test_environment_can_start_with_its_python_and_its_settings(tmp_path):
    folder = tmp_path / ".venv"
    write_settings(folder, "3.12.1", tmp_path)
    assert environment.version_of(folder) == (3, 12)
    assert environment.can_start(folder)
    write_settings(folder, "3.9.18", tmp_path)
    assert not environment.can_start(folder), "too old"
    write_settings(folder, "3.12.1", tmp_path / "gone")
    assert not environment.can_start(folder), "its Python has left the machine"
    write_settings(folder, "3.12.1", tmp_path)
    environment.python_of(folder).unlink()
    assert not environment.can_start(folder)
    (folder / "pyvenv.cfg").write_bytes(b"\xff\x00")
    assert environment.version_of(folder) == ()


@pytest.mark.parametrize(("version", "kept"), [("same", True), ("3.9.18", False), (None, False)])
def test_making_anew_keeps_the_packages_of_the_same_python(root, monkeypatch, version, kept):
    leave_gigabytes(monkeypatch, 100)
    folder = root / ".venv"
    if version is None:
        folder.mkdir()
    else:
        own = "{}.{}.{}".format(*sys.version_info)
        write_settings(folder, own if kept else version, root / "gone")
    (folder / "lib" / "python" / "site-packages").mkdir(parents=True)
    (folder / "old").touch()
    wanted = read_wanted(root, with_tests=False)
    line = StatusLine(sys.stderr)
    environment.make(wanted, None, line)
    assert environment.can_start(folder)
    assert (folder / "lib" / "python" / "site-packages").exists() is kept
    assert not (folder / "old").exists()


def test_stamp_is_read_as_it_was_written(tmp_path):
    stamp = Stamp(requirements="a", tests="", torch="cpu", python="3.11.7")
    environment.write_stamp(tmp_path, stamp)
    assert environment.read_stamp(tmp_path) == stamp
    assert [path.name for path in tmp_path.iterdir()] == [environment.STAMP_NAME], (
        "no draft is left"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"requirements": "a"}', '"text"', '{"a": 1}',
     '{"requirements": 1, "tests": "", "torch": "cpu", "python": "3"}', "\xff"],
)  # fmt: skip
def test_stamp_that_makes_no_sense_is_none(tmp_path, text):
    (tmp_path / environment.STAMP_NAME).write_text(text, encoding="latin-1")
    assert environment.read_stamp(tmp_path) is None


@pytest.fixture
def finished(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with its lock files and an environment that was made from them."""
    monkeypatch.setattr(environment, "missing_pins", lambda pins: [])
    for name in ("requirements.lock", "requirements-torch.lock", "requirements-dev.lock"):
        (root / name).write_text(f"{name.replace('.', '-')}==1\n")
    (root / ".venv").mkdir()
    assert is_complete(root)
    return root


def is_complete(root: Path, *, with_tests: bool = False) -> bool:
    wanted = read_wanted(root, with_tests=with_tests)
    return environment.is_complete(wanted, None, BARE_LINUX)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-torch.lock"])
def test_environment_of_other_locks_is_not_complete(finished, name):
    (finished / name).write_text("unpinned==1.0.1\n")
    before = environment.read_stamp(finished / ".venv")
    assert not is_complete(finished)
    assert environment.read_stamp(finished / ".venv") == before


def test_line_ends_of_a_lock_make_no_difference(finished):
    path = finished / "requirements.lock"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert is_complete(finished)


def test_lock_of_the_tests_counts_where_they_are_asked_for(finished):
    assert not is_complete(finished, with_tests=True), "they were never installed"
    (finished / "requirements-dev.lock").write_text("other==1\n")
    assert is_complete(finished)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(setup_plan, "installed_version", versions.get)
    monkeypatch.setattr(
        setup_plan, "missing_pins", lambda pins: [n for n in pins if versions.get(n) is None]
    )


def commands(root: Path, source: torch_build.TorchSource, *, with_tests: bool = False) -> list[str]:
    wanted = read_wanted(root, with_tests=with_tests)
    steps = setup_plan.plan_steps(wanted, source, BARE_LINUX)
    return [" ".join(step.command).partition(" -m ")[2] for step in steps]


LOCKED = "--require-hashes --no-deps --only-binary=:all:"


def test_plan_for_a_bare_environment(root, monkeypatch):
    pretend_installed(monkeypatch)
    index = torch_build.TorchSource(build="cpu", index="https://x/cpu")
    pip, packages, torch = commands(root, index, with_tests=True)
    assert pip == "ensurepip --default-pip"
    files = f"-r {root}/requirements.lock -r {root}/requirements-dev.lock"
    assert packages.endswith(f"{LOCKED} {files}")
    assert torch.endswith("torch==99.0 --index-url https://x/cpu --only-binary=:all: --no-deps")


def test_plan_takes_torch_with_the_rest_where_the_registry_has_it(root, monkeypatch):
    pretend_installed(monkeypatch, pip="25.3")
    (packages,) = commands(root, torch_build.TorchSource(build="cuda"))
    assert packages.startswith("pip install ")
    assert "--progress-bar raw" in packages
    files = f"-r {root}/requirements.lock -r {root}/requirements-torch.lock"
    assert packages.endswith(f"{LOCKED} {files}")


def test_plan_lets_the_index_say_what_its_cuda_needs(root, monkeypatch):
    pretend_installed(monkeypatch, pip="25.3")
    _, torch = commands(root, torch_build.TorchSource(build="cuda", index="https://x/cu126"))
    assert torch.endswith("torch==99.0 --index-url https://x/cu126 --only-binary=:all:")


@pytest.mark.parametrize(("build", "there"), [("cpu", "99.0+cpu"), ("cuda", "99.0+cu126")])
def test_plan_leaves_the_right_torch_of_another_index_alone(root, monkeypatch, build, there):
    pretend_installed(monkeypatch, pip="25.3", torch=there)
    (packages,) = commands(root, torch_build.TorchSource(build=build))
    assert packages.endswith(f"-r {root}/requirements.lock")


def test_plan_keeps_what_the_torch_of_the_registry_needs_as_locked(root, monkeypatch):
    pretend_installed(monkeypatch, pip="25.3", torch="99.0")
    (packages,) = commands(root, torch_build.TorchSource(build="cuda"))
    assert packages.endswith(f"-r {root}/requirements-torch.lock")


def test_plan_takes_another_build_off_once_all_else_is_there(root, monkeypatch):
    pretend_installed(monkeypatch, pip="25.3", torch="99.0+cpu")
    monkeypatch.setattr(torch_build, "torch_packages", lambda names: ["torch", "triton"])
    packages, old, torch = commands(
        root, torch_build.TorchSource(build="rocm", index="https://x/rocm7.2")
    )
    assert packages.endswith(f"-r {root}/requirements.lock")
    assert old == "pip uninstall --yes torch triton"
    assert torch.endswith("torch==99.0 --index-url https://x/rocm7.2 --only-binary=:all:")
    _, old, torch = commands(root, torch_build.TorchSource(build="cuda"))
    assert old == "pip uninstall --yes torch triton"
    assert torch.endswith(f"{LOCKED} -r {root}/requirements-torch.lock")
