"""Weights that mean harm or are of another kind, the rest: metadata, LoRAs, files in the way.

Pickles, headers and cut files: test_convert.py. Configurations: test_loader.py, test_importing.py.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.models.importing import import_model
from app.models.rows import ImportOptions
from pipelines.catalog import Catalog
from pipelines.engine import Engine
from pipelines.errors import ModelError, SaveError, StudioError
from pipelines.models import convert, loader, weights
from pipelines.models.convert import WEIGHTS
from pipelines.models.sources import ReadOptions, opened
from tests import original, tiny
from tests.pipelines.models.test_convert import Runs, bare_pickle

SMALL: dict[str, Any] = {"width": 48, "layers": 2, "captions": 32}
WISH = ReadOptions(head_dim=24)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("whole") / "tiny")


def one_sentence(caught: pytest.ExceptionInfo[StudioError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# --- W3: metadata is never shown, followed or kept --------------------------------------------

EVIL = "<script>alert(1)</script>"
METADATA: dict[str, dict[str, str]] = {
    "markup": {"modelspec.title": EVIL, "ss_output_name": EVIL, "description": EVIL},
    "pages": {"modelspec.thumbnail": "data:text/html;base64,PHNjcmlwdD4=" + EVIL},
    "drawing": {"modelspec.thumbnail": f"data:image/svg+xml,<svg onload=alert(1)>{EVIL}</svg>"},
    "depth": {"ss_tag_frequency": "[" * 200_000 + EVIL},
    "addresses": {"modelspec.license": f"http://169.254.169.254/{EVIL}"},
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_reaches_nothing(kind: str, in_place: bool, whole: Path, tmp_path: Path) -> None:
    source = shutil.copytree(whole, tmp_path / "source")
    file = source / "transformer" / WEIGHTS
    save_file(load_file(file), file, metadata=METADATA[kind])
    (tmp_path / "models").mkdir()
    spec = import_model(source, tmp_path / "models", ImportOptions(id="mine", in_place=in_place))
    assert EVIL not in spec.model_dump_json()
    assert EVIL not in (tmp_path / "models" / "mine" / "model.toml").read_text("utf-8")
    assert loader.part(spec, "transformer", torch.float32)
    if not in_place:
        with safe_open(spec.part("transformer") / WEIGHTS, framework="pt") as made:
            assert made.metadata() == {"format": "pt"}


def with_header(folder: Path, header: bytes) -> Path:
    file = folder / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    return file


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (b'{"modelspec.thumbnail":"data:image/png;base64,' + b"A" * 50_000_000 + b'"}', "too long"),
        (b'{"ss_tag_frequency":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", "not JSON"),
        (b'{"ss_tag_frequency":{"cats":{"a cat":3}}}', "metadata is not text"),
        (b'["modelspec.title"]', "metadata is not text"),
        (b"null", "metadata is not text"),
    ],
    ids=["50 MB", "deep", "table", "list", "null"],
)
def test_metadata_that_is_none_is_one_sentence(metadata: bytes, words: str, tmp_path: Path) -> None:
    file = with_header(tmp_path, b'{"__metadata__":' + metadata + b"}")
    with pytest.raises(ModelError, match=words) as caught:
        convert.convert(file, tmp_path / "made", WISH)
    one_sentence(caught)
    assert not (tmp_path / "made").exists()


# --- W4: LoRAs, of whatever base and form, are named and not applied to anything --------------


def pair(name: str, rank: int = 4, wide: int = 48, high: int = 48) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": torch.randn(rank, wide),
        f"{name}.lora_up.weight": torch.randn(high, rank),
    }


def peft(name: str, rank: int = 4) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": torch.randn(rank, 48), f"{name}.lora_B.weight": torch.ones(48)}


SD = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PIXART = "transformer.transformer_blocks.0.attn1.to_q"
LORAS: dict[str, dict[str, Tensor]] = {
    "Stable Diffusion 1.5": pair(SD, wide=320, high=320) | pair("lora_te_text_model_q_proj"),
    "SDXL": pair("lora_unet_input_blocks_4_1_to_q", wide=640) | pair("lora_te2_text_model_q_proj"),
    "FLUX": peft("transformer.single_transformer_blocks.0.attn.to_q"),
    "FLUX of kohya": pair("lora_unet_double_blocks_0_img_attn_qkv"),
    "PixArt, diffusers": peft(PIXART),
    "PixArt, PEFT": peft("base_model.model.transformer_blocks.0.attn1.to_q"),
    "PixArt of the original script": peft("unet.base_model.model.transformer_blocks.0.attn1.to_q"),
    "PixArt of OneTrainer": pair("lora_transformer_transformer_blocks_0_attn1_to_q"),
    "PixArt of ComfyUI": peft("diffusion_model.blocks.0.attn.qkv"),
    "LoKr": {"lycoris_blocks_0_attn_qkv.lokr_w1": torch.ones(4, 4)},
    "LoHa": {"lora_unet_blocks_0_attn_qkv.hada_w1_a": torch.ones(4, 4)},
    "rank 4096": pair("lora_unet_blocks_0_attn_qkv", rank=4096),
    "no numbers": {k: v * torch.nan for k, v in peft(PIXART).items()},
    "alpha of nothing": pair(SD) | {f"{SD}.alpha": torch.tensor(0.0)},
    "half a pair": {f"{PIXART}.lora_A.weight": torch.ones(4, 48)},
    "alphas alone": {f"{SD}.alpha": torch.tensor(1.0)},
    "beside a whole model": original.state(**SMALL) | peft("blocks.0.attn.qkv"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", LORAS)
def test_a_lora_is_named_and_not_taken_for_a_model(
    kind: str, suffix: str, whole: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"x{suffix}"
    save: Callable[..., Any] = save_file if suffix == ".safetensors" else torch.save
    save(LORAS[kind], file)
    (tmp_path / "models").mkdir()
    wanted = ImportOptions(vae=str(whole), text=str(whole), head_dim=24)
    for attempt in (
        lambda: import_model(file, tmp_path / "models", wanted),
        lambda: convert.convert(file, tmp_path / "made", WISH),
    ):
        with pytest.raises(ModelError, match="This is a LoRA, not a model by itself") as caught:
            attempt()
        one_sentence(caught)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models", file.name]
    assert not any((tmp_path / "models").iterdir())


@pytest.mark.parametrize("base", ["http://169.254.169.254/x", "/etc", "../../x", "os.system", 7])
def test_the_base_that_an_adapter_names_is_not_looked_for(
    base: object, whole: Path, tmp_path: Path
) -> None:
    """W5. Without a network a look at it would fail otherwise."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    values = {"peft_type": "LORA", "base_model_name_or_path": base, "auto_mapping": {"x": "y"}}
    (folder / "adapter_config.json").write_text(json.dumps(values), "utf-8")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Runs(tmp_path / "mark")))
    (tmp_path / "models").mkdir()
    wanted = ImportOptions(vae=str(whole), text=str(whole))
    with pytest.raises(ModelError, match="adapter is a LoRA") as caught:
        import_model(folder, tmp_path / "models", wanted)
    one_sentence(caught)
    with pytest.raises(ModelError, match="bare pickle"):
        import_model(folder / "adapter_model.bin", tmp_path / "models", wanted)
    assert not (tmp_path / "mark").exists()
    assert not any((tmp_path / "models").iterdir())


