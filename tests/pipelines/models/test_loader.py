"""Model folders that are missing, damaged or hostile: a sentence each, and nothing is executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.catalog import Catalog
from pipelines.engine import Engine
from pipelines.errors import ModelError
from tests import tiny

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def edit_json(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / name).read_text("utf-8"))
        config.update(changes)
        (folder / name).write_text(json.dumps(config), "utf-8")

    return edit


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return put


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["proj_out.weight"]


def reshape_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["proj_out.weight"] = torch.zeros(3, 3)


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unknown.weight"] = torch.zeros(3)


def edit_tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "tokenizer" / "tokenizer.json"
        tokenizer = json.loads(file.read_text("utf-8"))
        change(tokenizer)
        file.write_text(json.dumps(tokenizer), "utf-8")

    return edit


def more_tokens(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"] += [[f"extra{i}", -9.0] for i in range(9)]


def other_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(tiny.NANO / "text_encoder", folder / "text_encoder")


FAULTS: dict[str, Callable[[Path], None]] = {
    "no transformer": lambda folder: shutil.rmtree(folder / "transformer"),
    "no weights": remove(WEIGHTS),
    "no config": remove("vae/config.json"),
    "no tokenizer": remove("tokenizer/tokenizer.json"),
    "no scheduler": remove("scheduler/scheduler_config.json"),
    "empty weights": truncate(WEIGHTS, 0),
    "short header": write(WEIGHTS, b"\x01\x02\x03"),
    "huge header": write(WEIGHTS, (2**63).to_bytes(8, "little") + b"{}"),
    "html instead of weights": write(WEIGHTS, b"<!DOCTYPE html><html>not found</html>"),
    "pickle instead of weights": write(WEIGHTS, b"\x80\x04cos\nsystem\n(S'false'\ntR."),
    "config is a list": write("transformer/config.json", b"[1, 2]"),
    "config is deep": write("transformer/config.json", b"[" * 90_000),
    "config is binary": write("transformer/config.json", b"\xff\xfe\x00"),
    "another class": edit_json("transformer/config.json", _class_name="UNet2DConditionModel"),
    "a class to execute": edit_json("vae/config.json", _class_name="os.system"),
    "huge net": edit_json("transformer/config.json", num_layers=10**9),
    "negative size": edit_json("transformer/config.json", num_attention_heads=-3),
    "text size": edit_json("transformer/config.json", num_layers="many"),
    "other depth": edit_json("transformer/config.json", num_layers=3),
    "missing tensor": edit_weights(drop_one),
    "wrong shape": edit_weights(reshape_one),
    "unknown tensor": edit_weights(add_one),
    "other text encoder": other_text_encoder,
    "betas outside": edit_json("scheduler/scheduler_config.json", beta_end=7),
    "other prediction": edit_json(
        "scheduler/scheduler_config.json", prediction_type="v_prediction"
    ),
    "unknown beta schedule": edit_json(
        "scheduler/scheduler_config.json", beta_schedule="__import__"
    ),
    "empty block list": edit_json("vae/config.json", block_out_channels=[]),
    "no scaling factor": edit_json("vae/config.json", scaling_factor=None),
    "scaling factor of text": edit_json("vae/config.json", scaling_factor="x"),
    "zero scaling factor": edit_json("vae/config.json", scaling_factor=0),
    "four pixels per latent": edit_json(
        "vae/config.json",
        block_out_channels=[8, 8, 8],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    ),
    "architectures is a number": edit_json("text_encoder/config.json", architectures=5),
    "architectures is a table": edit_json("text_encoder/config.json", architectures={"a": 1}),
    "text layers of text": edit_json("text_encoder/config.json", num_layers="many"),
    "unknown text activation": edit_json("text_encoder/config.json", feed_forward_proj="a-b-c"),
    "quantised by something": edit_json(
        "text_encoder/config.json", quantization_config={"quant_method": "gptq"}
    ),
    "code from elsewhere": edit_json(
        "text_encoder/config.json", auto_map={"AutoModel": "evil--repo.Model"}
    ),
    "unknown activation": edit_json("transformer/config.json", activation_fn="nope"),
    "huge positions": edit_json("transformer/config.json", sample_size=4096),
    "infinite size": edit_json("transformer/config.json", num_layers=float("inf")),
    "not a number": edit_json("transformer/config.json", num_layers=float("nan")),
    "tokenizer without an end": edit_tokenizer(lambda t: t.update(post_processor=None)),
    "tokenizer with more tokens": edit_tokenizer(more_tokens),
    "truncated vae": truncate("vae/diffusion_pytorch_model.safetensors", 0.5),
    "truncated text encoder": truncate("text_encoder/model.safetensors", 0.5),
    **{f"cut at {n} tenths": truncate(WEIGHTS, n / 10) for n in (1, 3, 5, 7, 9)},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_model_is_one_sentence(fault: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "broken"
    shutil.copytree(whole, folder)
    FAULTS[fault](folder)
    catalog = Catalog(user_models=tmp_path / "models")
    engine = Engine(catalog, inputs=tmp_path)
    with pytest.raises(ModelError) as caught:
        engine.load("broken", lambda progress: None)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600


def test_weights_as_they_were_released_load(tmp_path: Path) -> None:
    """With the untrained null caption, and without a word about additional conditions."""
    folder = tiny.build(tmp_path / "released", micro_conditions=True)
    edit_weights(lambda t: t.update({"caption_projection.y_embedding": torch.zeros(120, 4)}))(
        folder
    )
    config = folder / "transformer" / "config.json"
    values = json.loads(config.read_text("utf-8")) | {"_class_name": "Transformer2DModel"}
    del values["use_additional_conditions"]
    config.write_text(json.dumps(values), "utf-8")
    engine = Engine(Catalog(user_models=tmp_path), inputs=tmp_path)
    loaded = engine.load("released", lambda progress: None)
    assert loaded.transformer.net.config.use_additional_conditions is True


def test_after_a_damaged_model_the_next_one_works(whole: Path, tmp_path: Path) -> None:
    for name in ("broken", "good"):
        shutil.copytree(whole, tmp_path / name)
    remove(WEIGHTS)(tmp_path / "broken")
    engine = Engine(Catalog(user_models=tmp_path), inputs=tmp_path)
    with pytest.raises(ModelError, match="missing"):
        engine.load("broken", lambda progress: None)
    assert engine.load("good", lambda progress: None)


def test_a_model_that_is_installed_again_is_loaded_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "mine")
    engine = Engine(Catalog(user_models=tmp_path), inputs=tmp_path)
    first = engine.load("mine", lambda progress: None)
    assert engine.load("mine", lambda progress: None) is first
    edit_weights(lambda tensors: tensors["proj_out.weight"].mul_(0.5))(tmp_path / "mine")
    second = engine.load("mine", lambda progress: None)
    assert second.weights != first.weights
    assert not torch.equal(
        second.transformer.net.proj_out.weight, first.transformer.net.proj_out.weight
    )


def test_wrong_rows_are_reported_and_the_others_stay(whole: Path, tmp_path: Path) -> None:
    row = (whole / "model.toml").read_text("utf-8")
    rows = {
        "good": row,
        "nano": row,
        "not-toml": "= = =",
        "unknown-key": row + "\nwrong = 1\n",
        "wrong-type": row.replace("tokens = 24", 'tokens = "many"'),
        "wrong-size": row.replace('size = "64x64"', 'size = "65x64"'),
        "wrong-bins": row.replace('bins = "128"', 'bins = "129"'),
        "Bad Name": row,
        "huge": "#" * 200_000,
        "deep": "a = " + "[" * 20_000,
        "one-step": row + "\nsteps = 1\n",
        "guided-lcm": row + '\nsampler = "lcm"\nguidance = 4.5\n',
        "small-side": row.replace('bins = "128"', 'bins = "1024"'),
    }
    for name, text in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.toml").write_text(text, "utf-8")
    catalog = Catalog(user_models=tmp_path)
    assert {model.id for model in catalog} == {"nano", "good"}
    assert len(catalog.problems) == len(rows) - 1
    assert catalog.default.id == "good"
    with pytest.raises(ModelError, match="tokens"):
        catalog.find("wrong-type")
    assert Catalog().default.id == "nano"
