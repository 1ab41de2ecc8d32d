"""Weights from elsewhere on the command line: converted, imported, painted."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.cli import main
from pipelines.catalog import ROOT
from tests import tiny

NANO = ROOT / "assets" / "models" / "nano"
pytestmark = pytest.mark.usefixtures("workspace")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    handler = signal.getsignal(signal.SIGINT)
    code = main.main(list(arguments))
    signal.signal(signal.SIGINT, handler)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_checkpoint_paints_what_the_model_it_was_made_of_paints(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """nano -> .pth -> `models import` -> the same picture."""
    file = tmp_path / "mine.pth"
    code, out, err = run(capsys, "convert", str(NANO), str(file), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told == {
        "path": str(file),
        "layout": "original",
        "family": "a PixArt of 6 blocks, 384 wide, for 128 px",
        "weights": "raw",
        "interpolation_scale": 1.0,
        "micro_conditions": False,
        "null_caption": "drawn",
    }
    words = ["models", "import", str(file), "--vae", "nano", "--text", str(NANO)]
    words += ["--tokens", "32", "--title", "Mine", "--json"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    told = json.loads(out)
    assert (told["id"], told["tokens"], told["size"]) == ("mine", 32, "128x128")
    assert told["places"]["vae"] == str(NANO / "vae")
    pictures = []
    for model in ("nano", "mine"):
        words = ["generate", "a red apple", "--model", model, "--seed", "3", "--steps", "2"]
        code, out, err = run(capsys, *words)
        assert code == 0, err
        with Image.open(out.strip()) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    assert pictures[0].std() > 5
    assert np.array_equal(pictures[0], pictures[1])


def test_convert_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.build(tmp_path / "tiny")
    source, target = str(tmp_path / "tiny"), str(tmp_path / "a.pth")
    code, out, err = run(capsys, "convert", source, target, "--precision", "bf16")
    assert (code, out) == (0, f"{target}\n")
    assert "a PixArt of 2 blocks" in err
    assert "one was drawn" in err
    state = torch.load(target, weights_only=True)["state_dict"]
    assert state["t_block.1.weight"].dtype == torch.bfloat16
    code, out, err = run(capsys, "convert", source, target, "--overwrite")
    assert code == 0
    state = torch.load(target, weights_only=True)["state_dict"]
    assert state["t_block.1.weight"].dtype == torch.float32


BAD = [
    (["convert", "/nowhere.pth", "x"], "no file or folder /nowhere.pth"),
    (["convert", str(NANO), "x.safetensors"], "neither a .pth nor a folder"),
    (["convert", str(NANO), str(NANO)], "what would be read"),
    (["convert", str(NANO), __file__], "exists already|more than|is a file"),
    (["convert", str(NANO), "x.pth", "--weights", "emma"], "Did you mean “ema”"),
    (["convert", str(NANO), "x.pth", "--weights", "ema"], "no averaged weights"),
    (["convert", str(NANO), "x.pth", "--precision", "int8"], "precision"),
    (["convert", str(NANO), "x.pth", "--interpolation-scale", "-1"], "interpolation scale"),
    (["convert", str(NANO)], "launch.py convert --help"),
    (["convert", __file__, "x"], "not a sound safetensors file"),
    (["convert", "~nobody-here/x.pth", "x"], "home folder"),
    (["models", "import", "/nowhere"], "no file or folder /nowhere"),
    (["models", "import", str(NANO), "--id", "nano"], "called “nano” already"),
    (["models", "import", str(NANO), "--id", "n", "--distilled", "lcn"], "Did you mean “lcm”"),
    (["models", "import", str(NANO / "vae"), "--id", "n"], "is a “AutoencoderKL”|This is a VAE"),
    (["models", "import", str(NANO / "transformer"), "--id", "n"], "has no vae"),
    (["models", "import"], "launch.py models --help|launch.py import --help"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda v: v[-1] if v else "")
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    words: str,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert any(word in err for word in words.split("|")), err
    assert not (workspace / "models" / "n").exists()
    assert [p for p in tmp_path.iterdir() if p != workspace] == []
