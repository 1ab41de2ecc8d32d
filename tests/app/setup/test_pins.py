"""Reading pinned requirements, and comparing them with what is installed."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.setup import pins
from app.setup.installer import SetupError

ROOT = Path(pins.__file__).parents[2]
NAMES = st.text("abcxyz019-", min_size=1, max_size=12).filter(lambda name: name[0] in "abcxyz")
VERSIONS = st.lists(st.integers(0, 999), min_size=1, max_size=4).map(
    lambda v: ".".join(map(str, v))
)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_own_files_are_read_and_every_line_says_its_licence(name):
    found = pins.read_pin_file(ROOT / name)
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert len(found) == len(lines)
    assert all("  # " in line and ": " in line for line in lines)


def test_both_files_agree():
    run, dev = (pins.read_pin_file(ROOT / name) for name in
                ("requirements.txt", "requirements-dev.txt"))  # fmt: skip
    assert not set(run) & set(dev)


@given(st.dictionaries(NAMES, VERSIONS), st.sampled_from(["\n", "\r\n", "\n\n  \n# note\n"]))
def test_what_is_written_is_read(wanted, ends):
    text = ends.join(f"{name} == {version}  # why" for name, version in wanted.items())
    assert pins.read_pins(text, "x") == wanted


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_its_line(text):
    try:
        found = pins.read_pins(text, "x.txt")
    except SetupError as error:
        assert "of x.txt is not of the form name==version" in str(error)
    else:
        assert all(found.values())


@pytest.mark.parametrize(
    "line",
    ["torch", "torch>=2", "-r x.txt", "a==2.*", "a==1; what", "a==1; os_name < '3'", "a==1 b"],
)
def test_line_that_is_no_pin_is_refused(line):
    with pytest.raises(SetupError, match=r"Line 2 of r\.txt"):
        pins.read_pins(f"a==1\n{line}", "r.txt")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(SetupError, match="complete copy"):
        pins.read_pin_file(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("sys_platform == 'linux'", True),
        ('sys_platform != "linux"', False),
        ("sys_platform == 'win32' or platform_machine == 'arm64'", False),
        ("sys_platform == 'linux' and platform_machine != 'arm64' or os_name == 'nt'", True),
    ],
)
def test_markers(marker, expected):
    facts = {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"}
    assert pins.holds(marker, facts) is expected


def test_pin_for_another_system_is_left_out():
    other = "win32" if sys.platform != "win32" else "linux"
    text = f"a==1 ; sys_platform == '{other}'\nb[x,y]==2 ; sys_platform == '{sys.platform}'"
    assert pins.read_pins(text, "x") == {"b": "2"}


def test_what_is_wanted_has_the_test_tools_where_they_are_asked_for(tmp_path):
    (tmp_path / "requirements.txt").write_text("a==1\n")
    (tmp_path / "requirements-dev.txt").write_text("b==2\n")
    assert pins.read_wanted(tmp_path, with_tests=False).pins == {"a": "1"}
    assert pins.read_wanted(tmp_path, with_tests=True).pins == {"a": "1", "b": "2"}


def install(folder: Path, name: str, version: str) -> Path:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    return info


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_missing_and_other_versions_are_named(packages):
    install(packages, "Tiny_Thing", "1.0")
    install(packages, "torch_like", "2.15.0+cpu")
    wanted = {"tiny-thing": "1.0", "torch-like": "2.15.0", "absent-thing": "1"}
    assert pins.missing_pins(wanted) == ["absent-thing"]
    assert pins.missing_pins({"tiny-thing": "1.0.1", "torch-like": "2.15.1"}) == [
        "tiny-thing",
        "torch-like",
    ]


def test_package_without_metadata_is_missing(packages):
    info = install(packages, "hollow", "1.0")
    (info / "METADATA").unlink()
    (info / "entry_points.txt").touch()
    assert pins.missing_pins({"hollow": "1.0"}) == ["hollow"]
    assert pins.installed_version("hollow") is None


def test_installed_version_is_that_of_the_metadata():
    assert pins.installed_version("pytest") == metadata.version("pytest")


def test_what_a_killed_pip_left_is_removed_and_nothing_else(packages):
    whole = install(packages, "whole", "1.0")
    half = install(packages, "half", "1.0")
    (half / "INSTALLER").unlink()
    (packages / "~alf").mkdir()
    (packages / "half").mkdir()
    assert set(pins.cut_off_packages(packages)) == {half, packages / "~alf"}
    pins.remove_cut_off_packages(packages)
    assert pins.cut_off_packages(packages) == []
    assert whole.exists()
    assert (packages / "half").exists(), "pip writes over it"
