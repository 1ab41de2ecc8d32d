"""What a killed process was making is taken away, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_manager import drafts
from pipelines import files
from pipelines.catalog import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("kept")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(script: str, *arguments: Path) -> None:
    """Runs `script` in a process that kills itself with SIGKILL, as it says by itself."""
    head = "import os, sys; from pathlib import Path; from pipelines import files;"
    head += "from lora_manager import drafts; die = lambda: os.kill(os.getpid(), 9)\n"
    command = [sys.executable, "-c", head + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


def test_the_draft_of_a_process_that_lives_is_kept_and_that_of_a_dead_one_swept(
    folder: Path,
) -> None:
    with files.whole(folder / "new", 0) as draft:
        draft.mkdir()
        drafts.sweep(folder)
        assert draft.is_dir(), "its process lives"
        killed(
            "with files.whole(Path(sys.argv[1]), 0) as draft:\n"
            "    draft.mkdir(); (draft / 'a').touch(); die()",
            folder / "other",
        )
        assert len(names(folder)) == 3
        drafts.sweep(folder)
        assert names(folder) == [draft.name, "kept"]
    assert names(folder) == ["kept", "new"]


def test_every_way_of_writing_is_swept(folder: Path) -> None:
    """Whatever writes, killed between its draft and the name: one sweep takes all of it."""
    (folder / "below" / "deep").mkdir(parents=True)
    killed("os.fsync = lambda handle: die()\nfiles.write(Path(sys.argv[1]), b'x')", folder / "file")
    killed(
        "os.fsync = lambda handle: die()\nfiles.check_writable(Path(sys.argv[1]))",
        folder / "below",
    )
    killed(
        "import shutil; from app.models import own_models; shutil.rmtree = lambda *a, **k: die()\n"
        "home = Path(sys.argv[1]) / 'mine'; home.mkdir()\n"
        "(home / 'model.toml').write_text('')\n"
        "own_models.remove(home.parent, 'mine')",
        folder / "below" / "deep",
    )
    assert len(names(folder)) == 3
    assert names(folder / "below" / "deep")[0].endswith(".gone")
    drafts.sweep_below(folder)
    assert names(folder) == ["below", "kept"]
    assert names(folder / "below") == ["deep"]
    assert names(folder / "below" / "deep") == []


def test_what_was_being_replaced_comes_back(folder: Path) -> None:
    killed(
        "with files.whole(Path(sys.argv[1]), 0) as draft:\n"
        "    draft.mkdir(); Path.replace = lambda *a: die()",
        folder / "kept",
    )
    assert "kept" not in names(folder)
    drafts.sweep(folder)
    assert names(folder) == ["kept"]
    assert (folder / "kept" / "a").read_text() == "kept"


def test_a_number_that_was_given_again_keeps_no_draft(folder: Path) -> None:
    """The first process of the system lives always, and a sleeping child of ours lives now."""
    process, start, place = drafts.writer().split("-")
    other = "0" if start[0] != "0" else "1"
    stale = folder / f".new.{process}-{other}{start[1:]}-{place}-0123abcd.part"
    first = folder / f".new.1-abcdef-{place}-0123abcd.part"
    mine = drafts.beside(folder / "new")
    for path in (stale, first, mine):
        path.touch()
    drafts.sweep(folder)
    assert names(folder) == [mine.name, "kept"]


def test_a_process_that_ended_and_was_not_asked_how_is_dead(folder: Path) -> None:
    script = "import sys; from pathlib import Path; from lora_manager import drafts;"
    script += "drafts.beside(Path(sys.argv[1])).touch()"
    child = subprocess.Popen([sys.executable, "-c", script, str(folder / "new")], cwd=ROOT)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    drafts.sweep(folder)
    assert names(folder) == ["kept"]
    child.wait()


@pytest.mark.parametrize(
    "name",
    [
        ".new.7-abcdef-0000-0123abcd.part",
        ".new.0123abcd.part",
        ".new.12345-0123abcd.part",
        ".new.draft-12345",
    ],
)
def test_of_other_computers_and_earlier_versions_only_old_ones_go(folder: Path, name: str) -> None:
    """In another container the same number of a process is somebody who may live."""
    place = drafts.writer().rsplit("-", 1)[1]
    assert place != "0000"
    draft = folder / name
    draft.mkdir()
    (draft / "inside").touch()
    os.utime(draft, (0, 0))
    drafts.sweep(folder)
    assert draft.is_dir(), "something in it was touched just now"
    os.utime(draft / "inside", (0, 0))
    os.utime(draft, (0, 0))
    drafts.sweep(folder)
    assert names(folder) == ["kept"]


def test_only_drafts_are_swept(folder: Path) -> None:
    dead = "999999999-abcdef-" + drafts.writer().rsplit("-", 1)[1]
    for name in (f"new.{dead}-0123abcd.part", f".new.{dead}-0123.part", f".new.{dead}.part"):
        (folder / name).touch()
    for name in ("model.safetensors.part", ".part", ".lock"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    before = names(folder)
    drafts.sweep(folder)
    drafts.sweep_below(folder)
    assert names(folder) == before
    drafts.sweep(folder / "nowhere")
    (folder / f".new.{dead}-0123abcd.part").symlink_to(folder / "kept")
    drafts.sweep(folder)
    assert names(folder) == before
    assert (folder / "kept" / "a").is_file()


def test_what_links_lead_to_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of other programs may have gigabytes, or lie where nothing can be opened."""
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    with files.whole(folder / "new", 0) as draft:
        draft.mkdir()
        (draft / "own").write_text("own")
        (draft / "link").symlink_to(folder / "kept" / "a")
        (draft / "gone").symlink_to(folder / "nowhere")
    assert [path.name for path in synced[:-2]] == ["own"]
    assert (folder / "new" / "link").readlink() == folder / "kept" / "a"


def test_a_folder_that_goes_meanwhile_keeps_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two studios may start at once."""
    for number in range(3):
        (folder / f"left-{number}").touch()
        os.utime(folder / f"left-{number}", (0, 0))
    is_old = drafts._is_old

    def racing(path: Path) -> bool:
        if path.name.startswith("left-"):
            monkeypatch.setattr(drafts, "_is_old", is_old)
            raise FileNotFoundError
        return is_old(path)

    monkeypatch.setattr(drafts, "_is_old", racing)
    drafts.sweep_folders(folder)
    assert len(names(folder)) == 2, "the one that went, and what is not old"
