"""launch.py from outside: real starts of a small copy of the project, with packages made here.

The copy has the real launcher, a command line that prints what it was given, and requirements of a
few hundred bytes. pip really runs, against a folder of wheels or an index served on this machine.
"""

import ast
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from tests.small_studio import (
    ROOT,
    RUNNER,
    Ended,
    Index,
    Studio,
    build_wheel,
    clone,
    copy_project,
    ended,
    from_index,
    replace,
    serve,
)

pytestmark = pytest.mark.slow

POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="signals to another process are POSIX")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    build_wheel(folder, "tinything", "1.0")
    build_wheel(folder, "tinything", "2.0")
    build_wheel(folder, "otherthing", "1.0")
    build_wheel(folder, "pytest", "0.1", {"pytest/__init__.py": "", "pytest/__main__.py": RUNNER})
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> tuple[Studio, Ended]:
    """A copy after its first start, and how that start went."""
    studio = copy_project(tmp_path_factory.mktemp("first") / "studio", wheels)
    return studio, studio.start("seven", "--torch", "cpu")


@pytest.fixture
def ready(first: tuple[Studio, Ended], tmp_path: Path) -> Studio:
    """A copy that was set up before, for this test alone."""
    studio, _ = first
    return clone(studio, tmp_path / "studio")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    served = Index(tmp_path / "index")
    thread = threading.Thread(target=served.serve_forever, args=(0.05,))
    thread.start()
    yield served
    served.open.set()
    served.shutdown()
    thread.join()
    served.server_close()


def test_first_start_makes_the_environment_and_restarts_inside_it(first):
    studio, ended = first
    assert ended.code == 7
    assert Path(ended.told["prefix"]).resolve() == studio.venv.resolve()
    assert ended.told["argv"] == ["seven"], "the launcher's own option is not the studio's"
    assert "Setting up PixArt Studio" in ended.err
    assert "step 2 of 2, packages" in ended.err
    assert "PixArt Studio is set up" in ended.err
    assert len(ended.err.splitlines()) < 15, "progress, not pip's own text"
    assert "Successfully installed tinything-1.0" in studio.log
    assert studio.stamp["torch"] == "cpu"
    assert studio.stamp["requirements"]
    assert studio.stamp["tests"] == ""


def test_second_start_runs_no_pip_and_says_nothing(ready):
    log = ready.log
    replace(ready.packages / "pip" / "__main__.py", "raise SystemExit('pip was called')")
    ended = ready.start("generate", "a dog in space", PIP_FIND_LINKS="")
    assert (ended.code, ended.err) == (0, "")
    assert ended.told["argv"] == ["generate", "a dog in space"]
    assert ready.log == log


def test_start_from_another_folder_and_through_a_link_finds_its_own_place(ready, tmp_path):
    (tmp_path / "link").symlink_to(ready.root, target_is_directory=True)
    through = Studio(root=tmp_path / "link", wheels=ready.wheels, variables=ready.variables)
    ended = through.start()
    assert (ended.code, ended.err) == (0, "")


def test_python_with_all_requirements_is_used_as_it_is(ready, tmp_path, wheels):
    bare = copy_project(tmp_path / "bare", wheels)
    ended = bare.start("models", python=ready.python)
    assert (ended.code, ended.err) == (0, "")
    assert Path(ended.told["prefix"]).resolve() == ready.venv.resolve()
    assert not bare.venv.exists()
    assert "--torch changes nothing here" in bare.start("--torch=cpu", python=ready.python).err
    assert not bare.venv.exists()


def test_installation_that_was_cut_off_is_repaired(ready):
    # As pip leaves it when it is killed: metadata, files, but not what it writes last.
    replace(ready.packages / "tinything" / "__init__.py", "")
    (ready.packages / "tinything-1.0.dist-info" / "INSTALLER").unlink()
    (ready.packages / "~inything").mkdir()
    stamp = ready.venv / "studio-stamp.json"
    stamp.unlink()
    ended = ready.start()
    assert (ended.code, ended.told["argv"]) == (0, [])
    assert "1.0" in (ready.packages / "tinything" / "__init__.py").read_text()
    assert not (ready.packages / "~inything").exists()
    assert stamp.exists()


