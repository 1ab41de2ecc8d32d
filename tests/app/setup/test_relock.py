"""The lock files are made anew by the real uv, from an index that is served on this machine."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.setup import locks, relock
from app.setup.installer import SetupError
from tests.small_studio import Index, build_wheel, serve


class Project:
    """A folder of pins, and an index with what they ask for."""

    def __init__(self, root: Path, index: Path) -> None:
        self.root = root
        self._index = index / "simple"
        self._made = index.parent / "made"
        self.hashes: dict[str, str] = {}

    def publish(self, name: str, version: str, *needs: str) -> None:
        wheel = build_wheel(self._made, name, version, needs=needs)
        serve(self._index, wheel)
        self.hashes[f"{name}=={version}"] = hashlib.sha256(wheel.read_bytes()).hexdigest()

    def pin(self, *pins: str, tests: tuple[str, ...] = ()) -> None:
        (self.root / "requirements.txt").write_text("\n".join(pins) + "\n")
        (self.root / "requirements-dev.txt").write_text("\n".join(tests) + "\n")

    def lock(self, *, upgrade: bool = False) -> list[str]:
        return relock.relock(self.root, upgrade=upgrade)

    def text(self, name: str) -> str:
        return (self.root / name).read_text()

    def packages(self, name: str) -> list[str]:
        lines = self.text(name).splitlines()[1:]
        return [line.removesuffix(" \\") for line in lines if not line.startswith(" ")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    root = tmp_path / "project"
    root.mkdir()
    made = Project(root, tmp_path / "index")
    served = Index(tmp_path / "index")
    served.open.set()
    thread = threading.Thread(target=served.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{served.url}/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made.publish("direct", "1.0", "below", "pip", "colorful; sys_platform == 'win32'")
    made.publish("below", "1.0")
    made.publish("colorful", "1.0")
    made.publish("pip", "99.0")
    made.publish("torch", "9.9", "below", "nvidia-x; sys_platform == 'linux'")
    made.publish("nvidia_x", "1.0")
    made.publish("tester", "3.0", "below", "only-tests")
    made.publish("only_tests", "1.0")
    made.pin("direct==1.0  # why", "torch==9.9", tests=("tester==3.0",))
    yield made
    served.shutdown()
    thread.join()
    served.server_close()


def test_all_is_locked_for_all_systems_in_three_files(project):
    assert set(project.lock()) == {locks.PACKAGES, locks.TORCH, locks.TESTS}
    assert project.packages(locks.PACKAGES) == [
        "below==1.0",
        "colorful==1.0 ; sys_platform == 'win32'",
        "direct==1.0",
    ]
    assert project.packages(locks.TORCH) == [
        "nvidia-x==1.0 ; sys_platform == 'linux'",
        "torch==9.9",
    ]
    assert project.packages(locks.TESTS) == ["only-tests==1.0", "tester==3.0"]
    assert f"below==1.0 \\\n    --hash=sha256:{project.hashes['below==1.0']}\n" in project.text(
        locks.PACKAGES
    )


def test_files_tell_nothing_of_the_machine_that_made_them(project, monkeypatch):
    project.lock()
    for name in (locks.PACKAGES, locks.TORCH, locks.TESTS):
        text = project.text(name)
        assert not [
            word for word in ("127.0.0.1", "//", str(project.root), "simple") if word in text
        ]


def test_what_is_locked_stays_until_an_upgrade_is_asked_for(project):
    project.lock()
    project.publish("below", "2.0")
    project.publish("only_tests", "2.0")
    project.publish("new", "1.0", "below")
    project.pin("direct==1.0", "torch==9.9", "new==1.0", tests=("tester==3.0",))
    assert project.lock() == [locks.PACKAGES]
    assert {"below==1.0", "new==1.0"} < set(project.packages(locks.PACKAGES))
    assert project.lock() == []
    assert set(project.lock(upgrade=True)) == {locks.PACKAGES, locks.TESTS}
    assert "below==2.0" in project.packages(locks.PACKAGES)
    assert project.packages(locks.TESTS) == ["only-tests==2.0", "tester==3.0"]


def test_tests_run_on_what_the_studio_runs_on_or_nothing_is_locked(project):
    project.lock()
    before = project.text(locks.PACKAGES)
    project.publish("below", "2.0")
    project.publish("tester", "4.0", "below>=2")
    project.pin("direct==1.0", "torch==9.9", tests=("tester==4.0",))
    with pytest.raises(SetupError, match=r"^uv found no set of packages:\n(?s:.*)tester"):
        project.lock()
    assert project.text(locks.PACKAGES) == before


def test_pin_that_the_index_lacks_leaves_the_files_alone(project):
    project.lock()
    project.pin("direct==7.0")
    with pytest.raises(SetupError, match=r"direct"):
        project.lock()
    assert "direct==1.0" in project.packages(locks.PACKAGES)


@pytest.mark.parametrize(
    "text",
    [
        "a==1\n",
        "a @ https://x/a.whl \\\n    --hash=sha256:00\n",
        "--index-url https://x\n",
        "a==1 \\\n    --hash=md5:00\n",
    ],
)
def test_anything_without_hashes_is_refused(text):
    with pytest.raises(SetupError, match="no package with hashes"):
        list(relock.entries(f"# note\n{text}"))


def test_command_says_what_changed_and_what_is_lacking(project, monkeypatch, capsys):
    monkeypatch.setattr(relock, "ROOT", project.root)
    assert relock.main([]) == 0
    assert relock.main([]) == 0
    assert capsys.readouterr().out == (
        "changed: requirements.lock, requirements-torch.lock, requirements-dev.lock\n"
        "The lock files are as they were.\n"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert relock.main([]) == 2
    assert "uv is not there" in capsys.readouterr().err
