"""The recipe inside a picture, ours and the text that other programs read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from app.gallery import metadata
from pipelines.catalog import Catalog
from pipelines.errors import RecipeError, StudioError
from pipelines.picture_record import PictureRecord
from pipelines.request import GenerationRequest, complete

CATALOG = Catalog()
# The pattern by which the widespread readers of infotext find the settings.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def request(**values: object) -> GenerationRequest:
    return complete({"prompt": "a red apple", "seed": 42, **values}, CATALOG)


def chunks(made: GenerationRequest, **facts: Any) -> PngImagePlugin.PngInfo:
    return metadata.chunks(PictureRecord(request=made, **facts))


def save(file: Path, info: PngImagePlugin.PngInfo) -> Path:
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    return file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    prompt=st.text(min_size=1, max_size=200).map(lambda t: "x" + t),
    negative=st.text(max_size=80),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_request_survives_the_file(
    tmp_path: Path, prompt: str, negative: str, seed: int
) -> None:
    made = request(prompt=prompt, negative=negative, seed=seed, guidance=3.3)
    recipe = metadata.read(save(tmp_path / "a.png", chunks(made, weights="a1b2c3")))
    assert (recipe.request, recipe.weights) == (made, "a1b2c3")


def test_prompts_that_look_like_settings_survive(tmp_path: Path) -> None:
    made = request(prompt="a cat\nNegative prompt: x\nSteps: 1, Sampler: a, Seed: 2")
    assert metadata.read(save(tmp_path / "a.png", chunks(made))).request == made


def test_infotext_is_read_by_the_common_pattern() -> None:
    made = request(prompt='a "quoted", cat', negative="dog", style="Cinematic", sampler="euler")
    lines = metadata.infotext(made).split("\n")
    assert lines[0].startswith('film still of a "quoted", cat')
    assert lines[1].startswith("Negative prompt: dog, ")
    pairs = dict(PAIR.findall(lines[-1]))
    assert len(pairs) >= 3
    assert pairs["Steps"] == "25"
    assert pairs["Sampler"] == "Euler"
    assert pairs["CFG scale"] == "4.5"
    assert pairs["Seed"] == "42"
    assert pairs["Size"] == "128x128"
    assert pairs["Model"] == "nano"


def test_other_programs_find_the_text(tmp_path: Path) -> None:
    made = request(prompt="りんご 🍎")
    with Image.open(save(tmp_path / "a.png", chunks(made))) as picture:
        assert picture.info["parameters"] == metadata.infotext(made)


def hostile(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(metadata.CHUNK, text)
    return info


GOOD: dict[str, Any] = {"version": 1, "request": request().model_dump(mode="json")}
BAD = {
    "not json": "hello",
    "deep": "[" * 50_000,
    "list": "[1]",
    "no request": '{"version": 1}',
    "request is text": '{"version": 1, "request": "x"}',
    "nan": json.dumps({**GOOD, "request": {**GOOD["request"], "guidance": float("nan")}}),
    "huge number": '{"version": 1e999, "request": {}}',
    "newer": json.dumps({**GOOD, "version": 2}),
    "huge steps": json.dumps({**GOOD, "request": {**GOOD["request"], "steps": 10**9}}),
    "path as start": json.dumps({**GOOD, "request": {**GOOD["request"], "init": "/etc/passwd"}}),
    "unknown key": json.dumps({**GOOD, "request": {**GOOD["request"], "evil": 1}}),
    "too long": json.dumps({**GOOD, "more": "x" * 300_000}),
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_recipes_are_a_sentence(case: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        metadata.read(save(tmp_path / "a.png", hostile(BAD[case])))
    assert "\n" not in str(caught.value)


def test_files_without_a_recipe_are_a_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text(metadata.CHUNK, "x" * 5_000_000, zip=True)
    save(tmp_path / "bomb.png", bomb)
    names = ("plain.png", "photo.jpg", "text.png", "empty.png", "bomb.png", "missing.png", ".")
    for name in names:
        with pytest.raises(RecipeError):
            metadata.read(tmp_path / name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(at=st.integers(0, 3000), value=st.integers(0, 255), end=st.integers(0, 3000))
def test_damaged_files_never_crash(tmp_path: Path, at: int, value: int, end: int) -> None:
    file = save(tmp_path / "a.png", chunks(request()))
    data = bytearray(file.read_bytes())
    data[at % len(data)] = value
    file.write_bytes(bytes(data[: max(9, end)]))
    try:
        metadata.read(file)
    except StudioError as error:
        assert "\n" not in str(error)


def test_the_notes_of_a_picture_are_read_and_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    read = metadata.read(save(file, chunks(request(), notes=("Memory ran out.",), seconds=3.5)))
    # How long it took is known to its painter alone.
    assert read == PictureRecord(request=request(), notes=("Memory ran out.",))
    for notes in ("x", 7, None, {"a": 1}):
        assert metadata.read(save(file, hostile(json.dumps({**GOOD, "notes": notes})))).notes == ()
    long = ["x\x1b" * 500] * 20
    told = metadata.read(save(file, hostile(json.dumps({**GOOD, "notes": long})))).notes
    assert len(told) == 20
    assert all(len(note) < 1000 and "\x1b" not in note for note in told)


LORAS = (("ink", "0a" * 32), ("gold", "1b" * 32))


def test_the_loras_are_named_by_their_content(tmp_path: Path) -> None:
    made = request()
    info = chunks(made, lora_hashes=LORAS)
    assert metadata.read(save(tmp_path / "a.png", info)).lora_hashes == LORAS
    plain = save(tmp_path / "b.png", chunks(made))
    assert metadata.read(plain).lora_hashes == ()
    with Image.open(plain) as picture:
        assert "loras" not in json.loads(picture.info[metadata.CHUNK]), "as earlier versions wrote"


@pytest.mark.parametrize(
    "told",
    [
        ["ink"],
        7,
        {"../ink": "0a" * 32},
        {"ink": "0A" * 32},
        {"ink": "0a" * 31},
        {"ink": None},
        {"ink": ["0a" * 32]},
        {f"a{n}": "0a" * 32 for n in range(9)},
    ],
)
def test_hashes_that_are_none_are_unknown(told: object, tmp_path: Path) -> None:
    info = hostile(json.dumps({**GOOD, "loras": told}))
    assert metadata.read(save(tmp_path / "a.png", info)).lora_hashes == ()
