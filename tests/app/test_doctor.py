"""The doctor finds what is wrong and names nobody."""

from __future__ import annotations

import getpass
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from app import doctor
from app.cli import main
from app.settings import Settings
from pipelines.memory.planning import GIB, Machine
from tests import tiny

GPU = Machine(
    device="cuda",
    name="NVIDIA Test",
    bf16=True,
    vram_total=8 * GIB,
    vram_free=7 * GIB,
    ram_total=16 * GIB,
    ram_free=9 * GIB,
)


def examined(workspace: Path, machine: Machine = GPU) -> dict[str, doctor.Finding]:
    found = doctor.examine(Settings(workspace=workspace), lambda: machine)
    return {finding.name: finding for finding in found}


def test_a_sound_studio(tmp_path: Path) -> None:
    found = examined(tmp_path / "not" / "made" / "yet")
    assert {finding.state for finding in found.values()} <= {"ok", "warning"}
    assert found["device"].fact == (
        "NVIDIA Test, 7.5 of 8.6 GB of the GPU's memory free, 9.7 of 17.2 GB of main memory free,"
        " bf16"
    )
    assert found["nano"].fact.startswith("128x128 needs 0.")
    assert "GB free" in found["workspace"].fact


def test_a_broken_model_is_a_fault_and_a_broken_row_a_warning(tmp_path: Path) -> None:
    tiny.build(tmp_path / "models" / "tiny")
    (tmp_path / "models" / "tiny" / "vae" / "config.json").write_text("[", "utf-8")
    (tmp_path / "models" / "odd").mkdir()
    (tmp_path / "models" / "odd" / "model.toml").write_text("title =", "utf-8")
    found = examined(tmp_path)
    assert found["tiny"].state == "fault"
    assert "config.json cannot be read" in found["tiny"].fact
    assert found["model"].state == "warning"
    assert "odd" in found["model"].fact


def test_a_wish_for_joined_kernels_without_effect_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXART_STUDIO_COMPILE", "1")
    told = examined(tmp_path, GPU)["device"]
    assert told.state == "warning"
    assert "PIXART_STUDIO_COMPILE has no effect" in told.fact
    able = examined(tmp_path, replace(GPU, compiles=True))["device"]
    assert able.state == "ok"
    assert "joined by torch.compile" in able.fact


def test_too_little_memory_and_space_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    small = Machine(device="cpu", name="CPU", bf16=False, ram_total=10**6, ram_free=10**5)
    found = examined(tmp_path, small)
    assert found["workspace"].state == "warning"
    assert found["nano"].state == "warning"
    assert found["nano"].fact.endswith("it may run out of memory")


def test_a_folder_that_cannot_be_written_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert examined(tmp_path)["workspace"].state == "fault"


def test_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "marie")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/marie"))
    told = doctor.redacted("/home/marie/studio and /Users/marie/x\nand C:\\Users\\marie\\y")
    assert "marie" not in told
    assert told.startswith("~/studio")
    assert "\n" not in told


@pytest.mark.parametrize(
    "place",
    [
        "/data/marie/models",
        "/media/Marie/disk: not there",
        "/mnt/backup_of/marie-2026/x",
        "/mnt/marie's disk/x",
        "D:\\marie\\models",
        "/workspace/marie",
    ],
)
@pytest.mark.parametrize("known", ["USER", "USERNAME", "home", "account"])
def test_a_name_anywhere_in_a_path_is_left_out(
    place: str, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("USER", "USERNAME", "LOGNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/root" if known != "home" else "/srv/marie"))
    monkeypatch.setattr(getpass, "getuser", lambda: "marie" if known == "account" else "root")
    if known.startswith("USER"):
        monkeypatch.setenv(known, "marie")
    told = doctor.redacted(f"The vae of model “x” should lie in {place}, which is gone")
    assert "marie" not in told.lower()
    assert told.startswith("The vae of model “x” should lie in ")


def test_words_that_only_hold_a_name_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "mari")
    monkeypatch.setenv("USERNAME", "ed")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/mari"))
    text = "mari: /data/marigold/ed/primarily"
    assert doctor.redacted(text) == text


def test_nobody_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a number that has no account and no home."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(Path, "home", homeless)
    for variable in ("USER", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    assert doctor.redacted("/data/x") == "/data/x"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "--workspace", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows][:3] == ["studio", "system", "packages"]
    tiny.build(tmp_path / "models" / "tiny")
    (tmp_path / "models" / "tiny" / "vae" / "config.json").unlink()
    capsys.readouterr()
    assert main.main(["doctor", "--workspace", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "X tiny: " in told.out
    assert len(told.err.strip().splitlines()) == 1
