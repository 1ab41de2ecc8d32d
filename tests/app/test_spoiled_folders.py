"""Links in circles, links to disks that are gone and files where folders should be: whatever needs
that folder says so in one sentence, and everything else goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app import doctor, sweeping
from app.cli.main import main
from app.gallery.index import GalleryIndex
from app.janitor import DAY, Janitor
from app.models.store import ModelStore
from app.settings import Settings
from lora_manager import drafts
from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.errors import ModelError, RequestError, SaveError
from pipelines.text.prompt_cache import PromptCache
from tests.app.gallery.test_index import put
from tests.small_loras import lora

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
Run = Callable[..., tuple[int, list[str], list[str]]]
FOX = "2025-01-01/000000-1-000000.png"
KINDS = {
    "circle": "links in it lead in circles",
    "nowhere": "it is a link that leads nowhere",
    "file": "it is a file, not a folder",
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, list[str], list[str]]:
        """(exit code, lines on stdout, lines on stderr)"""
        code = main([*arguments, "--workspace", str(tmp_path)])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()

    return command


def spoil(place: Path, kind: str) -> str:
    """Why nobody can list `place` from now on."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        place.write_text("x")
    else:
        place.symlink_to(place.name if kind == "circle" else "/nowhere/at/all")
    return KINDS[kind]


@pytest.mark.parametrize("place", ["models", "models/hub", "models/hub/installed"])
def test_models_that_cannot_be_listed(run: Run, tmp_path: Path, kind: str, place: str) -> None:
    reason = spoil(tmp_path / place, kind)
    told = f"The models in {tmp_path / place} cannot be listed ({reason})."
    refused = f"{told} Repair that folder or its link."
    code, out, said = run("models", "list")
    assert (code, said) == (2, [told])
    assert out[0].startswith("nano "), "what ships can be used"
    code, out, said = run("models", "list", "--json")
    assert (code, said, json.loads(out[0])["id"]) == (2, [told], "nano")
    for command in ("models remove alpha-512 --yes", "models download alpha-512 --yes"):
        assert run(*command.split()) == (2, [], [refused])
    for command in ("generate x --model mine", "generate x --lora lcm-lora-1024"):
        assert run(*command.split()) == (2, [], [refused])
    assert run("loras", "list") == (2, [], [told])
    found = [f.fact for f in doctor.examine(Settings(workspace=tmp_path), lambda: None)]
    assert sum("cannot be listed" in fact for fact in found) == 1


def test_loras_that_cannot_be_listed(run: Run, tmp_path: Path, kind: str) -> None:
    reason = spoil(tmp_path / "loras", kind)
    told = f"The LoRAs in {tmp_path / 'loras'} cannot be listed ({reason})."
    refused = f"{told} Repair that folder or its link."
    file = lora(tmp_path / "ink.safetensors")
    for command in ("list", "list --json"):
        assert run("loras", *command.split()) == (2, [], [told])
    for command in ("remove ink --yes", f"import {file}"):
        assert run("loras", *command.split()) == (2, [], [refused])
    assert run("generate", "x", "--lora", "ink") == (2, [], [refused])
    assert run("models", "list")[0] == 0
    found = [f.fact for f in doctor.examine(Settings(workspace=tmp_path), lambda: None)]
    assert sum("cannot be listed" in fact for fact in found) == 1


def test_painting_goes_on_and_says_it(run: Run, tmp_path: Path) -> None:
    spoil(tmp_path / "models", "circle")
    spoil(tmp_path / "loras", "nowhere")
    code, out, said = run("generate", "a cat", "--steps", "2")
    assert (code, len(out)) == (0, 1)
    assert [line for line in said if "cannot be listed" in line] == [
        f"The LoRAs in {tmp_path / 'loras'} cannot be listed (it is a link that leads nowhere).",
        f"The models in {tmp_path / 'models'} cannot be listed (links in it lead in circles).",
    ]


def test_one_model_whose_folder_is_gone_is_told_and_no_other_hidden(
    run: Run, tmp_path: Path
) -> None:
    spoil(tmp_path / "models" / "mine", "nowhere")
    spoil(tmp_path / "models" / "notes", "file")
    told = f"{tmp_path}/models/mine/model.toml cannot be read (it is a link that leads nowhere)."
    code, _, said = run("models", "list")
    assert (code, said) == (0, [told])
    with pytest.raises(ModelError, match="leads nowhere"):
        Catalog(user_models=tmp_path / "models").find("mine")
    assert ModelStore(Settings(workspace=tmp_path)).unlisted() == ()


@pytest.mark.parametrize("place", ["cache", "cache/gallery.db"])
def test_the_gallery_is_read_without_a_place_for_its_index(
    run: Run, tmp_path: Path, kind: str, place: str
) -> None:
    put(tmp_path / "outputs", FOX, "a red fox")
    if place == "cache/gallery.db" and kind == "file":
        (tmp_path / place).mkdir(parents=True)
    else:
        spoil(tmp_path / place, kind)
    for command in ("list", "search fox"):
        code, out, said = run("gallery", *command.split())
        assert (code, len(out), said) == (0, 1, ["1 picture."])
    assert run("gallery", "rebuild") == (0, ["1 picture in the index."], [])
    assert run("gallery", "export", "--out", str(tmp_path / "x.zip"))[0] == 0
    assert run("gallery", "search", "owl")[2] == ["0 pictures."]


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o500])
def test_a_cache_without_rights_keeps_no_picture_from_being_listed(
    tmp_path: Path, mode: int
) -> None:
    """As somebody who is not the superuser, whom nothing is refused."""
    put(tmp_path / "outputs", FOX, "a red fox")
    (tmp_path / "cache").mkdir()
    script = (
        "import os, sys; from pathlib import Path\n"
        "from app.gallery.index import GalleryIndex\n"
        "import sqlite_utils, app.gallery.metadata\n"
        "root = Path(sys.argv[1]); os.chmod(root / 'cache', int(sys.argv[2]))\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "index = GalleryIndex(root / 'outputs', root / 'cache' / 'gallery.db')\n"
        "index.sync(); print(index.search('fox').total, repr(index.problem()))"
    )
    # Those of pytest too, of which workers have one more.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(mode)],
        capture_output=True,
        text=True,
        check=False,
    )
    (tmp_path / "cache").chmod(0o700)
    assert done.stdout == "1 ''\n", done.stderr


