"""What a killed process was making is taken away, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("kept")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_draft_of_a_process_is_swept_away(folder: Path) -> None:
    with files.whole(folder / "new", 0) as draft:
        draft.mkdir()
        files.sweep(folder, os.getpid() + 1)
        assert draft.is_dir(), "of another process"
        files.sweep(folder, os.getpid())
        assert names(folder) == ["kept"]
        draft.mkdir()
    assert names(folder) == ["kept", "new"]


def test_what_was_being_replaced_comes_back(folder: Path) -> None:
    (folder / "kept").rename(folder / f".kept.{os.getpid()}-0123abcd.old")
    (folder / f".kept.{os.getpid()}-0123abcd.part").mkdir()
    files.sweep(folder, os.getpid())
    assert names(folder) == ["kept"]
    assert (folder / "kept" / "a").read_text() == "kept"


def test_only_drafts_are_swept(folder: Path) -> None:
    mine = os.getpid()
    for name in (f"new.{mine}-0123abcd.part", f".new.{mine}-0123.part", f".new.{mine}.part"):
        (folder / name).touch()
    before = names(folder)
    files.sweep(folder, mine)
    assert names(folder) == before
    files.sweep(folder / "nowhere", mine)


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