def test_environment_filled_by_hand_gets_a_stamp_without_pip(ready):
    (ready.venv / "studio-stamp.json").unlink()
    replace(ready.packages / "pip" / "__main__.py", "raise SystemExit('pip was called')")
    ended = ready.start()
    assert (ended.code, ended.err) == (0, "")
    assert ready.stamp["requirements"]


@POSIX_ONLY
@pytest.mark.parametrize("harm", ["missing", "dangling", "no program"])
def test_broken_interpreter_is_replaced_and_its_packages_kept(ready, harm):
    log = ready.log
    for link in ready.python.parent.glob("python*"):
        link.unlink()
    if harm == "dangling":
        ready.python.symlink_to("/nowhere/python")
    elif harm == "no program":
        ready.python.write_bytes(b"")
        ready.python.chmod(0o755)
    ended = ready.start()
    assert ended.code == 0
    assert Path(ended.told["prefix"]).resolve() == ready.venv.resolve()
    assert ready.log == log, "nothing was downloaded again"


def test_changed_requirements_are_installed_by_the_next_start(ready):
    before = ready.stamp
    ready.require("tinything==2.0", "otherthing==1.0")
    ended = ready.start("gallery")
    assert ended.code == 0
    assert "Successfully installed otherthing-1.0 tinything-2.0" in ready.log
    assert ready.stamp["requirements"] != before["requirements"]
    assert ready.stamp["torch"] == before["torch"], "the build that was chosen once stays chosen"


def test_changed_lock_is_installed_by_the_next_start_although_all_pins_are_there(ready):
    ready.lock("tinything==1.0", "otherthing==1.0")
    assert ready.start("gallery").code == 0
    assert (ready.packages / "otherthing-1.0.dist-info").is_dir()
    log = ready.log
    ended = ready.start("gallery", PIP_FIND_LINKS="")
    assert (ended.code, ended.err) == (0, "")
    assert ready.log == log


def test_file_with_another_hash_is_one_sentence_and_nothing_is_installed(ready, tmp_path, wheels):
    forged = tmp_path / "forged"
    build_wheel(forged, "tinything", "2.0", {"tinything/__init__.py": "stolen = True\n"})
    shutil.copy(wheels / "otherthing-1.0-py3-none-any.whl", forged)
    ready.require("otherthing==1.0", "tinything==2.0")
    ended = ready.start(PIP_FIND_LINKS=str(forged))
    assert (ended.code, ended.out) == (2, "")
    sentence = ended.err.splitlines()[-1]
    assert (
        "sent a file for tinything==2.0 that is not the one PixArt Studio is locked to" in sentence
    )
    assert "-m pip cache purge' and start again" in sentence
    names = {path.name for path in ready.packages.glob("*thing*")}
    assert names == {"tinything", "tinything-1.0.dist-info"}
    assert "1.0" in (ready.packages / "tinything" / "__init__.py").read_text()
    assert ready.stamp["requirements"] == "", "it is marked as unfinished"
    assert ready.start().code == 0, "the next start with the right file repairs it"
    assert "2.0" in (ready.packages / "tinything" / "__init__.py").read_text()


def test_source_is_not_built(ready, tmp_path):
    """Building one would run tools that no lock names."""
    source = tmp_path / "sources" / "tinything-2.0.tar.gz"
    source.parent.mkdir()
    with tarfile.open(source, "w:gz") as archive:
        setup = tarfile.TarInfo("tinything-2.0/setup.py")
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
        setup.size = len(code)
        archive.addfile(setup, io.BytesIO(code))
    ready.require("tinything==2.0")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    (ready.root / "requirements.lock").write_text(f"tinything==2.0 --hash=sha256:{digest}\n")
    ended = ready.start(PIP_FIND_LINKS=str(source.parent))
    assert ended.code == 2
    assert "The package registry has no tinything==2.0" in ended.err
    assert not (tmp_path / "ran").exists()


def test_pin_without_a_new_lock_is_one_sentence_and_changes_nothing(ready):
    stamp, log = ready.stamp, ready.log
    (ready.root / "requirements.txt").write_text("tinything==2.0\n")
    ended = ready.start()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "The requirements ask for tinything==2.0, and the lock files have 1.0: get a complete copy "
        "of PixArt Studio, or, if you changed that pin, run 'python -m app.setup.relock' with the "
        "Python of .venv (CONTRIBUTING.md) and start again.\n"
    )
    assert (ready.stamp, ready.log) == (stamp, log)


