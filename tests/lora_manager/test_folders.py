"""Why a folder cannot be listed, and that one which is only not there yet is no trouble."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_manager import folders
from lora_manager.library import LoraLibrary

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")


def test_what_can_be_listed_or_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "linked", tmp_path / "linked" / "new" / "newer"):
        assert folders.trouble(folder) == ""


def test_every_trouble_has_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "there").symlink_to("back")
    (tmp_path / "back").symlink_to("there")
    (tmp_path / "dead").symlink_to("/nowhere/at/all")
    (tmp_path / "file").write_text("x")
    for name in ("loop", "loop/below", "there", "back/below"):
        assert folders.trouble(tmp_path / name) == "links in it lead in circles"
    for name in ("dead", "dead/below/it"):
        assert folders.trouble(tmp_path / name) == "it is a link that leads nowhere"
    for name in ("file", "file/below"):
        assert folders.trouble(tmp_path / name) == "it is a file, not a folder"

    def refused(path: Path) -> object:
        raise PermissionError(13, "Permission denied")

    # The superuser, as whom tests may run, is never refused.
    monkeypatch.setattr(os, "scandir", refused)
    assert folders.trouble(tmp_path) == "Permission denied"


def test_a_dead_link_among_loras_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to("/nowhere/a.safetensors")
    (tmp_path / "b.safetensors").symlink_to("b.safetensors")
    (tmp_path / "c.bin").write_bytes(b"x")
    assert LoraLibrary(tmp_path).problems() == [
        f"“a.safetensors” in {tmp_path} is left out: it is a link that leads nowhere.",
        f"“b.safetensors” in {tmp_path} is left out: links in it lead in circles.",
        f"“c.bin” in {tmp_path} is left out: import it to use it.",
    ]
