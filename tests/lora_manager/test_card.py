"""Names and weights as people type them, and what a file's header says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lora_manager import card
from lora_manager.card import LoraUse
from lora_manager.errors import LoraError
from pipelines.catalog import ROOT
from tests.lora_manager import made


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        ("", ()),
        (" ,\n, ", ()),
        ("dog", (LoraUse(name="dog"),)),
        ("dog:0.8", (LoraUse(name="dog", weight=0.8),)),
        ("a:0.8, b:-.5", (LoraUse(name="a", weight=0.8), LoraUse(name="b", weight=-0.5))),
        ("a\nb : 1e-1 ,", (LoraUse(name="a"), LoraUse(name="b", weight=0.1))),
        ("a:4,b:-4", (LoraUse(name="a", weight=4.0), LoraUse(name="b", weight=-4.0))),
    ],
)
def test_uses_are_read(text: str, uses: tuple[LoraUse, ...]) -> None:
    assert card.parse(text) == uses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("../dog", "“../dog” is no name of a LoRA"),
        (":1", "is no name"),
        (".dog", "is no name"),
        ("dög", "is no name"),
        ("a" * 81, "is no name"),
        ("a b", "is no name"),
        ("dog:", "“”, which is no number"),
        ("dog:x", "“x”, which is no number"),
        ("dog:1:2", "“1:2”, which is no number"),
        ("dog:nan", "which is no number"),
        ("dog:inf", "which is no number"),
        ("dog:1_0", "which is no number"),
        ("dog:٣", "which is no number"),
        ("dog:1e999", "“dog” is inf"),
        ("dog:4.01", "“dog” is 4.01. Take a number from -4 to 4"),
        ("dog:-5", "“dog” is -5"),
        ("dog, ink, dog:2", "“dog” is given twice"),
        ("a,b,c,d,e,f,g,h,i", "These are 9 LoRAs at once. At most 8"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(LoraError, match=words.replace(".", r"\.")) as caught:
        card.parse(text)
    assert "\n" not in str(caught.value)


def test_a_use_holds_its_limits_by_itself() -> None:
    for weight in (math.nan, math.inf, -4.1):
        with pytest.raises(LoraError, match="weight of the LoRA “dog”"):
            LoraUse(name="dog", weight=weight)
    with pytest.raises(LoraError, match="no name"):
        LoraUse(name="a/b")


NAMES = st.from_regex(card.NAME, fullmatch=True)
USES = st.lists(
    st.builds(LoraUse, name=NAMES, weight=st.floats(card.MIN_WEIGHT, card.MAX_WEIGHT)),
    max_size=card.MAX_USES,
    unique_by=lambda use: use.name,
)


@given(USES)
def test_what_is_written_is_read_again(uses: list[LoraUse]) -> None:
    assert card.parse(card.written(uses)) == tuple(uses)


@given(st.text())
def test_any_text_is_uses_or_one_error(text: str) -> None:
    try:
        assert len(card.parse(text)) <= card.MAX_USES
    except LoraError as error:
        assert "\n" not in str(error)


def test_uses_are_written_short() -> None:
    uses = [LoraUse(name="a", weight=0.8), LoraUse(name="b"), LoraUse(name="c", weight=-2.0)]
    assert card.written(uses) == "a:0.8, b, c:-2"
    assert card.written([]) == ""


@pytest.mark.parametrize("family", [name for name in made.FAMILIES if name != "F3 bin"])
def test_a_card_counts_what_a_file_changes(family: str, tmp_path: Path) -> None:
    source = made.FAMILIES[family](made.reference(), tmp_path)
    file = source / "adapter_model.safetensors" if source.is_dir() else source
    found = card.read(file, "dog")
    fused = 3 if family in ("F6", "F7", "F8", "LyCORIS, original") else 1
    assert (found.name, found.file, found.size) == ("dog", file, file.stat().st_size)
    assert (found.rank, found.modules, found.width) == (made.RANK * fused, 27, made.WIDE)
    assert (found.title, found.base, found.trigger, found.licence) == ("", "", "", "")


def test_a_card_tells_the_width_of_other_layers_where_no_attention_is_changed(
    tmp_path: Path,
) -> None:
    reference = made.reference()
    for path, width in (("transformer_blocks.1.ff.net.0.proj", 48), ("proj_out", 0)):
        file = made.f2({path: reference[path]}, tmp_path)
        assert card.read(file, "x").width == width


def test_a_card_says_what_the_metadata_says(tmp_path: Path) -> None:
    tensors = load_file(made.f2(made.reference(), tmp_path))
    metadata = {
        "modelspec.title": "  My\n\x1b[31mdog\u202e ",
        "modelspec.trigger_phrase": "sks dog" * 100,
        "modelspec.license": "Apache-2.0",
        "modelspec.architecture": "pixart",
        "ss_base_model_version": "alpha-512",
        card.NOTES: json.dumps(["It was\nguessed.", 7]),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    found = card.read(tmp_path / "x.safetensors", "x")
    assert found.title == "My [31mdog"
    assert found.trigger.startswith("sks dogsks")
    assert len(found.trigger) == 200
    assert (found.licence, found.base) == ("Apache-2.0", "alpha-512")
    assert found.notes == ("It was guessed.",)
    for notes in ("[", "7", "[" * 100_000):
        save_file(tensors, tmp_path / "x.safetensors", {card.NOTES: notes})
        assert card.read(tmp_path / "x.safetensors", "x").notes == ()


def test_light_modules_load_no_torch() -> None:
    light = ["errors", "headers", "targets", "layouts", "strength", "sources", "card", "library"]
    script = (
        "import importlib, sys\n"
        f"for name in {light!r}: importlib.import_module('lora_manager.' + name)\n"
        "print([h for h in ('torch', 'safetensors', 'numpy', 'diffusers') if h in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
