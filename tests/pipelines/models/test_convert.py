"""Conversion both ways: the same numbers, bytes and pictures; and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_manager import pickles
from pipelines.errors import ModelError, RequestError, SaveError, StudioError
from pipelines.models import convert, headers, original_layout, weights
from pipelines.models.convert import NULL_CAPTION_FILE, WEIGHTS, SavedPrecision
from pipelines.models.sources import ReadOptions, opened
from tests import original, tiny
from tests.lora_manager.test_refused import hashed_for_hours, overruns_the_stack

SMALL: dict[str, Any] = {"width": 48, "layers": 2, "captions": 32}
WISH = ReadOptions(head_dim=24)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the original layout, with an average."""
    file = tmp_path_factory.mktemp("small") / "small.pth"
    states = {
        "state_dict": original.state(**SMALL, seed=1),
        "state_dict_ema": original.state(**SMALL, seed=2),
    }
    # What a training keeps beside its weights.
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10])
    rest = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 3}
    torch.save({**states, **rest}, file)
    return file


def transformer(folder: Path) -> PixArtTransformer2DModel:
    net = PixArtTransformer2DModel.from_pretrained(folder / "transformer", local_files_only=True)
    return net.eval()


@pytest.mark.parametrize("micro", [False, True])
@torch.no_grad()
def test_the_converted_net_computes_what_the_original_computes(micro: bool, tmp_path: Path) -> None:
    state = original.state(**SMALL, micro=micro, scale=2.0)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    convert.convert(tmp_path / "a.pth", tmp_path / "b", WISH)
    net = transformer(tmp_path / "b")
    latents, captions = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 32)
    timesteps, size = torch.tensor([3, 900]), torch.tensor([[512.0, 768.0], [1024.0, 640.0]])
    mine = net(
        latents,
        encoder_hidden_states=captions,
        timestep=timesteps,
        added_cond_kwargs={
            "resolution": size if micro else None,
            "aspect_ratio": size[:, :1] / size[:, 1:] if micro else None,
        },
    ).sample
    theirs = original.forward(state, 2, latents, captions, timesteps, size if micro else None)
    assert theirs.abs().max() > 0.1
    assert (mine - theirs).abs().max() < 1e-5
    config = json.loads((tmp_path / "b" / "transformer" / "config.json").read_text())
    assert (config["interpolation_scale"], config["sample_size"]) == (2, 16)
    assert config["use_additional_conditions"] is micro
    assert set(config) - {"_class_name"} <= set(net.config)


def test_a_checkpoint_with_all_keys_of_xl_goes_round_to_the_byte(tmp_path: Path) -> None:
    """28 blocks with micro-conditions, as the 1024 model has them; only narrower."""
    state = original.state(width=24, layers=28, captions=16, micro=True, scale=2.0)
    assert len(state) == len(original.shapes(width=1152, layers=28, captions=4096, micro=True))
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    convert.convert(tmp_path / "a.pth", tmp_path / "b", ReadOptions(head_dim=12))
    convert.convert(tmp_path / "b", tmp_path / "c.pth", ReadOptions())
    convert.convert(tmp_path / "c.pth", tmp_path / "d", ReadOptions())
    convert.convert(tmp_path / "d", tmp_path / "e.pth", ReadOptions())
    files = sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*.*"))
    assert [str(f) for f in files] == [
        NULL_CAPTION_FILE,
        "transformer/config.json",
        f"transformer/{WEIGHTS}",
    ]
    for file in files:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "d" / file).read_bytes()
    assert (tmp_path / "c.pth").read_bytes() == (tmp_path / "e.pth").read_bytes()
    back = torch.load(tmp_path / "c.pth", weights_only=True)["state_dict"]
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_from_diffusers_and_back_is_the_same_file(tmp_path: Path) -> None:
    tiny.build(tmp_path / "tiny", micro_conditions=True)
    convert.convert(tmp_path / "tiny", tmp_path / "a.pth", ReadOptions())
    made = convert.convert(tmp_path / "a.pth", tmp_path / "b", ReadOptions())
    one = (tmp_path / "tiny" / "transformer" / WEIGHTS).read_bytes()
    assert (tmp_path / "b" / "transformer" / WEIGHTS).read_bytes() == one
    # A null caption that was only drawn for the original code is not taken for a trained one.
    assert made.null_caption == "none"
    assert not (tmp_path / "b" / NULL_CAPTION_FILE).exists()
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    assert state["y_embedder.y_embedding"].shape == (tiny.TOKENS, 32)