def test_no_network_is_one_sentence(ready):
    ready.require("tinything==2.0")
    refused = {
        "PIP_NO_INDEX": "0",
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    }
    ended = ready.start(PIP_RETRIES="1", no_proxy="127.0.0.1", **refused)
    assert ended.code == 2
    assert ended.out == ""
    assert "The package registry cannot be reached" in ended.err.splitlines()[-1]
    assert str(ready.venv / "install.log") in ended.err
    assert "127.0.0.1" in ready.log
    assert ready.start().code == 0, "the next start with a network repairs it"


def test_package_that_does_not_exist_is_one_sentence(ready):
    ready.require("tinything==3.0")
    ended = ready.start()
    assert ended.code == 2
    assert "The package registry has no tinything==3.0" in ended.err.splitlines()[-1]


def test_test_verb_installs_the_test_tools_and_passes_arguments_and_exit_code(ready):
    ended = ready.start("test", "-k", "some thing", "--torch", "cpu", "tests/app")
    assert ended.code == 5
    assert ended.out.splitlines()[-1] == f"{['-k', 'some thing', 'tests/app']} {ready.root}"
    assert ready.stamp["tests"]
    log, tests = ready.log, ready.stamp["tests"]
    again = ready.start("test", PIP_FIND_LINKS="")
    assert (again.code, again.err) == (5, "")
    assert ready.start("models").code == 0
    assert (ready.log, ready.stamp["tests"]) == (log, tests)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--torch", "gpu"], "--torch takes auto, cpu, cuda or rocm, not 'gpu'."),
        (["models", "list", "--torch"], "--torch takes auto, cpu, cuda or rocm, and one of them"),
    ],
)
def test_wrong_torch_value_is_one_sentence_and_changes_nothing(tmp_path, wheels, argv, part):
    studio = copy_project(tmp_path / "studio", wheels)
    ended = studio.start(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(part)
    assert ended.err.count("\n") == 1
    assert not studio.venv.exists()


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements.lock", "requirements-torch.lock"]
)
def test_incomplete_copy_of_the_project_is_one_sentence(ready, name):
    (ready.root / name).unlink()
    ended = ready.start()
    assert ended.code == 2
    assert f"{name} cannot be read" in ended.err
    assert "get a complete copy of PixArt Studio" in ended.err
    assert ended.err.count("\n") == 1


@POSIX_ONLY
def test_second_start_at_once_waits_for_the_first(ready, index, wheels, tmp_path):
    serve(tmp_path / "index" / "simple", wheels / "tinything-2.0-py3-none-any.whl")
    ready.require("tinything==2.0")
    one = ready.begin("one", **from_index(index))
    assert index.asked.wait(30)
    two = ready.begin("two", **from_index(index))
    assert two.stderr is not None
    assert "waiting for it to finish" in two.stderr.readline()
    assert two.poll() is None
    index.open.set()
    assert [ended(one).told["argv"], ended(two).told["argv"]] == [["one"], ["two"]]
    assert ready.log.count("Successfully installed tinything-2.0") == 1


@POSIX_ONLY
def test_start_that_was_killed_blocks_nobody(ready, index, wheels, tmp_path):
    serve(tmp_path / "index" / "simple", wheels / "tinything-2.0-py3-none-any.whl")
    ready.require("tinything==2.0")
    killed = ready.begin(**from_index(index))
    assert index.asked.wait(30)
    killed.kill()
    killed.communicate()
    assert ready.stamp["requirements"] == "", "it is marked as unfinished"
    index.open.set()
    assert ready.start().code == 0
    assert ready.stamp["requirements"]
    assert (ready.packages / "tinything-2.0.dist-info" / "INSTALLER").exists()


@POSIX_ONLY
@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_ctrl_c_during_set_up_is_one_sentence(ready, index, wheels, tmp_path, whole_group):
    serve(tmp_path / "index" / "simple", wheels / "tinything-2.0-py3-none-any.whl")
    ready.require("tinything==2.0")
    process = ready.begin(**from_index(index))
    assert index.asked.wait(30)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    stopped = ended(process)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == (
        "Stopped during set-up; the next start goes on from there."
    )
    assert ready.start().code == 0, "without the index that still gives no answer"