def test_a_day_that_cannot_be_listed_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "outputs", FOX, "a red fox")
    put(tmp_path / "outputs", "2025-01-02/000000-1-000000.png", "an owl")
    scandir = os.scandir

    def refused(path: str | Path) -> object:
        if Path(path).name == "2025-01-02":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    told = f"Pictures may be missing: {tmp_path}/outputs/2025-01-02 cannot be listed"
    for command in ("list", "rebuild"):
        code, _, said = run("gallery", command)
        assert (code, said[0]) == (0, f"{told} (Permission denied).")
    monkeypatch.undo()
    assert run("gallery", "list")[2] == ["2 pictures."]


def test_pictures_on_a_disk_that_is_not_mounted_are_not_forgotten(tmp_path: Path) -> None:
    """Nor the pictures to start from that only they need, nor their small versions."""
    settings, gone = Settings(workspace=tmp_path), list[str]()
    disk = tmp_path / "disk"
    put(disk, FOX, "a red fox")
    settings.outputs.symlink_to(disk)
    index = GalleryIndex(settings.outputs, settings.index, gone.extend)
    index.sync()
    kept = settings.inputs / pictures.keep(disk / FOX, settings.inputs)
    os.utime(kept, (0, 0))
    away = disk.rename(tmp_path / "away")
    janitor = Janitor(settings, index, uploads=settings.uploads)
    janitor.sweep(time.time() + 30 * DAY)
    assert (index.search().total, gone, kept.is_file()) == (1, [], True)
    with pytest.raises(SaveError, match="leads nowhere"):
        index.starts()
    away.rename(disk)
    assert (index.sync(), index.problem()) == (True, "")
    janitor.sweep(time.time() + 30 * DAY)
    assert not kept.exists(), "nothing needs it"


def test_pictures_to_start_from_without_a_folder(tmp_path: Path, kind: str) -> None:
    source = put(tmp_path / "outputs", FOX, "a red fox")
    reason = spoil(tmp_path / "inputs", kind)
    with pytest.raises(SaveError, match=reason):
        pictures.keep(source, tmp_path / "inputs")
    with pytest.raises(RequestError, match=reason):
        pictures.find("0123456789abcdef.png", tmp_path / "inputs")


def test_a_folder_of_prompts_that_is_none_costs_one_line(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    reason = spoil(tmp_path / "prompts", kind)
    cache = PromptCache(tmp_path / "prompts")
    assert cache.find([1, 2], "t5") is None
    cache.keep([1, 2], "t5", torch.zeros(2, 4))
    assert [record.getMessage() for record in caplog.records] == [
        f"features are not kept in {tmp_path / 'prompts'} ({reason})"
    ]


@pytest.mark.parametrize(
    "command",
    [
        *("generate x --model nobody", "models download nobody --yes", "models remove nobody"),
        *("models import /nowhere", "loras import /nowhere", "loras remove nobody --yes"),
        *("train text-to-image nano --data /nowhere", "gallery export --out out.zip"),
    ],
)
def test_whatever_writes_sweeps_the_workspace(run: Run, tmp_path: Path, command: str) -> None:
    """For those who never open the page: also where the command itself then fails."""
    dead = "999999999-abcdef-" + drafts.writer().rsplit("-", 1)[1]
    places = ["outputs/2025-01-01", "models", "loras", "inputs", "cache/prompts", "runs/a"]
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f".new.{dead}-0123abcd.part").touch()
    mine = drafts.beside(tmp_path / "models" / "new")
    mine.touch()
    assert run(*command.split())[0] == 2
    assert [path for path in tmp_path.rglob("*.part")] == [mine]


def test_folders_on_other_disks_are_swept_and_what_is_not_ours_is_not(tmp_path: Path) -> None:
    dead = "999999999-abcdef-" + drafts.writer().rsplit("-", 1)[1]
    draft = f".new.{dead}-0123abcd.part"
    workspace, disk = tmp_path / "workspace", tmp_path / "disk"
    for folder in (workspace, workspace / "mine", workspace / "data", disk / "2025-01-01"):
        folder.mkdir(parents=True)
        (folder / draft).touch()
    (workspace / "outputs").symlink_to(disk)
    (workspace / "models").symlink_to("models")
    sweeping.sweep(Settings(workspace=workspace))
    left = [path.parent.name for path in tmp_path.rglob("*.part")]
    assert sorted(left) == ["data", "mine"]


def test_a_folder_elsewhere_is_swept_before_it_is_painted_into(tmp_path: Path) -> None:
    from app.gallery.pictures import Gallery

    dead = "999999999-abcdef-" + drafts.writer().rsplit("-", 1)[1]
    (tmp_path / f".a.png.{dead}-0123abcd.part").touch()
    Gallery(tmp_path, by_day=False).check_writable()
    assert list(tmp_path.iterdir()) == []