def test_the_null_caption_is_kept_and_restored(small: Path, tmp_path: Path) -> None:
    state = torch.load(small, weights_only=True)["state_dict_ema"]
    convert.convert(small, tmp_path / "a", WISH)
    side = load_file(tmp_path / "a" / NULL_CAPTION_FILE)
    assert torch.equal(side["y_embedder.y_embedding"], state["y_embedder.y_embedding"])
    convert.convert(tmp_path / "a", tmp_path / "b.pth", ReadOptions())
    back = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert torch.equal(back["y_embedder.y_embedding"], state["y_embedder.y_embedding"])


def test_the_choice_of_weights(small: Path, tmp_path: Path) -> None:
    states = torch.load(small, weights_only=True)
    wanted: dict[weights.Choice, str] = {
        "auto": "state_dict_ema",
        "ema": "state_dict_ema",
        "raw": "state_dict",
    }
    for choice, key in wanted.items():
        convert.convert(small, tmp_path / choice, ReadOptions(head_dim=24, weights=choice))
        bias = load_file(tmp_path / choice / "transformer" / WEIGHTS)["proj_out.bias"]
        assert torch.equal(bias, states[key]["final_layer.linear.bias"])
    torch.save({"state_dict": states["state_dict"]}, tmp_path / "raw.pth")
    made = convert.convert(tmp_path / "raw.pth", tmp_path / "x", WISH)
    assert not made.averaged
    with pytest.raises(RequestError, match="no averaged weights"):
        convert.convert(
            tmp_path / "raw.pth", tmp_path / "y", ReadOptions(head_dim=24, weights="ema")
        )
    with pytest.raises(RequestError, match="no averaged weights"):
        convert.convert(tmp_path / "x", tmp_path / "y", ReadOptions(weights="ema"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision(precision: SavedPrecision, small: Path, tmp_path: Path) -> None:
    dtype = convert.PRECISIONS[precision]
    assert dtype is not None
    raw = torch.load(small, weights_only=True)["state_dict"]
    convert.convert(
        small, tmp_path / "a", ReadOptions(head_dim=24, weights="raw"), precision=precision
    )
    made = load_file(tmp_path / "a" / "transformer" / WEIGHTS)
    expected = raw["blocks.1.attn.qkv.weight"].chunk(3)[1].to(dtype)
    assert torch.equal(made["transformer_blocks.1.attn1.to_k.weight"], expected)
    assert {t.dtype for t in made.values()} == {dtype}
    convert.convert(tmp_path / "a", tmp_path / "b.pth", ReadOptions(), precision="keep")
    back = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert torch.equal(back["t_block.1.bias"], raw["t_block.1.bias"].to(dtype))
    assert torch.equal(back["pos_embed"], raw["pos_embed"])


def save_original(folder: Path, state: Tensors) -> Path:
    save_file(state, folder / "a.safetensors")
    return folder / "a.safetensors"


def save_bare(folder: Path, state: Tensors) -> Path:
    torch.save(state, folder / "a.pt")
    return folder / "a.pt"


def save_wrapped(folder: Path, state: Tensors) -> Path:
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "a.ckpt")
    return folder / "a.ckpt"


def save_parameters(folder: Path, state: Tensors) -> Path:
    """As `state_dict(keep_vars=True)` is saved, with views into one storage."""
    flat = torch.cat([value.flatten() for value in state.values()])
    views, start = {}, 0
    for key, value in state.items():
        view = flat[start : start + value.numel()].view(value.shape)
        views[key], start = torch.nn.Parameter(view), start + value.numel()
    torch.save({"state_dict": views}, folder / "a.pth")
    return folder / "a.pth"


def save_training(folder: Path, state: Tensors) -> Path:
    """As trainings are kept: optimizers use one tuple of numbers in several places."""
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": net.parameters()} for net in nets], betas=(0.9, 0.95))
    sum(net(torch.ones(1, 2)).sum() for net in nets).backward()
    optimizer.step()
    kept = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(kept, folder / "a.pth")
    return folder / "a.pth"


@pytest.mark.parametrize(
    "save", [save_original, save_bare, save_wrapped, save_parameters, save_training]
)
def test_other_containers(save: Callable[[Path, Tensors], Path], tmp_path: Path) -> None:
    state = original.state(**SMALL)
    source = save(tmp_path, state)
    convert.convert(source, tmp_path / "a", WISH)
    torch.save({"state_dict": state}, tmp_path / "plain.pth")
    convert.convert(tmp_path / "plain.pth", tmp_path / "b", WISH)
    one, other = (tmp_path / name / "transformer" / WEIGHTS for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    convert.convert(source, tmp_path / "again.pth", WISH)
    # Views are saved without the rest of what they look into.
    total = sum(value.numel() * 4 for value in state.values())
    assert (tmp_path / "again.pth").stat().st_size < total + 40_000


def old_config(folder: Path) -> None:
    """As the first diffusers releases wrote it."""
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    for key in ("use_additional_conditions", "interpolation_scale"):
        del config[key]
    config |= {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "dropout": 0.0}
    config |= {"double_self_attention": False, "use_linear_projection": False}
    file.write_text(json.dumps(config))


def shards(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    state = load_file(file)
    file.unlink()
    names = sorted(state)
    home: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2])):
        name = f"diffusion_pytorch_model-{i}.safetensors"
        save_file({key: state[key] for key in part}, file.with_name(name))
        home |= dict.fromkeys(part, name)
    file.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": home}))