@POSIX_ONLY
def test_ctrl_c_in_the_studio_is_one_sentence(ready):
    process = ready.begin("wait", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    stopped = ended(process)
    assert (stopped.code, stopped.err.strip()) == (130, "Stopped.")


@pytest.mark.skipif(
    sys.platform != "linux", reason="which build the registry has differs by system"
)
def test_torch_build_is_chosen_switched_and_replaced_where_it_cannot_be_had(ready, index, tmp_path):
    served = tmp_path / "index"
    made = tmp_path / "made"
    in_registry = [build_wheel(made, "torch", "9.9"), build_wheel(made, "nvidia_x", "1.0")]
    serve(served / "simple", *in_registry)
    serve(served / "whl" / "cpu", build_wheel(made, "torch", "9.9+cpu"))
    index.open.set()
    ready.require("tinything==1.0", torch=["nvidia_x==1.0", "torch==9.9"], wheels=served / "simple")
    variables = from_index(index) | {"PIXART_STUDIO_TORCH_INDEX": f"{index.url}/whl"}

    assert ready.start("--torch", "cpu", **variables).code == 0
    assert (ready.packages / "torch-9.9+cpu.dist-info").is_dir()
    assert not (ready.packages / "nvidia_x-1.0.dist-info").exists(), "only CUDA needs it"
    log = ready.log
    assert ready.start("--torch", "cpu", **variables).err == "", "it is there already"
    assert ready.log == log

    assert ready.start("--torch", "cuda", **variables).code == 0
    assert (ready.packages / "torch-9.9.dist-info").is_dir()
    assert (ready.packages / "nvidia_x-1.0.dist-info").is_dir()
    assert not (ready.packages / "torch-9.9+cpu.dist-info").exists()
    assert ready.stamp["torch"] == "cuda"

    unreachable = variables | {"PIXART_STUDIO_TORCH_INDEX": "http://127.0.0.1:9/whl"}
    fallen = ready.start("--torch", "cpu", **unreachable)
    assert fallen.code == 0
    assert "http://127.0.0.1:9/whl cannot be reached from here: taking torch from the default" in (
        fallen.err
    )
    assert (ready.packages / "torch-9.9.dist-info").is_dir()

    no_build = ready.start("--torch", "rocm", **variables)
    assert no_build.code == 0
    assert "has no rocm build of torch 9.9" in no_build.err


def test_launcher_parses_on_python_3_6():
    ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_old_python_is_told_the_way_out():
    told = launch.refusal((3, 9, 2), starts=lambda name: False)
    assert told == (
        "PixArt Studio needs Python 3.11 or newer; this is 3.9.2. Get one from "
        "https://www.python.org/downloads/ and start the studio with it."
    )
    found = launch.refusal((3, 10, 1), starts=lambda name: name in ("python3.11", "python3.13"))
    assert found is not None
    assert found.endswith("so start it with: python3.13 launch.py")
    assert launch.refusal((3, 11, 0)) is None
    assert launch.refusal((4, 0, 0)) is None


def test_command_that_starts_nothing_is_not_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, body in (("python3.14", "exit 127"), ("python3.13", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    assert [launch.starts(f"python3.{n}") for n in (12, 13, 14)] == [False, True, False]


def test_importing_the_launcher_imports_nothing_more():
    code = "import sys, collections.abc; before = set(sys.modules); import launch;"
    code += "print(sorted(set(sys.modules) - before))"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert loaded.strip() == "['launch']"


def test_check_of_a_ready_environment_takes_no_time(ready):
    code = (
        f"import sys, time; sys.path.insert(0, {str(ready.root)!r}); start = time.process_time();"
        f"from app.setup import environment; environment.prepare({str(ready.root)!r}, ['models']);"
        "print(time.process_time() - start)"
    )
    seconds = [
        float(subprocess.check_output([ready.python, "-c", code], env=ready.variables, text=True))
        for _ in range(3)
    ]
    assert min(seconds) < 0.15, seconds