# --- W6: what happens to files ----------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("sound") / "x.safetensors"
    save_file(original.state(**SMALL), file)
    return file.read_bytes()


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_one_bit_of_a_header_is_read_or_refused(
    place: float, bit: int, sound: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing but a sentence; and what is still read is not larger than the file."""
    data = bytearray(sound)
    data[int(place * (7 + int.from_bytes(sound[:8], "little")))] ^= 1 << bit
    file = tmp_path_factory.mktemp("bit") / "x.safetensors"
    file.write_bytes(data)
    try:
        with opened(file, WISH) as net:
            assert convert.size(net, "keep") <= len(data)
    except StudioError as error:
        assert "\n" not in str(error)


def test_a_pickle_beside_or_behind_the_weights_is_never_opened(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it takes the place of weights that were found sound a moment ago."""
    folder = shutil.copytree(whole, tmp_path / "models" / "mine")
    catalog = Catalog(user_models=tmp_path / "models")
    pickled = bare_pickle(tmp_path).read_bytes()
    beside = folder / "transformer" / "diffusion_pytorch_model.bin"
    beside.write_bytes(pickled)
    assert Engine(catalog, inputs=tmp_path).load("mine", lambda progress: None)
    check = loader._check_weights

    def slow(model: Any, part: Path, name: str) -> None:
        check(model, part, name)
        if part.name == "transformer":
            (part / WEIGHTS).unlink()
            (part / WEIGHTS).write_bytes(pickled)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "_check_weights", slow)
        with pytest.raises(ModelError, match="mine") as caught:
            Engine(catalog, inputs=tmp_path).load("mine", lambda progress: None)
        one_sentence(caught)
    (folder / "transformer" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="missing"):
        Engine(catalog, inputs=tmp_path).load("mine", lambda progress: None)
    assert not (tmp_path / "mark").exists()


def refuse(number: int) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise PermissionError(number, os.strerror(number))

    return raises


@pytest.mark.parametrize("name", ["made", "made.pth"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_is_read_only_is_one_sentence(
    number: int, name: str, sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is played, because whoever runs as root may write anywhere."""
    (tmp_path / "x.safetensors").write_bytes(sound)
    monkeypatch.setattr(Path, "mkdir", refuse(number))
    monkeypatch.setattr(convert, "open", refuse(number), raising=False)
    with pytest.raises(SaveError, match="cannot be written") as caught:
        convert.convert(tmp_path / "x.safetensors", tmp_path / name, WISH)
    one_sentence(caught)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_that_another_program_holds_is_one_sentence(
    sound: bytes, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows answers; where it holds what would be replaced, that stays as it is."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(sound)
    convert.convert(file, tmp_path / "made", WISH)
    before = (tmp_path / "made" / "transformer" / WEIGHTS).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(weights, "open", refuse(errno.EACCES), raising=False)
        with pytest.raises(ModelError, match="cannot be read") as caught:
            convert.convert(file, tmp_path / "other", WISH)
        one_sentence(caught)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse(errno.EACCES))
        with pytest.raises(SaveError, match="cannot be written") as refused:
            convert.convert(file, tmp_path / "made", WISH, overwrite=True)
        one_sentence(refused)
    assert (tmp_path / "made" / "transformer" / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "x.safetensors"]
    shutil.copytree(whole, tmp_path / "models" / "mine")
    engine = Engine(Catalog(user_models=tmp_path / "models"), inputs=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loader, "safe_open", refuse(errno.EACCES))
        with pytest.raises(ModelError, match="Permission denied") as caught:
            engine.load("mine", lambda progress: None)
        one_sentence(caught)
    assert engine.load("mine", lambda progress: None)
