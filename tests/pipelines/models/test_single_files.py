"""T5 and VAEs in one file: known by their header, refused by name, linked to and never read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from transformers import T5Config

from pipelines.errors import ModelError
from pipelines.models import hub_rows, single_files
from tests import sparse

XXL = sparse.t5_xxl()
TWIN = {"encoder.embed_tokens.weight": (32128, 4096)}
VAE = sparse.vae()
FIRST_VAE = sparse.first_vae()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("more", [{}, TWIN, {"decoder.final_layer_norm.weight": (4096,)}])
def test_t5_xxl_is_known_by_its_header(dtype: str, more: dict[str, Any], tmp_path: Path) -> None:
    config = single_files.text_encoder(sparse.write(tmp_path / "t5.safetensors", XXL | more, dtype))
    source = hub_rows.known()["alpha-1024"].parts[1]
    assert {key: config[key] for key in source.like} == source.like
    # Nothing is left to a default of the class.
    made = T5Config(**config)
    for key, value in config.items():
        assert getattr(made, key) == value


def changed(key: str, shape: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    left = {name: value for name, value in XXL.items() if name != key}
    return left if shape is None else left | {key: shape}


ATTENTION = "encoder.block.{}.layer.0.SelfAttention."
FAULTS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "no embedding": (changed("shared.weight", None), "lacks “shared.weight”"),
    "other vocabulary": (changed("shared.weight", (256384, 4096)), "vocab_size is 256384"),
    "a block short": (
        {key: shape for key, shape in XXL.items() if ".block.23." not in key},
        "num_layers is 23, not 24",
    ),
    "a hole": (
        {key: shape for key, shape in XXL.items() if ".block.7." not in key},
        "lacks “encoder.block.7.",
    ),
    "no last norm": (changed("encoder.final_layer_norm.weight", None), "final_layer_norm"),
    "umt5": (
        XXL | {f"{ATTENTION.format(1)}relative_attention_bias.weight": (32, 64)},
        "it has “encoder.block.1.layer.0.SelfAttention.relative_attention_bias",
    ),
    "odd heads": (
        changed(f"{ATTENTION.format(0)}relative_attention_bias.weight", (32, 63)),
        "32×63",
    ),
    "narrow": (
        changed(f"{ATTENTION.format(3)}q.weight", (2048, 4096)),
        "2048×4096 where 4096×4096",
    ),
    "T5 1.0": (
        {key.replace("wi_0", "wi"): shape for key, shape in XXL.items() if "wi_1" not in key},
        "lacks “encoder.block.0.layer.1.DenseReluDense.wi_0.weight”",
    ),
    "with its head": (
        XXL | {"lm_head.weight": (32128, 4096)},
        "a T5 with its decoder .“lm_head.weight”., which cannot be loaded as it lies",
    ),
    "clip": ({"text_model.embeddings.position_ids": (1, 77)}, "lacks “shared.weight”"),
    "empty": ({}, "lacks"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_text_encoder_is_one_sentence(fault: str, tmp_path: Path) -> None:
    shapes, words = FAULTS[fault]
    with pytest.raises(ModelError, match=words) as caught:
        single_files.text_encoder(sparse.write(tmp_path / "t5.safetensors", shapes))
    assert "\n" not in str(caught.value)


def test_quantised_and_other_files_are_one_sentence(tmp_path: Path) -> None:
    fp8 = sparse.write(tmp_path / "t5xxl_fp8_e4m3fn.safetensors", XXL, "F8_E4M3")
    scales = {"encoder.block.0.layer.0.SelfAttention.q.scale_weight": (1,)}
    scaled = sparse.write(tmp_path / "t5xxl_scaled.safetensors", XXL | scales)
    for file in (fp8, scaled):
        with pytest.raises(ModelError, match=r"is quantised .* bf16, fp16 or fp32"):
            single_files.text_encoder(file)
    for name, begin, words in (
        ("t5.gguf", b"GGUF\x03", "is a GGUF"),
        ("t5.bin", b"PK\x03\x04", "is a pickle"),
        ("t5.safetensors", b"<html>", "not a sound safetensors"),
    ):
        (tmp_path / name).write_bytes(begin + b"\0" * 100)
        with pytest.raises(ModelError, match=words):
            single_files.text_encoder(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelError, match="is not a file"):
        single_files.vae(tmp_path / "pipe.safetensors", 0.18215)


def test_both_ways_to_name_a_vae(tmp_path: Path) -> None:
    new = sparse.write(tmp_path / "new.safetensors", VAE, "F32")
    first = sparse.write(tmp_path / "first.safetensors", FIRST_VAE | {"loss.logvar": ()}, "F32")
    config = single_files.vae(new, 0.18215)
    assert config["scaling_factor"] == 0.18215
    assert single_files.vae(first, 0.18215) == config
    with torch.device("meta"):
        net = AutoencoderKL.from_config(config)
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == VAE
    assert single_files.first_names(new) == {}
    # The same names as diffusers' own conversion gives: each tensor is the number of its name.
    keys = list(FIRST_VAE)
    numbers = {key: torch.full((1, 1, 1, 1), float(i)) for i, key in enumerate(keys)}
    theirs = convert_ldm_vae_checkpoint(numbers, config)
    named = {key: keys[int(value.flatten()[0])] for key, value in theirs.items()}
    assert single_files.first_names(first) == named
    with pytest.raises(
        ModelError, match=r"is not the VAE that PixArt has: “decoder\.conv_in\.weight”"
    ):
        flux = VAE | {"decoder.conv_in.weight": (512, 16, 3, 3)}
        single_files.vae(sparse.write(tmp_path / "ae.safetensors", flux), 0.18215)


def test_a_part_is_its_configuration_and_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "elsewhere.safetensors"
    file.write_bytes(b"weights")
    single_files.put(file, tmp_path / "soft", "model.safetensors", {"a": 1})
    assert (tmp_path / "soft" / "model.safetensors").readlink() == file

    def refused(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refused)
    single_files.put(file, tmp_path / "hard", "model.safetensors", {"a": 1})
    hard = tmp_path / "hard" / "model.safetensors"
    assert not hard.is_symlink()
    assert hard.samefile(file)
    assert json.loads((tmp_path / "hard" / "config.json").read_text()) == {"a": 1}
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(OSError, match="privilege"):
        single_files.put(file, tmp_path / "none", "model.safetensors", {"a": 1})


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["pytorch_model.bin"], 1),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], 2),
        (["pytorch_model-00001-of-00002.bin"], 0),
        (["pytorch_model.bin", "model.safetensors"], 0),
        (["other.bin"], 0),
        ([], 0),
    ],
)
def test_pickles_count_only_whole_and_alone(names: list[str], count: int, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert len(single_files.text_pickles(tmp_path)) == count
    assert single_files.text_pickles(tmp_path / "nowhere") == []
