"""What is not read: other adapters, other nets, damaged and hostile files. One sentence each."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_manager import card, files, headers, sources
from lora_manager.errors import LoraError
from tests.lora_manager import made

Q = "transformer_blocks.0.attn1.to_q"
PAIR: dict[str, tuple[int, ...]] = {
    f"transformer.{Q}.lora_A.weight": (4, 48),
    f"transformer.{Q}.lora_B.weight": (48, 4),
}


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def saved(file: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file(tensors(shapes), file)
    return file


FLAT = "lora_transformer_transformer_blocks_0_attn1_to_q"
SD_TEXT = "_attentions_0_transformer_blocks_0_attn2_to_k"
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "half a DoRA": ({f"transformer.{Q}.dora_scale": (48, 1)}, "lacks the down"),
    "LoKr, F10": ({"lycoris_transformer_blocks_0_attn1_to_q.lokr_w1": (4, 4)}, "is a LoKr"),
    "LoKr, F11": ({f"transformer.{Q}.lokr_w1": (4, 4)}, "is a LoKr"),
    "LoKr of ai-toolkit": ({f"{FLAT}.lokr_w2_a": (4, 4)}, "is a LoKr"),
    "LoHa": ({f"{FLAT}.hada_w1_a": (4, 4)}, "is a LoHa"),
    "OFT": ({f"{FLAT}.oft_blocks": (4, 4)}, "is an OFT"),
    "BOFT": ({f"transformer.{Q}.boft_R": (4, 4)}, "is an OFT"),
    "LoCon with a middle": (
        {
            "lycoris_pos_embed_proj.lora_down.weight": (4, 4, 1, 1),
            "lycoris_pos_embed_proj.lora_mid.weight": (4, 4, 2, 2),
            "lycoris_pos_embed_proj.lora_up.weight": (48, 4, 1, 1),
        },
        "is a LoCon with a middle",
    ),
    "whole differences": ({f"diffusion_model.{Q}.diff": (48, 48)}, "of whole differences"),
    "biases": ({**PAIR, f"transformer.{Q}.lora_B.bias": (48,)}, "changes biases, too"),
    "Stable Diffusion": (
        {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)},
        r"is a LoRA for another kind of model \(Stable Diffusion\): it has “lora_unet_down",
    ),
    "SDXL": ({"lora_unet_input_blocks_4_1_proj_in.alpha": (1,)}, r"\(Stable Diffusion\)"),
    "SD 1.5 of kohya": (
        {f"lora_unet_down_blocks_0{SD_TEXT}.lora_down.weight": (4, 768)},
        r"another kind of model \(Stable Diffusion 1\.5\)",
    ),
    "SD 1.5 of old diffusers": (
        {"unet.mid_block.attentions.0.attn2.processor.to_k_lora.down.weight": (4, 768)},
        r"\(Stable Diffusion 1\.5\)",
    ),
    "SD 2": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": (4, 1024)},
        r"\(Stable Diffusion 2\)",
    ),
    "SDXL of kohya": (
        {f"lora_unet_input_blocks_4_1{SD_TEXT[13:]}.lora_down.weight": (4, 2048)},
        r"another kind of model \(SDXL\)",
    ),
    "SDXL without texts": (
        {"lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q.alpha": ()},
        r"\(SDXL\)",
    ),
    "SDXL by its second text encoder": (
        {"lora_unet_mid_block_x.alpha": (), "lora_te2_x.lora_down.weight": (4, 4)},
        r"\(SDXL\)",
    ),
    "FLUX": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)},
        r"another kind of model \(FLUX\)",
    ),
    "FLUX of kohya": ({"lora_unet_double_blocks_0_img_attn_proj.alpha": (1,)}, r"\(FLUX\)"),
    "SD 3": ({"diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": (4, 9)}, "sion 3"),
    "Qwen": ({"transformer_blocks.0.attn.add_q_proj.lora_A.weight": (4, 9)}, "another kind of mo"),
    "a language model": (
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 9)},
        "another kind of model: it has",
    ),
    "a whole PixArt": ({f"{Q}.weight": (48, 48), "x": (1,)}, "is not a LoRA .it begins with “"),
    "one unknown": ({**PAIR, "transformer.to_q.lora_A.weight": (4, 48)}, "has a tensor that no"),
    "two unknown": (
        {**PAIR, "transformer.x.lora_A.weight": (4, 4), "transformer.x.lora_B.weight": (4, 4)},
        "has 2 tensors that no LoRA for PixArt has; the first is “transformer.x.lora_A.weight”",
    ),
    "a ControlNet's": (
        {"controlnet.0.copied_block.attn.qkv.lora_A.weight": (4, 48)},
        "that no LoRA for PixArt has",
    ),
    "saved layers": ({**PAIR, "base_model.model.proj_out.weight": (32, 48)}, "has a tensor that"),
    "same role twice": (
        {**PAIR, f"transformer.{Q}.lora_down.weight": (4, 48)},
        "has a tensor that no LoRA",
    ),
    "one half": ({f"{Q}.lora_A.weight": (4, 48)}, r"lacks the up \(B\) half of “transformer_bl"),
    "other half": ({f"{Q}.lora_B.weight": (48, 4)}, r"lacks the down \(A\) half"),
    "alpha alone": ({**PAIR, f"{FLAT}.alpha": ()}, r"lacks the down \(A\) half"),
    "twice": (
        {**PAIR, f"{FLAT}.lora_down.weight": (4, 48), f"{FLAT}.lora_up.weight": (48, 4)},
        f"changes “{Q}” twice",
    ),
    "fused and split": (
        {
            **PAIR,
            "blocks.0.attn.qkv.lora_A.weight": (4, 48),
            "blocks.0.attn.qkv.lora_B.weight": (144, 4),
        },
        "twice",
    ),
    "other ranks": (
        {**PAIR, f"transformer.{Q}.lora_B.weight": (48, 5)},
        "tensors of 4×48 and 48×5",
    ),
    "rank 0": (
        {f"{Q}.lora_A.weight": (0, 48), f"{Q}.lora_B.weight": (48, 0)},
        "no LoRA has that",
    ),
    "no matrix": ({f"{Q}.lora_A.weight": (4,), f"{Q}.lora_B.weight": (48, 4)}, "no LoRA has that"),
    "a linear convolution": (
        {"pos_embed.proj.lora_A.weight": (4, 16), "pos_embed.proj.lora_B.weight": (48, 4)},
        "no LoRA has that",
    ),
    "not divisible": (
        {"blocks.0.attn.qkv.lora_A.weight": (4, 48), "blocks.0.attn.qkv.lora_B.weight": (145, 4)},
        "no LoRA has that",
    ),
    "alpha of two": ({**PAIR, f"transformer.{Q}.alpha": (2,)}, "is not one number"),
    "text encoder alone": ({"lora_te_x.lora_down.weight": (4, 4)}, "changes only the text encoder"),
    "text encoder of peft": ({"text_encoder.x.lora_A.weight": (4, 4)}, "only the text encoder"),
    "words alone": ({"bundle_emb.dog.t5": (4, 4)}, "changes only words"),
    "nothing": ({}, "is empty"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused_by_their_names(kind: str, tmp_path: Path) -> None:
    shapes, words = OTHERS[kind]
    file = saved(tmp_path / "x.safetensors", shapes)
    for reads in (lambda: files.read(file), lambda: card.read(file, "x")):
        with pytest.raises(LoraError, match=words) as caught:
            reads()
        assert "“x.safetensors”" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "is a DoRA, and some of its layers have no magnitudes"),
    "LoKr": ({"peft_type": "LOKR"}, "is a LOKR of PEFT, which is not read"),
    "odd type": ({"peft_type": 7}, "is a 7 of PEFT"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "was begun by pissa_niter_4"),
    "other rank": ({"r": 8}, "has the rank 4 in “transformer_blocks.*configuration says 8"),
    "rank 0": ({"r": 0}, "notes a rank below 1"),
    "rank of a pattern": ({"rank_pattern": {"to_q": -1}}, "notes a rank below 1"),
    "words": ({"lora_alpha": "x"}, "notes x as lora_alpha, which is no number"),
    "truth": ({"lora_alpha": True}, "notes True as lora_alpha"),
    "infinite": ({"lora_alpha": 10**400}, "which is no number"),
    "NaN": ({"lora_alpha": float("nan")}, "notes nan as lora_alpha"),
    "expression": ({"alpha_pattern": {"(a+)+$": 1}}, r"names layers by “\(a\+\)\+\$”"),
    "no table": ({"alpha_pattern": [1]}, "no table as alpha_pattern"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_other_configurations_are_refused(fault: str, tmp_path: Path) -> None:
    change, words = CONFIGS[fault]
    made.f3(made.reference(outer=False), tmp_path, **change)
    with pytest.raises(LoraError, match=words):
        files.read(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    noted = {f"transformer.{key}": value for key, value in values.items()}
    state = load_file(tmp_path / "adapter_model.safetensors")
    state = {key.replace("base_model.model", "transformer"): v for key, v in state.items()}
    save_file(state, tmp_path / "f1.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    with pytest.raises(LoraError, match=words):
        files.read(tmp_path / "f1.safetensors")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "\udcff", '{"r":' + "9" * 9999])
def test_a_damaged_configuration_is_said(text: str, tmp_path: Path) -> None:
    made.f3(made.reference(outer=False), tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LoraError, match=r"adapter_config\.json of the LoRA is damaged"):
        files.read(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}" + " " * 2_000_000)
    with pytest.raises(LoraError, match="far too long"):
        files.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (f"{Q}.lora_A.weight", torch.full((4, 48), torch.nan), "not finite"),
        (f"{Q}.lora_B.weight", torch.full((48, 4), torch.inf), "not finite"),
        (f"{Q}.alpha", torch.tensor(torch.nan), "has nan as “transformer_blocks"),
        (f"{Q}.alpha", torch.tensor(1e20), "which is no strength"),
        (f"{Q}.lora_A.weight", torch.full((4, 48), 1e300, dtype=torch.float64), "not finite"),
        (f"{Q}.lora_B.weight", torch.full((48, 4), 1e35), "not finite"),
        (f"{Q}.lora_A.weight", torch.ones(4, 48, dtype=torch.int32), "stored as int32"),
        (f"{Q}.lora_A.weight", torch.ones(4, 48, dtype=torch.int8), "stored as I8"),
        (f"{Q}.lora_A.weight", torch.ones(4, 48).to(torch.float8_e4m3fn), "type F8_E4M3"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_numbers_that_are_none_are_refused(
    key: str, value: Tensor, words: str, suffix: str, tmp_path: Path
) -> None:
    state = {f"{Q}.lora_A.weight": torch.ones(4, 48), f"{Q}.lora_B.weight": torch.ones(48, 4)}
    state |= {f"{Q}.alpha": torch.tensor(1e6), key: value}
    file = tmp_path / f"x.{suffix}"
    if suffix == "bin":
        torch.save(state, file)
        words = {"type F8_E4M3": "float8|untyped|asks for", "stored as I8": "asks for|int8"}.get(
            words, words
        )
    else:
        save_file(state, file)
    with pytest.raises(LoraError, match=words):
        files.read(file)


# Hostile headers.


def header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**change: Any) -> bytes:
    return json.dumps({"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}).encode()


MANY = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(25_000)}
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "does not fit"),
    "length 2^63": (header(b"{}", length=2**63), "does not fit"),
    "length over the file": (header(b"{}", length=3), "does not fit"),
    "length 0": (header(b"{}", length=0), "does not fit"),
    "long header": (header(b"{" + b" " * headers.MAX_HEADER_BYTES + b"}"), "too long"),
    "not JSON": (header(b"{nope}"), "not JSON"),
    "JSON list": (header(b"[1, 2]"), "not JSON"),
    "not text": (header(b"{\xff\xfe}"), "not JSON"),
    "deep JSON": (header(b'{"a":' + b"[" * 200_000), "not JSON"),
    "twice": (header(b'{"a":' + entry() + b',"a":' + entry() + b"}", bytes(8)), "twice"),
    "overlap": (
        header(b'{"a":' + entry() + b',"b":' + entry(data_offsets=[4, 12]) + b"}", bytes(12)),
        "overlap",
    ),
    "gap": (header(b'{"a":' + entry(data_offsets=[4, 12]) + b"}", bytes(12)), "gap"),
    "negative": (header(b'{"a":' + entry(data_offsets=[-8, 0]) + b"}", bytes(8)), "lies at"),
    "one place": (header(b'{"a":' + entry(data_offsets=[8]) + b"}", bytes(8)), "lies at"),
    "beyond": (
        header(b'{"a":' + entry(shape=[2**40], data_offsets=[0, 2**42]) + b"}", bytes(8)),
        "cut off",
    ),
    "dtype": (header(b'{"a":' + entry(dtype="F8_E4M3") + b"}", bytes(8)), "F8_E4M3"),
    "dtype of a list": (header(b'{"a":' + entry(dtype=["F32"]) + b"}", bytes(8)), "type"),
    "overflow": (header(b'{"a":' + entry(shape=[2**62, 4]) + b"}", bytes(8)), "shape"),
    "truths": (header(b'{"a":' + entry(shape=[True, 2]) + b"}", bytes(8)), "shape"),
    "nine dimensions": (header(b'{"a":' + entry(shape=[1] * 8 + [2]) + b"}", bytes(8)), "shape"),
    "Infinity": (header(b'{"a":{"shape":[Infinity]}}'), "Infinity"),
    "endless number": (header(b'{"a":{"shape":[' + b"9" * 10_000 + b"]}}"), "not JSON"),
    "many tensors": (header(json.dumps(MANY).encode()), "lists 25,000"),
    "trailing bytes": (header(b'{"a":' + entry() + b"}", bytes(20)), "belong to none"),
    "missing bytes": (header(b'{"a":' + entry() + b"}", bytes(4)), "cut off"),
    "metadata of numbers": (header(b'{"__metadata__":{"a":1}}'), "metadata"),
    "metadata of a list": (header(b'{"__metadata__":[]}'), "metadata"),
    "extras": (header(b'{"a":' + entry(code="x") + b"}", bytes(8)), "not described"),
    "no table": (header(b'{"a":1}'), "not described"),
    "bare pickle": (pickle.dumps({}), "not a sound safetensors"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_hostile_header_is_one_sentence(fault: str, tmp_path: Path) -> None:
    data, words = HEADERS[fault]
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    for reads in (lambda: files.read(file), lambda: card.read(file, "x")):
        with pytest.raises(LoraError, match=words) as caught:
            reads()
        assert len(str(caught.value)) < 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def read_or_refused(file: Path) -> None:
    for reads in (lambda: files.read(file), lambda: card.read(file, "x")):
        try:
            reads()
        except LoraError as error:
            assert "\n" not in str(error)


@given(st.binary(max_size=200), st.booleans(), st.sampled_from(["safetensors", "bin"]))
@settings(max_examples=150)
def test_any_bytes_are_refused(place: Path, data: bytes, framed: bool, suffix: str) -> None:
    file = place / f"any.{suffix}"
    file.write_bytes(header(b"{" + data) if framed else data)
    with pytest.raises(LoraError):
        files.read(file)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
SOUND = {
    f"transformer.{Q}.lora_A.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    f"transformer.{Q}.lora_B.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [24, 56]},
    f"transformer.{Q}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [56, 60]},
}


@given(
    key=st.sampled_from(list(SOUND)) | st.text(max_size=30),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "", "name", "metadata"]),
    value=VALUES,
    small=st.lists(st.integers(0, 60), max_size=5),
    use_small=st.booleans(),
)
@settings(max_examples=250)
def test_a_mutated_header_is_read_or_refused(
    place: Path, key: str, field: str, value: Any, small: list[int], use_small: bool
) -> None:
    table: dict[str, Any] = json.loads(json.dumps(SOUND))
    changed = small if use_small else value
    if field == "metadata":
        table["__metadata__"] = changed
        if isinstance(changed, str):
            table["__metadata__"] = {"lora_adapter_metadata": changed}
    elif field == "name":
        table[key] = table.pop(next(iter(table)))
    elif key in table and field:
        table[key][field] = changed
    else:
        table[key] = changed
    file = place / "mutated.safetensors"
    file.write_bytes(header(json.dumps(table).encode(), bytes(60)))
    read_or_refused(file)


def test_the_header_that_is_mutated_is_sound(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(header(json.dumps(SOUND).encode(), bytes(60)))
    assert files.read(file).pairs[Q].shape == (4, 3)


# Pickles. Each would leave this mark if a line of its code ran.


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def zipped(folder: Path, data: bytes, **how: Any) -> Path:
    file = folder / "x.bin"
    with zipfile.ZipFile(file, "w", **how) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
    return file


def bare_pickle(folder: Path) -> Path:
    (folder / "x.bin").write_bytes(pickle.dumps(Runs(folder / "mark")))
    return folder / "x.bin"


def in_checkpoint(folder: Path) -> Path:
    return zipped(folder, pickle.dumps({"a": Runs(folder / "mark")}, protocol=2))


def beside_weights(folder: Path) -> Path:
    torch.save({**tensors(PAIR), "x": Runs(folder / "mark")}, folder / "x.pt")
    return folder / "x.pt"


def legacy(folder: Path) -> Path:
    state = {**tensors(PAIR), "x": Runs(folder / "mark")}
    torch.save(state, folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def hashed_for_hours(folder: Path) -> Path:
    """A key that is a tuple of twice a tuple of twice …"""
    data = b"\x80\x02}(K\x01\x85q\x00"
    for level in range(60):
        data += b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return zipped(folder, data + b"K\x01u.")


def overruns_the_stack(folder: Path) -> Path:
    return zipped(folder, b"\x80\x02}(K\x01" + b"\x85" * 1_000_000 + b"K\x01u.")


def expanded(folder: Path) -> Path:
    """Four bytes that claim to be two terabytes."""
    state = {**tensors(PAIR), f"transformer.{Q}.lora_A.weight": torch.zeros(1).expand(2**30, 2**9)}
    torch.save(state, folder / "x.bin")
    return folder / "x.bin"


def counted_for_hours(folder: Path) -> Path:
    """A key that is a tuple of very many times one long tuple."""
    data = (
        b"\x80\x02}((" + b"K\x01" * 200_000 + b"tq\x00" + b"0(" + b"h\x00" * 200_000 + b"tK\x01u."
    )
    return zipped(folder, data)


def one_for_all(folder: Path) -> Path:
    """Many tensors that are views of one."""
    one = torch.zeros(64, 48)
    state = {
        f"transformer.transformer_blocks.{i}.attn1.to_q.lora_A.weight": one for i in range(200)
    }
    torch.save(state, folder / "x.bin")
    return folder / "x.bin"


def saves(root: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        torch.save(root, folder / "x.bin")
        return folder / "x.bin"

    return save


def flipped(folder: Path) -> Path:
    file = saves(tensors({**PAIR, "x": (4000,)}))(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def half(folder: Path) -> Path:
    file = saves(tensors(PAIR))(folder)
    file.write_bytes(file.read_bytes()[:700])
    return file


PICKLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "bare": (bare_pickle, "is a bare pickle, which can run code"),
    "legacy": (legacy, "bare pickle"),
    "in a checkpoint": (in_checkpoint, "asks for “posix.system”, which weights never need"),
    "beside weights": (beside_weights, "asks for “posix.system”"),
    "code of protocol 4": (
        lambda folder: zipped(folder, pickle.dumps({"a": Runs(folder / "mark")}, protocol=4)),
        "is pickled by protocol 4",
    ),
    "named safetensors": (
        lambda folder: in_checkpoint(folder).rename(folder / "x.safetensors"),
        "asks for “posix.system”",
    ),
    "hashed for hours": (hashed_for_hours, "is nested as no weights are"),
    "overruns the stack": (overruns_the_stack, "is nested"),
    "counted for hours": (counted_for_hours, "is nested"),
    "one for all": (one_for_all, "claims more numbers than it holds"),
    "expanded": (expanded, "claims more numbers"),
    "deflate bomb": (
        lambda folder: zipped(folder, bytes(10**7), compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "huge pickle": (
        lambda folder: zipped(folder, b"\x80\x02" + b"N0" * 1_500_000 + b"N."),
        "far more structure",
    ),
    "a list": (saves([1, 2]), "holds no table"),
    "a number": (saves({"a": 1}), "holds “a”, which is no tensor"),
    "no names": (saves({1: torch.ones(1)}), "not one of tensors by name"),
    "of truths": (saves({"a": torch.ones(1).bool()}), "asks for “torch.BoolStorage”"),
    "one bit flipped": (flipped, "damaged"),
    "cut": (half, "damaged"),
    "empty pickle": (lambda folder: zipped(folder, b""), "damaged|can read"),
    "a zip": (lambda folder: other_zip(folder), "not a checkpoint of torch"),
}


def other_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.pt", "w") as archive:
        archive.writestr("model.safetensors", b"x")
    return folder / "x.pt"


@pytest.mark.parametrize("fault", PICKLES)
def test_a_hostile_pickle_is_one_sentence(fault: str, tmp_path: Path) -> None:
    make, words = PICKLES[fault]
    file = make(tmp_path)
    with pytest.raises(LoraError, match=words) as caught:
        files.read(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "mark").exists()


def test_the_hostile_pickles_do_run_where_they_are_let(tmp_path: Path) -> None:
    """So that the mark above means something."""
    pickle.loads(bare_pickle(tmp_path).read_bytes())
    assert (tmp_path / "mark").exists()


@given(st.data())
@settings(max_examples=60)
def test_a_mutated_pickle_is_read_or_refused(place: Path, data: st.DataObject) -> None:
    file = place / "mutated.bin"
    torch.save(tensors(PAIR), place / "whole.bin")
    with zipfile.ZipFile(place / "whole.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    changed = bytearray(entries[name])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(file, "w") as archive:
        for other, content in entries.items():
            archive.writestr(other, bytes(changed) if other == name else content)
    try:
        files.read(file)
    except LoraError as error:
        assert "\n" not in str(error)


# Places.


def test_what_is_no_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraError, match="folder “empty” holds no LoRA"):
        files.read(tmp_path / "empty")
    for name in ("pipe.safetensors", "nowhere", "a\0b", "x" * 300):
        with pytest.raises(LoraError, match=r"is not a file|cannot be read"):
            files.read(tmp_path / name)
        with pytest.raises(LoraError, match=r"is not a file|cannot be read"):
            card.read(tmp_path / name, "x")
    for name in ("a", "b"):
        saved(tmp_path / "empty" / f"{name}.safetensors", PAIR)
    with pytest.raises(LoraError, match="holds 2 files that may be one"):
        files.read(tmp_path / "empty")
    (tmp_path / "empty" / "b.safetensors").unlink()
    assert set(files.read(tmp_path / "empty").pairs) == {Q}
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(LoraError, match=r"has 0\.0 GB, far more than a LoRA has"):
        files.read(tmp_path / "empty")
