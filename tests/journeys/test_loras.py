"""Painting with LoRAs on the command line, again from the recipe, and what it says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from app.gallery import metadata
from tests.lora_manager import made
from tests.small_loras import NANO
from tests.warm import launch


def lora(file: Path, seed: int) -> Path:
    """A LoRA for the model that ships: of the two blocks alone, whose layers are all as wide."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return made.f1(made.reference(seed, outer=False, wide=NANO), file.parent).replace(file)


def run(*arguments: str) -> tuple[int, list[str], list[str]]:
    done = launch("generate", *arguments)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def test_a_picture_is_painted_again_or_it_is_said_why_not(workspace: Path) -> None:
    ink, gold, black = (workspace / "loras" / f"{n}.safetensors" for n in ("ink", "gold", "black"))
    for seed, file in enumerate((ink, gold)):
        lora(file, seed)
    code, out, told = run("a cat", "--steps", "2", "--seed", "1", "--lora", "ink:0.05,gold:0.05")
    assert (code, told) == (0, [])
    first = out[0]
    assert dict(metadata.read(Path(first)).lora_hashes) == {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in (ink, gold)
    }
    again = run("--like", first)
    assert (again[0], again[2]) == (0, [])
    assert np.array_equal(pixels(again[1][0]), pixels(first))
    # Another file under the name: painted, and said.
    before = gold.read_bytes()
    lora(gold, seed=7)
    code, out, told = run("--like", first)
    assert (code, len(told)) == (0, 1)
    assert "The LoRA “gold” is another one than when that picture was painted" in told[0]
    assert not np.array_equal(pixels(out[0]), pixels(first))
    gold.write_bytes(before)
    # The same file under another name: that name is said, and nothing is painted.
    ink.rename(black)
    code, out, told = run("--like", first)
    assert (code, out, len(told)) == (2, [], 1)
    assert "of that picture is not here any more" in told[0]
    assert "It is called “black” now: add --lora “black:0.05, gold:0.05”." in told[0]
    code, out, told = run("--like", first, "--lora", "black:0.05, gold:0.05")
    assert (code, told) == (0, [])
    assert np.array_equal(pixels(out[0]), pixels(first))
    # Gone for good.
    black.unlink()
    code, out, told = run("--like", first)
    assert (code, out) == (2, [])
    assert told[0].endswith("choose others with --lora; --lora “” paints without.")
    assert run("--like", first, "--lora", "")[0] == 0
    # Weights that are asked about twice.
    code, out, told = run("a cat", "--steps", "2", "--lora", "gold:3")
    assert (code, out) == (2, [])
    assert "gold:3 is beyond -2 to 2" in told[0]
    assert run("a cat", "--steps", "2", "--lora", "gold:-2.5", "--yes")[0] == 0
