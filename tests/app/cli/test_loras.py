"""The verb `loras`, and painting with one on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.main import main
from tests.lora_manager import made
from tests.small_loras import lora

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def loras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        """(exit code, lines on stdout, lines on stderr)"""
        code = main(["loras", *arguments, "--workspace", str(tmp_path / "workspace")])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()

    return run


def test_import_list_and_remove(loras: Run, tmp_path: Path) -> None:
    assert loras("list")[1] == [
        "There are no LoRAs yet. Bring one in with: launch.py loras import FILE"
    ]
    assert loras("list", "--json")[1] == []
    file = lora(tmp_path / "My ink.safetensors", seed=1)
    code, out, said = loras("import", str(file), "--title", "Ink", "--trigger", "in ink")
    assert (code, said) == (0, [])
    assert out == ["“My-ink” is here: launch.py generate PROMPT --lora My-ink"]
    code, out, _ = loras("list")
    assert out == [
        "My-ink                   rank 4, 27 layers, " + out[0].split(", ")[2] + ", say “in ink”"
    ]
    (row,) = map(json.loads, loras("list", "--json")[1])
    assert (row["name"], row["title"], row["trigger"], row["width"]) == (
        "My-ink",
        "Ink",
        "in ink",
        48,
    )
    assert Path(row["path"]).is_file()
    code, out, said = loras("remove", "My-ink")
    assert (code, out) == (2, [])
    assert "--yes" in said[0]
    code, out, _ = loras("remove", "My-ink", "--yes", "--json")
    assert json.loads(out[0])["name"] == "My-ink"
    assert not Path(row["path"]).exists()


def test_a_folder_of_peft_and_a_given_name(loras: Run, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    made.f3(made.reference(), folder)
    code, out, _ = loras("import", str(folder), "--name", "mine", "--json")
    assert code == 0
    assert json.loads(out[0])["name"] == "mine"
    code, out, said = loras("import", str(folder), "--name", "Mine")
    assert (code, out) == (2, [])
    assert said == ["There is a LoRA called “mine”. Take another name."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nothing.safetensors"], "nothing.safetensors"),
        (["remove", "lost", "--yes"], "no LoRA called “lost”"),
        (["import", "text.safetensors"], "text.safetensors"),
        (["import", "text.safetensors", "--name", "../x"], "no name of a LoRA"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    loras: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_bytes(b"no tensors at all")
    code, out, lines = loras(*arguments)
    assert (code, out) == (2, [])
    assert len(lines) == 1
    assert said in lines[0]


def test_a_damaged_one_is_said_and_keeps_nobody_out(loras: Run, tmp_path: Path) -> None:
    folder = tmp_path / "workspace" / "loras"
    folder.mkdir(parents=True)
    lora(folder / "ink.safetensors", seed=1)
    (folder / "broken.safetensors").write_bytes(b"x" * 100)
    code, out, said = loras("list")
    assert (code, len(out), len(said)) == (0, 1, 1)
    assert "The LoRA “broken” cannot be used" in said[0]


def test_a_damaged_one_can_be_removed(loras: Run, tmp_path: Path) -> None:
    folder = tmp_path / "workspace" / "loras"
    folder.mkdir(parents=True)
    (folder / "broken.safetensors").write_bytes(b"x" * 100)
    (folder / "My style (v2).safetensors").write_bytes(b"x" * 100)
    _, _, said = loras("list")
    assert "“My style (v2).safetensors”" in said[1]
    code, _, _ = loras("remove", "broken", "--yes")
    assert code == 0
    assert not (folder / "broken.safetensors").exists()
