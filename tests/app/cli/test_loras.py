"""The verb `loras`, and painting with one on the command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from app.cli.main import main
from lora_manager import files
from lora_manager.library import LoraLibrary
from pipelines import lora_fit
from pipelines.catalog import Catalog
from tests import tiny
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


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """The workspace with "ink" and "gold" in it."""
    folder = tmp_path / "workspace" / "loras"
    for seed, name in enumerate(("ink", "gold")):
        lora(folder / f"{name}.safetensors", seed)
    return tmp_path / "workspace"


def test_export(loras: Run, both: Path, tmp_path: Path) -> None:
    target = tmp_path / "kohya.safetensors"
    code, out, said = loras("export", "ink", "--form", "kohya", "--out", str(target))
    assert (code, out) == (0, [str(target)])
    assert said == ["kohya: read by ComfyUI, OneTrainer."]
    assert len(files.read(target).pairs) == 27
    code, out, said = loras("export", "ink", "--form", "kohya", "--out", str(target))
    assert (code, out, said) == (2, [], [f"{target} exists. Take another name."])
    again = ("export", "gold", "--form", "kohya", "--out", str(target), "--overwrite", "--json")
    code, out, _ = loras(*again)
    assert (code, json.loads(out[0])["form"]) == (0, "kohya")
    folder = tmp_path / "peft"
    assert loras("export", "ink", "--form", "peft", "--out", str(folder))[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    # A folder that is there gets a file of the name of the LoRA.
    assert loras("export", "ink", "--out", str(tmp_path))[1] == [str(tmp_path / "ink.safetensors")]


def test_merge_resize_and_compare(loras: Run, both: Path, tmp_path: Path) -> None:
    code, out, said = loras("merge", "ink:0.5", "gold:-1", "--name", "both")
    assert (code, said) == (0, [])
    assert out == ["“both” is here, with the rank 8; nothing is lost."]
    code, out, _ = loras("resize", "both", "--rank", "4", "--name", "both4", "--json")
    lost = json.loads(out[0])
    assert (code, lost["name"], lost["rank"]) == (0, "both4", 4)
    assert 0.1 < lost["relative_error"] < 0.7
    code, out, _ = loras("compare", "both", "both4", "--json")
    found = json.loads(out[0])
    assert found["total"]["difference"] == pytest.approx(lost["relative_error"], abs=1e-6)
    assert (len(found["layers"]), found["only_first"], found["only_second"]) == (27, [], [])
    code, out, _ = loras("compare", "ink", str(both / "loras" / "ink.safetensors"))
    assert (code, len(out)) == (0, 29)
    assert "0.00 %" in out[-1]
    (card,) = [row for row in map(json.loads, loras("list", "--json")[1]) if row["name"] == "both4"]
    assert card["title"] == "both"


def test_a_merge_to_a_rank_says_what_is_lost(loras: Run, both: Path) -> None:
    code, out, _ = loras("merge", "ink", "gold", "--name", "both", "--rank", "4")
    assert code == 0
    assert "with the rank 4" in out[0]
    assert "% of the change is lost" in out[0]
    code, out, _ = loras("merge", "ink", "gold", "--name", "whole", "--rank", "4096")
    assert out == ["“whole” is here, with the rank 8; nothing is lost."]


def put(both: Path, name: str, seed: int, alpha: float = 3.0, **said: str) -> None:
    """A LoRA of the library that says something about itself."""
    folder = both / "source"
    folder.mkdir(exist_ok=True)
    found = files.read(made.f1(made.reference(seed, alpha=alpha), folder))
    LoraLibrary(both / "loras").add(name, found, said)


def test_a_merged_lora_says_what_its_parts_said(loras: Run, both: Path) -> None:
    put(both, "one", 3, base="sigma-1024", trigger="a dog", licence="CC0")
    put(both, "two", 4, base="sigma-512", trigger="in ink", licence="CC0")
    put(both, "off", 5, base="alpha-512", trigger="never", licence="MIT")
    assert loras("merge", "one", "two:0.5", "off:0", "ink", "--name", "both")[0] == 0
    (row,) = [r for r in map(json.loads, loras("list", "--json")[1]) if r["name"] == "both"]
    assert (row["trigger"], row["licence"]) == ("a dog, in ink", "CC0")
    # So a model of the other family still refuses it by name.
    assert row["base"] == "sigma-1024 and sigma-512"
    card = LoraLibrary(both / "loras").find("both")
    assert lora_fit.family_of(card.base, Catalog()) == "sigma"
    assert card.notes == ("It was merged of one, two:0.5, ink.",)


def test_loras_of_two_families_are_not_merged(loras: Run, both: Path) -> None:
    put(both, "one", 3, base="sigma-1024")
    put(both, "two", 4, base="alpha-1024")
    code, out, said = loras("merge", "one", "two", "--name", "both")
    assert (code, out) == (2, [])
    assert said[0].startswith("These LoRAs were not made for one model: “one” for PixArt-Σ")
    assert not (both / "loras" / "both.safetensors").exists()


@pytest.mark.parametrize("verb", ["merge", "bake", "generate"])
def test_what_changes_nothing_is_never_used(
    verb: str, loras: Run, both: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small, both / "models" / "tiny")
    put(both, "off", 5, alpha=0.0)
    if verb == "generate":
        paint = ("x", "--model", "tiny", "--steps", "2", "--size", "64x64", "--lora", "off")
        code = main(["generate", *paint, "--workspace", str(both)])
        said = capsys.readouterr().err.splitlines()
    else:
        what = {"merge": ("--name", "x"), "bake": ("--id", "x")}[verb]
        code, _, said = loras(verb, *(("tiny",) * (verb == "bake")), "ink", "off", *what)
    assert code == 2
    assert (
        "The LoRA “off” changes nothing: its numbers, or its strength (alpha), are all 0."
        in (said[-1])
    )
    assert [path.name for path in (both / "models").iterdir()] == ["tiny"]
    assert not list((both / "outputs").rglob("*.png"))


@pytest.mark.parametrize("verb", ["merge", "resize", "bake", "export"])
def test_ctrl_c_in_the_middle_leaves_nothing(
    verb: str, loras: Run, both: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, both / "models" / "tiny")
    words = {
        "merge": ("ink", "gold", "--name", "x", "--rank", "2"),
        "resize": ("ink", "--rank", "2", "--name", "x"),
        "bake": ("tiny", "ink", "--id", "x"),
        "export": ("ink", "--form", "peft", "--out", str(both.parent / "x")),
    }[verb]
    before = sorted(path for path in both.parent.rglob("*") if path.is_file())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    # In the middle of writing, where a draft lies there.
    monkeypatch.setattr(os, "fsync", interrupted)
    assert loras(verb, *words)[0] == 130
    assert sorted(path for path in both.parent.rglob("*") if path.is_file()) == before
    monkeypatch.undo()
    assert loras(verb, *words)[0] == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("built") / "tiny")


def test_bake(loras: Run, both: Path, small: Path) -> None:
    shutil.copytree(small, both / "models" / "tiny")
    code, out, said = loras("bake", "tiny", "ink:0.5", "gold", "--id", "inked")
    assert (code, out) == (0, ["inked"])
    assert said == [
        "Tiny with ink:0.5, gold in its weights. Paint with: generate PROMPT --model inked"
    ]
    code, out, said = loras("bake", "tiny", "ink", "--id", "inked")
    assert (code, out) == (2, [])
    assert said == ["There is a model called “inked” already. Give another name with --id."]


@pytest.mark.parametrize("verb", ["merge", "bake"])
@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_weights_far_from_1_are_asked_about_again(
    verb: str,
    answer: str,
    loras: Run,
    both: Path,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(small, both / "models" / "tiny")
    what = {"merge": ("merge", "--name", "far"), "bake": ("bake", "tiny", "--id", "far")}[verb]
    asked = (*what, "ink:2", "gold:-2.1")
    question = "gold:-2.1 is beyond -2 to 2, where most pictures fall apart."
    code, out, said = loras(*asked)
    assert (code, out) == (2, [])
    assert said == [f"{question} Add --yes if that is what you want."]
    keyboard = StringIO(f"{answer}\n")
    keyboard.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", keyboard)
    code, out, said = loras(*asked)
    assert code == 0
    assert said[0].startswith(f"{question} Go on? [y/N]")
    assert bool(out) == (answer == "y")
    monkeypatch.undo()
    if not out:
        assert loras(*asked, "--yes")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "lost", "--out", "x.safetensors"], "no LoRA called “lost”"),
        (["export", "ink", "--form", "onnx", "--out", "x.safetensors"], "no form of LoRA files"),
        (["export", "ink", "--out", "no/x.safetensors"], "There is no folder no."),
        (["export", "ink", "--out", "x.pt"], "does not end with .safetensors"),
        (["export", "broken", "--out", "x.safetensors"], "“broken” cannot be used"),
        (["merge", "ink", "gold", "--name", "Ink"], "There is a LoRA called “ink”"),
        (["merge", "ink", "gold", "--name", "../x"], "no name of a LoRA"),
        (["merge", "ink", "lost", "--name", "x"], "no LoRA called “lost”"),
        (["merge", "ink", "ink", "--name", "x"], "given twice"),
        (["merge", "ink:9", "--name", "x"], "from -4 to 4"),
        (["merge", "ink:0", "--name", "x"], "would change nothing"),
        (["merge", "ink", "gold", "--name", "x", "--rank", "0"], "cannot have the rank 0"),
        (["merge", "ink", "gold", "--name", "x", "--rank", "99999"], "from 1 to 4096"),
        (["merge", "ink", "wide", "--name", "x"], "made for models of other sizes"),
        (["merge", ",", "--name", "x"], "No LoRA is named"),
        (["resize", "ink", "--rank", "4", "--name", "x"], "it would not become smaller"),
        (["resize", "ink", "--rank", "2", "--name", "gold"], "There is a LoRA called “gold”"),
        (["compare", "ink", "inc"], "Did you mean “ink”?"),
        (["compare", "ink", "no/such.safetensors"], "not a file or folder of a LoRA"),
        (["bake", "lost", "ink", "--id", "x"], "no model called “lost”"),
        (["bake", "nano", "ink", "--id", "x"], "“ink” was made for layers that are 48 wide"),
        (["bake", "nano", "ink", "--id", "../x"], "not possible as a model's id"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_and_leaves_nothing(
    loras: Run,
    both: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    lora(both / "loras" / "wide.safetensors", wide=96)
    (both / "loras" / "broken.safetensors").write_bytes(b"x" * 100)
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    code, out, lines = loras(*arguments)
    assert (code, out) == (2, [])
    assert len(lines) == 1
    assert said in lines[0]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
