"""The lock files: they hold every pin and all that these need, on every system, with hashes.

What a package needs is read from the metadata of the installed packages, which were installed from
these files: a lock that was forgotten, or made for this machine only, is found without a network.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.setup import locks, pins, torch_build
from app.setup.installer import SetupError

ROOT = Path(locks.__file__).parents[2]
NAMES = (locks.PACKAGES, locks.TORCH, locks.TESTS)
SYSTEMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
     "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
     "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix",
     "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt",
     "platform_machine": "AMD64"},
]  # fmt: skip
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# Makes the environment and is no part of it.
NOT_LOCKED = {"pip"}


def environments() -> Iterator[dict[str, str]]:
    for system in SYSTEMS:
        for python in PYTHONS:
            versions = {"python_version": python, "python_full_version": f"{python}.4"}
            yield system | versions | {"implementation_name": "cpython",
                                       "platform_python_implementation": "CPython"}  # fmt: skip


def text_of(name: str) -> str:
    return locks.read_lock(ROOT / name)


@cache
def entries(name: str) -> list[tuple[str, str, str]]:
    """The (name, version, marker) of each package in a lock file."""
    found = re.findall(r"^([\w.-]+)==(\S+)(?: ; (.*?))? \\$", text_of(name), re.MULTILINE)
    assert len(found) > 10
    return found


def locked(files: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """What pip installs from these files in an environment."""
    versions: dict[str, str] = {}
    for file in files:
        for name, version, marker in entries(file):
            if not marker or Marker(marker).evaluate(dict(environment)):
                assert name not in versions, f"{name} is there twice"
                versions[name] = version
    return versions


@cache
def all_needs(name: str) -> list[Requirement]:
    """What an installed package needs on one system or another; of others nothing is known."""
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def needs(name: str, extras: frozenset[str], environment: Mapping[str, str]) -> list[Requirement]:
    """What an installed package needs in an environment."""
    found = []
    for requirement in all_needs(name):
        marker = requirement.marker
        values = [dict(environment) | {"extra": extra} for extra in extras | {""}]
        if marker is None or any(map(marker.evaluate, values)):
            found.append(requirement)
    return found


def not_held(files: tuple[str, ...], environment: Mapping[str, str], *roots: str) -> list[str]:
    """What is needed from these pins on, and is in no file or in a version that does not fit."""
    have = locked(files, environment)
    wrong = []
    waiting = [(canonicalize_name(name), frozenset[str]()) for name in roots]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        for requirement in needs(name, extras, environment):
            target = canonicalize_name(requirement.name)
            if target in NOT_LOCKED:
                continue
            if not requirement.specifier.contains(have.get(target, "none"), prereleases=True):
                wrong.append(f"{name} needs {requirement}, locked is {have.get(target)}")
            step = (target, frozenset(requirement.extras))
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    assert len(seen) > 10
    return wrong


@pytest.mark.parametrize(
    ("pinned", "files"),
    [("requirements.txt", NAMES[:2]), ("requirements-dev.txt", NAMES)],
)
def test_every_pin_and_all_that_it_needs_is_locked_for_every_system(pinned, files):
    wanted = pins.read_pin_file(ROOT / pinned)
    for environment in environments():
        have = locked(files, environment)
        assert {name: have.get(canonicalize_name(name)) for name in wanted} == wanted
        assert not_held(files, environment, *wanted) == []


def test_only_torch_needs_what_goes_with_its_build():
    """The build for the CPU is installed beside the first file alone."""
    wanted = pins.read_pin_file(ROOT / "requirements.txt")
    for environment in environments():
        have = locked((locks.PACKAGES,), environment)
        for name in have:
            for requirement in needs(name, frozenset(), environment):
                target = canonicalize_name(requirement.name)
                assert target in have or target in NOT_LOCKED | {"torch"}, (name, target)
    general = [
        requirement
        for requirement in needs("torch", frozenset(), next(environments()))
        if not torch_build.TORCH_AND_COMPANIONS.fullmatch(canonicalize_name(requirement.name))
    ]
    assert {canonicalize_name(r.name) for r in general} <= set(have)
    assert "torch" in wanted


def test_what_is_installed_here_is_what_is_locked():
    here = locked(NAMES, {})
    torch = metadata.version("torch")
    other_index = torch.partition("+")[2] != ""
    for name, version in here.items():
        if torch_build.TORCH_AND_COMPANIONS.fullmatch(name) and other_index:
            continue
        assert metadata.version(name) == version, name


@pytest.mark.parametrize("name", NAMES)
def test_lock_is_made_of_packages_with_hashes_and_tells_no_address(name):
    header, *lines = text_of(name).splitlines()
    assert header.startswith("# Made by 'python -m app.setup.relock'")
    package = re.compile(r"[a-z0-9-]+==[a-z0-9.]+( ; [a-z_0-9.<>=!' ()A-Z]+)? \\")
    last, following = "", False
    for line in lines:
        if following:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
        else:
            assert package.fullmatch(line), line
            assert line.partition("=")[0] >= last
            last = line.partition("=")[0]
        following = line.endswith("\\")
    assert not following


def test_torch_is_apart_from_the_rest():
    companions = [name for name, _, _ in entries(locks.TORCH)]
    assert "torch" in companions
    assert all(map(torch_build.TORCH_AND_COMPANIONS.fullmatch, companions))
    others = [name for file in (locks.PACKAGES, locks.TESTS) for name, _, _ in entries(file)]
    assert not any(map(torch_build.TORCH_AND_COMPANIONS.fullmatch, others))


def test_pin_that_no_lock_holds_is_refused(tmp_path):
    (tmp_path / "a.lock").write_text("a==1 \\\n    --hash=sha256:00\na==2 ; x == 'y' \\\n")
    (tmp_path / "b.lock").write_text("b==3 \\\n    --hash=sha256:00\n")
    paths = [tmp_path / "a.lock", tmp_path / "b.lock"]
    locks.require_fit({"a": "1", "b": "3"}, paths)
    locks.require_fit({"a": "2"}, paths)
    (tmp_path / "c.lock").write_text("long-name==1 \\\n    --hash=sha256:00\n")
    locks.require_fit({"long_name": "1"}, [tmp_path / "c.lock"])
    said = r"a==3, and the lock files have 1 or 2: .*app\.setup\.relock"
    with pytest.raises(SetupError, match=said):
        locks.require_fit({"a": "3"}, paths)
    with pytest.raises(SetupError, match=r"c==1, and the lock files have none"):
        locks.require_fit({"c": "1"}, paths)


def test_lock_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(SetupError, match="complete copy"):
        locks.digest([tmp_path / "none.lock"])
    (tmp_path / "a.lock").write_bytes(b"\xff")
    with pytest.raises(SetupError, match=r"not UTF-8.*complete copy"):
        locks.digest([tmp_path / "a.lock"])