def released(folder: Path) -> None:
    """As the published folders are: the null caption is among the weights."""
    file = folder / "transformer" / WEIGHTS
    caption = load_file(folder / NULL_CAPTION_FILE)["y_embedder.y_embedding"]
    save_file(load_file(file) | {"caption_projection.y_embedding": caption}, file)
    (folder / NULL_CAPTION_FILE).unlink()


def variant(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))


def pickled(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()


@pytest.mark.parametrize("change", [old_config, released, shards, variant, pickled])
def test_other_folders(change: Callable[[Path], None], small: Path, tmp_path: Path) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    change(tmp_path / "b")
    for i, source in enumerate((tmp_path / "b", tmp_path / "b" / "transformer")):
        # What old configurations leave out cannot be known for pictures this small.
        options = ReadOptions(interpolation_scale=1 if change is old_config else None)
        convert.convert(source, tmp_path / f"c{i}", options)
        for file in (f"transformer/{WEIGHTS}", "transformer/config.json", NULL_CAPTION_FILE):
            assert (tmp_path / f"c{i}" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
    assert transformer(tmp_path / "c0").config.interpolation_scale == 1


@pytest.mark.parametrize(("sample", "scale"), [(64, 1), (128, 2), (256, 4)])
def test_a_scale_that_is_left_out_is_that_of_the_size(
    sample: int, scale: int, small: Path, tmp_path: Path
) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    edited(interpolation_scale="gone", sample_size=sample)(tmp_path / "a")
    made = convert.convert(tmp_path / "a", tmp_path / "b", ReadOptions())
    assert made.design.interpolation_scale == scale
    config = json.loads((tmp_path / "b" / "transformer" / "config.json").read_text())
    assert config["interpolation_scale"] == scale


def test_a_scale_that_was_asked_for_mends_a_configuration(small: Path, tmp_path: Path) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    edited(interpolation_scale=0, sample_size=32)(tmp_path / "a")
    made = convert.convert(tmp_path / "a", tmp_path / "b", ReadOptions(interpolation_scale=0.5))
    assert made.design.interpolation_scale == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": -5}, "-5 is not the side"),
        ({"image_size": 0}, "0 is not the side"),
        ({"image_size": 130}, "130 is not the side"),
        ({"head_dim": 0}, "0 channels"),
        ({"head_dim": -24}, "-24 channels"),
        ({"interpolation_scale": 0.0}, "not an interpolation scale"),
        ({"interpolation_scale": float("nan")}, "not an interpolation scale"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_numbers_that_are_none_of_their_kind(
    kind: str, options: dict[str, Any], words: str, small: Path, tmp_path: Path
) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    source = small if kind == "checkpoint" else tmp_path / "a"
    with pytest.raises(RequestError, match=words):
        convert.convert(source, tmp_path / "b", ReadOptions(**options))
    assert not (tmp_path / "b").exists()


def test_single_safetensors_with_and_without_their_configuration(
    small: Path, tmp_path: Path
) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    file = tmp_path / "a" / "transformer" / WEIGHTS
    convert.convert(file, tmp_path / "b", ReadOptions())
    assert (tmp_path / "b" / "transformer" / WEIGHTS).read_bytes() == file.read_bytes()
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(file, alone)
    with pytest.raises(RequestError, match="--head-dim"):
        convert.convert(alone, tmp_path / "c", ReadOptions())
    with pytest.raises(RequestError, match="--image-size"):
        convert.convert(alone, tmp_path / "c", WISH)
    with pytest.raises(RequestError, match="--interpolation-scale"):
        convert.convert(alone, tmp_path / "c", ReadOptions(head_dim=24, image_size=256))
    whole = ReadOptions(head_dim=24, image_size=128, interpolation_scale=1)
    convert.convert(alone, tmp_path / "c", whole)
    config = "transformer/config.json"
    assert (tmp_path / "c" / config).read_text() == (tmp_path / "a" / config).read_text()
    with pytest.raises(RequestError, match="stored positions say image_size 128"):
        convert.convert(small, tmp_path / "d", ReadOptions(head_dim=24, image_size=512))


def test_our_safetensors_have_the_bytes_of_the_library(tmp_path: Path) -> None:
    state = {
        "b": torch.randn(3, 5),
        "a.é": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 2).half(),
        "d": torch.randn(1, dtype=torch.float64),
    }
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    announced = {key: (value.dtype, tuple(value.shape)) for key, value in state.items()}
    weights.write(tmp_path / "ours", announced, lambda name: state[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    with weights.opened([tmp_path / "ours"]) as found:
        assert all(torch.equal(found.read(key), value) for key, value in state.items())


def test_the_header_of_the_real_xl_is_measured_without_its_data(tmp_path: Path) -> None:
    """A file of 1.2 GB that takes no place: nothing but the header is looked at."""
    sizes = original_layout.measure(
        original.shapes(width=1152, layers=28, captions=4096, micro=True), "original"
    )
    table, end = {}, 0
    for key, shape in original_layout.expected(sizes, "diffusers").items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        table[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    file = tmp_path / "xl.safetensors"
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    assert end == 2 * 611_349_152
    with opened(file, ReadOptions()) as net:
        assert net.design.family == "PixArt-α 1024-MS"
        assert convert.size(net, "fp32") == 4 * 611_349_152


# What is refused. Each hostile file would leave this mark if a line of its code ran.


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def zipped(folder: Path, entries: dict[str, bytes], **how: Any) -> Path:
    file = folder / "x.pth"
    with zipfile.ZipFile(file, "w", **how) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


def bare_pickle(folder: Path) -> Path:
    (folder / "x.pth").write_bytes(pickle.dumps(Runs(folder / "mark")))
    return folder / "x.pth"


def pickle_as_safetensors(folder: Path) -> Path:
    (folder / "x.safetensors").write_bytes(pickle.dumps(Runs(folder / "mark")))
    return folder / "x.safetensors"


def pickle_in_checkpoint(folder: Path, protocol: int = 2) -> Path:
    data = pickle.dumps({"state_dict": Runs(folder / "mark")}, protocol=protocol)
    return zipped(folder, {"archive/data.pkl": data, "archive/version": b"3\n"})


def pickle_in_checkpoint_4(folder: Path) -> Path:
    return pickle_in_checkpoint(folder, 4)


def checkpoint_as_safetensors(folder: Path) -> Path:
    return pickle_in_checkpoint(folder).rename(folder / "x.safetensors")


def pickle_in_zip(folder: Path) -> Path:
    return zipped(folder, {"data.pkl": pickle.dumps(Runs(folder / "mark"))})


def packed_pickle(folder: Path) -> Path:
    """As joblib writes it."""
    (folder / "x.pth").write_bytes(zlib.compress(pickle.dumps(Runs(folder / "mark"))))
    return folder / "x.pth"


def checkpoint_of_old(folder: Path) -> Path:
    return bare_pickle(folder).rename(folder / "x.ckpt")


def saved_with_code(folder: Path) -> Path:
    torch.save({"state_dict": {}, "hyper": Runs(folder / "mark")}, folder / "x.pth")
    return folder / "x.pth"


def legacy(folder: Path) -> Path:
    state = {"state_dict": original.state(**SMALL), "x": Runs(folder / "mark")}
    torch.save(state, folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def legacy_tar(folder: Path) -> Path:
    with tarfile.open(folder / "x.pth", "w") as archive:
        info = tarfile.TarInfo("pickle")
        data = pickle.dumps(Runs(folder / "mark"))
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return folder / "x.pth"


def numpy_objects(folder: Path) -> Path:
    np.save(folder / "x.npy", np.array([Runs(folder / "mark")], dtype=object), allow_pickle=True)
    return (folder / "x.npy").rename(folder / "x.pth")


def bomb(folder: Path) -> Path:
    """A gigabyte of zeros in a megabyte."""
    entries = {"archive/data.pkl": pickle.dumps({}, protocol=2), "archive/data/0": bytes(10**8)}
    return zipped(folder, entries, compression=zipfile.ZIP_DEFLATED)


def huge_pickle(folder: Path) -> Path:
    return zipped(folder, {"archive/data.pkl": b"\x80\x02" + b"N0" * 1_500_000 + b"N."})


def bytearray_bomb(folder: Path) -> Path:
    data = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R."
    return zipped(folder, {"archive/data.pkl": data})


def expanded(folder: Path) -> Path:
    """Four bytes that claim to be four terabytes."""
    state = original.state(**SMALL)
    state["y_embedder.y_embedding"] = torch.zeros(1).expand(2**30, 2**10)
    torch.save({"state_dict": state}, folder / "x.pth")
    return folder / "x.pth"


def strange_attributes(folder: Path) -> Path:
    """Methods of the tables are replaced by a text that the file brings along."""
    state = OrderedDict(original.state(**SMALL) | {"blocks.0.extra": torch.zeros(1)})
    root = OrderedDict(state_dict=state)
    names = {"itemz": "items", "keyz": "keys", "gex": "get"}
    for table in (state, root):
        table.__dict__.update(dict.fromkeys(names, "x"))
    torch.save(root, folder / "x.pt")
    with zipfile.ZipFile(folder / "x.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (folder / "x.pt").unlink()
    for name, meant in names.items():
        data = entries["x/data.pkl"]
        one, other = (struct.pack("<I", len(n)) + n.encode() for n in (name, meant))
        entries["x/data.pkl"] = data.replace(b"X" + one, b"X" + other)
        assert entries["x/data.pkl"] != data
    return zipped(folder, entries)


def changed(**change: Any) -> Callable[[Path], Path]:
    """A sound checkpoint, but for these tensors."""

    def save(folder: Path) -> Path:
        state = original.state(**SMALL) | change
        torch.save(
            {"state_dict": {k: v for k, v in state.items() if v is not None}}, folder / "x.pth"
        )
        return folder / "x.pth"

    return save


def other_file(root: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        torch.save(root, folder / "x.pth")
        return folder / "x.pth"

    return save


def flipped(folder: Path) -> Path:
    """One bit of one number."""
    file = changed()(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def commented(folder: Path) -> Path:
    file = changed()(folder)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"PK\x05\x06" + bytes(18)
    return file


def contents_bomb(folder: Path) -> Path:
    """A table of contents that claims four gigabytes."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 2, 0, 0)
    file = folder / "x.pth"
    with open(file, "wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.seek(2**32 - 2)
        stream.write(end)
    return file


def cut(tenths: int, kind: str) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        file = (
            changed()(folder) if kind == "pth" else save_original(folder, original.state(**SMALL))
        )
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * tenths // 10])
        return file

    return save


def empty_file(folder: Path) -> Path:
    (folder / "x.safetensors").touch()
    return folder / "x.safetensors"


def header(text: bytes, data: bytes = b"", length: int | None = None) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        start = struct.pack("<Q", len(text) if length is None else length)
        (folder / "x.safetensors").write_bytes(start + text + data)
        return folder / "x.safetensors"

    return save


def entry(**change: Any) -> bytes:
    return json.dumps({"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}).encode()


NAN = torch.full((32,), float("nan"))
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    # W1: pickles under every name
    "bare pickle": (bare_pickle, "bare pickle"),
    "pickle named ckpt": (checkpoint_of_old, "bare pickle"),
    "packed pickle": (packed_pickle, "not a sound safetensors"),
    "pickle named safetensors": (pickle_as_safetensors, "not a sound safetensors"),
    "pickle in a checkpoint": (pickle_in_checkpoint, "asks for “posix.system”"),
    "pickle of protocol 4": (pickle_in_checkpoint_4, "is pickled by protocol 4"),
    "hashed for hours": (hashed_for_hours, "is nested as no weights are"),
    "overruns the stack": (overruns_the_stack, "is nested as no weights are"),
    "checkpoint named safetensors": (checkpoint_as_safetensors, "asks for “posix.system”"),
    "pickle in a zip": (pickle_in_zip, "not a checkpoint of torch"),
    "code beside the weights": (saved_with_code, "asks for “posix.system”"),
    "legacy checkpoint": (legacy, "bare pickle"),
    "legacy tar": (legacy_tar, "not a sound safetensors"),
    "numpy objects": (numpy_objects, "not a sound safetensors"),
    "deflate bomb": (bomb, "compressed"),
    "huge pickle": (huge_pickle, "far more structure"),
    "bytearray bomb": (bytearray_bomb, "bytearray"),
    "expanded tensor": (expanded, "claims more numbers"),
    "strange attributes": (strange_attributes, "blocks.0.extra"),
    "zip with a comment": (commented, "not a checkpoint of torch"),
    "table of contents": (contents_bomb, "far too long|damaged"),
    "one bit flipped": (flipped, "damaged"),
    # W2: headers
    "length 2^63": (header(b"{}", length=2**63), "does not fit"),
    "length 4 GB": (header(b"{}", length=2**32), "does not fit"),
    "length 0": (header(b"{}", length=0), "does not fit"),
    "length over the file": (header(b"{}", length=3), "does not fit"),
    "empty file": (
        empty_file,
        "does not fit",
    ),
    "long header": (header(b"{" + b" " * 17_000_000 + b"}"), "too long"),
    "not JSON": (header(b"{nope}"), "not JSON"),
    "JSON list": (header(b"[1, 2]"), "not JSON"),
    "not text": (header(b"{\xff\xfe}"), "not JSON"),
    "deep JSON": (header(b'{"a":' + b"[" * 200_000), "not JSON"),
    "duplicate names": (header(b'{"a":' + entry() + b',"a":' + entry() + b"}", bytes(8)), "twice"),
    "overlap": (
        header(b'{"a":' + entry() + b',"b":' + entry(data_offsets=[4, 12]) + b"}", bytes(12)),
        "overlap",
    ),
    "gap": (header(b'{"a":' + entry(data_offsets=[4, 12]) + b"}", bytes(12)), "gap"),
    "negative offset": (header(b'{"a":' + entry(data_offsets=[-8, 0]) + b"}", bytes(8)), "lies at"),
    "offsets beyond": (
        header(b'{"a":' + entry(shape=[2**40], data_offsets=[0, 2**42]) + b"}", bytes(8)),
        "cut off",
    ),
    "unknown dtype": (header(b'{"a":' + entry(dtype="F8_E4M3") + b"}", bytes(8)), "F8_E4M3"),
    "dtype of another kind": (header(b'{"a":' + entry(dtype=["F32"]) + b"}", bytes(8)), "type"),
    "shape overflow": (header(b'{"a":' + entry(shape=[2**62, 4]) + b"}", bytes(8)), "shape"),
    "shape 2^64": (header(b'{"a":' + entry(shape=[2**64]) + b"}", bytes(8)), "shape"),
    "shape of fractions": (header(b'{"a":' + entry(shape=[2.0]) + b"}", bytes(8)), "shape"),
    "shape of truths": (header(b'{"a":' + entry(shape=[True, 2]) + b"}", bytes(8)), "shape"),
    "infinite shape": (header(b'{"a":{"shape":[Infinity]}}', bytes(8)), "Infinity"),
    "endless number": (header(b'{"a":{"shape":[' + b"9" * 10_000 + b"]}}", bytes(8)), "not JSON"),
    "many tensors": (
        header(
            json.dumps(
                {
                    f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for i in range(25_000)
                }
            ).encode()
        ),
        "lists 25,000",
    ),
    "trailing bytes": (header(b'{"a":' + entry() + b"}", bytes(20)), "belong to none"),
    "missing bytes": (header(b'{"a":' + entry() + b"}", bytes(4)), "cut off"),
    "metadata of numbers": (header(b'{"__metadata__":{"a":1}}'), "metadata"),
    "entry of extras": (header(b'{"a":' + entry(code="x") + b"}", bytes(8)), "not described"),
    # Other nets, and numbers
    "no table": (other_file([1, 2]), "no table"),
    "state of numbers": (other_file({"state_dict": {"a": 1}}), "which is no tensor"),
    "state of another kind": (other_file({"state_dict": "x"}), "no table"),
    "nothing": (other_file({}), "it is empty"),
    "not a number": (changed(**{"final_layer.linear.bias": NAN}), "not finite"),
    "infinite": (changed(**{"y_embedder.y_embedding": torch.full((120, 32), torch.inf)}), "finite"),
    "positions that are none": (changed(pos_embed=torch.rand(1, 64, 48)), "interpolation scale"),
    "positions of another net": (changed(pos_embed=torch.rand(1, 64, 44)), "shape 1×64×44"),
    "null caption of another net": (
        changed(**{"y_embedder.y_embedding": torch.zeros(120, 31)}),
        "null caption",
    ),
    "whole numbers": (
        changed(**{"final_layer.linear.bias": torch.zeros(32, dtype=torch.int64)}),
        "stored as int64",
    ),
    "missing tensor": (changed(**{"blocks.1.mlp.fc2.bias": None}), "lacks “blocks.1.mlp.fc2.bias”"),
    "a ControlNet": (
        changed(
            **{
                "controlnet.0.after_proj.weight": None,
                "controlnet.0.copied_block.attn.qkv.weight": NAN,
            }
        ),
        "ControlNet",
    ),
    **{f"pth cut at {n} tenths": (cut(n, "pth"), "“") for n in range(10)},
    **{f"safetensors cut at {n} tenths": (cut(n, "st"), "not a sound") for n in range(10)},
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_a_hostile_file_is_one_sentence(fault: str, suffix: str, tmp_path: Path) -> None:
    make, words = HOSTILE[fault]
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=words) as caught:
        convert.convert(source, tmp_path / f"made{suffix}", WISH)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    # No line of it ran, and nothing was left.
    assert sorted(tmp_path.iterdir()) == before


def test_the_hostile_pickles_do_run_where_they_are_let(tmp_path: Path) -> None:
    """So that the mark above means something."""
    pickle.loads(bare_pickle(tmp_path).read_bytes())
    assert (tmp_path / "mark").exists()


def test_numbers_that_do_not_fit_are_said(tmp_path: Path) -> None:
    source = changed(**{"final_layer.linear.bias": torch.full((32,), 1e6)})(tmp_path)
    with pytest.raises(ModelError, match="do not fit into fp16"):
        convert.convert(source, tmp_path / "a", WISH, precision="fp16")
    assert not (tmp_path / "a").exists()


def edited(**change: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "transformer" / "config.json"
        config = json.loads(file.read_text()) | change
        file.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))

    return edit


def text(name: str, content: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(content)

    return edit


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "other class": (edited(_class_name="os.system"), "“os.system”, not a PixArt"),
    "no class": (edited(_class_name="gone"), "not a PixArt"),
    "other activation": (edited(activation_fn="geglu"), "activation_fn “geglu”"),
    "other norm": (edited(norm_type="ada_norm_zero"), "norm_type"),
    "more layers": (edited(num_layers=3), "num_layers 3, its weights say 2"),
    "other captions": (edited(caption_channels=64), "caption_channels"),
    "micro-conditions": (edited(use_additional_conditions=True), "use_additional_conditions"),
    "heads": (edited(num_attention_heads=3), "3 heads of 24"),
    "heads of zero": (edited(num_attention_heads=0), "0 heads"),
    "huge positions": (edited(sample_size=2**30), "sample_size"),
    "odd positions": (edited(sample_size=17), "do not fill"),
    "not a scale": (edited(interpolation_scale=float("inf")), "not an interpolation scale"),
    "scale of zero": (edited(interpolation_scale=0), "0 is not an interpolation scale"),
    "negative scale": (edited(interpolation_scale=-1), "-1 is not an interpolation scale"),
    "no number as scale": (edited(interpolation_scale=float("nan")), "not an interpolation scale"),
    "no scale for so small pictures": (
        edited(interpolation_scale="gone"),
        "leaves out interpolation_scale, and models for 128 pixels",
    ),
    "the 256 trap": (
        edited(interpolation_scale=None, sample_size=32),
        r"models for 256 pixels were trained with several\. Give --interpolation-scale",
    ),
    "config of another kind": (text("transformer/config.json", "[]"), "not a configuration"),
    "config is no JSON": (text("transformer/config.json", "{"), "cannot be read"),
    "config is deep": (text("transformer/config.json", "[" * 50_000), "cannot be read"),
    "config is long": (text("transformer/config.json", " " * 200_000 + "{}"), "configuration"),
    "no weights": (lambda folder: (folder / "transformer" / WEIGHTS).unlink(), "holds no"),
    "shards from elsewhere": (
        lambda folder: (
            (folder / "transformer" / WEIGHTS).rename(folder / "elsewhere.safetensors"),
            text(
                f"transformer/{WEIGHTS}.index.json",
                '{"weight_map": {"a": "../elsewhere.safetensors"}}',
            )(folder),
        )[1],
        "does not list",
    ),
    "null caption of another net": (
        lambda folder: save_file(
            {"y_embedder.y_embedding": torch.zeros(2, 2)}, folder / NULL_CAPTION_FILE
        ),
        "null caption",
    ),
    "no null caption in its file": (
        lambda folder: save_file({"a": torch.zeros(2, 2)}, folder / NULL_CAPTION_FILE),
        "null caption",
    ),
}


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_wrong_folder_is_one_sentence(fault: str, small: Path, tmp_path: Path) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    change, words = FOLDERS[fault]
    change(tmp_path / "a")
    with pytest.raises(StudioError, match=words) as caught:
        convert.convert(tmp_path / "a", tmp_path / "b.pth", ReadOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.pth").exists()


def test_a_file_that_is_replaced_while_it_is_read(small: Path, tmp_path: Path) -> None:
    """Between the check of the header and the tensors another file takes its name."""
    file = save_original(tmp_path, original.state(**SMALL, seed=1))
    with opened(file, WISH) as net:
        (tmp_path / "other").mkdir()
        save_original(tmp_path / "other", original.state(**SMALL, seed=2)).replace(file)
        read = net.weights.read("final_layer.linear.bias")
    assert torch.equal(read, original.state(**SMALL, seed=1)["final_layer.linear.bias"])
    with opened(file, WISH) as net:
        os.truncate(file, 5000)
        with pytest.raises(ModelError, match="changed while it was read"):
            net.weights.read("final_layer.linear.bias")


def test_a_checkpoint_that_is_replaced_before_torch_opens_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shutil.copyfile(small, tmp_path / "a.pth")
    check = pickles.check

    def slow(path: Path, more: Collection[str]) -> None:
        check(path, more)
        pickle_in_checkpoint(tmp_path).replace(file)

    monkeypatch.setattr(pickles, "check", slow)
    with pytest.raises(ModelError):
        convert.convert(file, tmp_path / "b", WISH)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth"]


def test_what_exists_is_not_replaced_unless_told(small: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "a", tmp_path / "a.pth"):
        convert.convert(small, target, WISH)
        with pytest.raises(RequestError, match="exists already"):
            convert.convert(small, target, WISH)
        raw = ReadOptions(head_dim=24, weights="raw")
        convert.convert(small, target, raw, overwrite=True)
    bias = torch.load(small, weights_only=True)["state_dict"]["final_layer.linear.bias"]
    assert torch.equal(load_file(tmp_path / "a" / "transformer" / WEIGHTS)["proj_out.bias"], bias)
    (tmp_path / "empty").mkdir()
    convert.convert(small, tmp_path / "empty", WISH)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.pth", "empty"]


def test_no_other_folder_is_ever_replaced(small: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    convert.convert(small, tmp_path / "home" / "net", WISH)
    for source, target, words in (
        (small, tmp_path / "home", "more than a converted"),
        (tmp_path / "home" / "net", tmp_path / "home", "what would be read"),
        (tmp_path / "home" / "net", tmp_path / "home" / "net", "what would be read"),
        (small, tmp_path / "home" / "letter.txt", "is a file"),
        (small, tmp_path / "x.safetensors", "neither a .pth nor a folder"),
        (small, tmp_path / "home" / "letter.txt" / "x", "cannot be written"),
        (tmp_path / "nowhere.pth", tmp_path / "x", "no file or folder"),
        (tmp_path / "home", tmp_path / "x", "holds no transformer"),
    ):
        with pytest.raises(StudioError, match=words):
            convert.convert(source, target, WISH, overwrite=True)
    (tmp_path / "x.pth").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        convert.convert(small, tmp_path / "x.pth", WISH, overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("name", ["made", "made.pth"])
def test_a_full_disk_leaves_what_was_there(
    name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / name
    convert.convert(small, target, WISH)
    before = sorted(tmp_path.rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=32_000_500))
    with pytest.raises(SaveError, match="no space"):
        convert.convert(small, target, WISH, overwrite=True)
    monkeypatch.undo()

    def interrupted(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(small, target, WISH, overwrite=True, report=interrupted)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_reference_reader_agrees_about_sound_files(small: Path, tmp_path: Path) -> None:
    convert.convert(small, tmp_path / "a", WISH)
    file = tmp_path / "a" / "transformer" / WEIGHTS
    ours = headers.read(file)
    with safe_open(file, framework="pt") as theirs:
        assert set(theirs.keys()) == set(ours.tensors)
        for key, found in ours.tensors.items():
            assert tuple(theirs.get_slice(key).get_shape()) == found.shape
