"""Every family of files gives the same change of every layer, and what is written comes back."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_manager import card, files, sources, targets
from lora_manager.errors import LoraError
from lora_manager.files import Lora, LoraPair
from tests.lora_manager import made
from tests.lora_manager.made import Reference


def check(lora: Lora, reference: dict[str, Reference], alpha: float | None = None) -> None:
    assert set(lora.pairs) == set(reference)
    for path, one in reference.items():
        pair = lora.pairs[path]
        assert pair.down.dtype == pair.up.dtype == torch.float32
        wanted = one.change(alpha)
        assert pair.shape == tuple(wanted.shape)
        assert (pair.change().double() - wanted).abs().max() < 1e-6, path


@pytest.mark.parametrize("family", made.FAMILIES)
def test_every_family_gives_the_same_changes(family: str, tmp_path: Path) -> None:
    reference = made.reference()
    lora = files.read(made.FAMILIES[family](reference, tmp_path))
    check(lora, reference)
    guessed = [note for note in lora.notes if "alpha" in note]
    assert guessed == []
    left_out = [note for note in lora.notes if "left out" in note]
    assert len(left_out) == (2 if family == "F5" else 0)
    # Fused layers come apart at the rank that they were made of.
    assert {pair.rank for pair in lora.pairs.values()} == {made.RANK}


@pytest.mark.parametrize("family", ["F1", "F2", "F3", "F5"])
def test_every_layer_may_have_a_rank_and_an_alpha_of_its_own(family: str, tmp_path: Path) -> None:
    reference = made.reference(outer=False)
    other = made.reference(seed=1, rank=7, alpha=1.0, outer=False)
    for path in list(reference)[3:9]:
        reference[path] = other[path]
    check(files.read(made.FAMILIES[family](reference, tmp_path)), reference)


def test_a_fused_layer_with_one_shared_half_comes_apart(tmp_path: Path) -> None:
    torch.manual_seed(3)
    a, b = torch.randn(4, 48), torch.randn(144, 4)
    stem = "diffusion_model.blocks.1.attn.qkv"
    tensors = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    save_file(tensors | {f"{stem}.alpha": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    lora = files.read(tmp_path / "x.safetensors")
    found = [lora.pairs[f"transformer_blocks.1.attn1.to_{n}"].change() for n in "qkv"]
    assert torch.allclose(torch.cat(found), 0.5 * b @ a, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_numbers_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    reference = made.reference()
    rounded = {
        p: Reference(r.a.to(dtype).float(), r.b.to(dtype).float(), r.alpha)
        for p, r in reference.items()
    }
    file = made.f6(rounded, tmp_path)
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
    check(files.read(file), rounded)


@pytest.mark.parametrize("name", ["{}.lora.down.weight", "{}.lora_A.default.weight"])
def test_older_spellings_are_read(name: str, tmp_path: Path) -> None:
    path = "transformer_blocks.0.attn1.to_q"
    a, b = torch.randn(2, 48), torch.randn(48, 2)
    key = name.format(f"transformer.{path}")
    up = key.replace("down", "up").replace("lora_A", "lora_B")
    save_file({key: a, up: b}, tmp_path / "x.safetensors")
    assert torch.allclose(files.read(tmp_path / "x.safetensors").pairs[path].change(), b @ a)


# The alpha trap: where it is noted, what wins, and what is assumed.


def only_attention(rank: int = made.RANK) -> dict[str, Reference]:
    return made.reference(outer=False, rank=rank)


def without_config(reference: dict[str, Reference], folder: Path) -> Path:
    made.f3(reference, folder)
    (folder / "adapter_config.json").unlink()
    return folder


def with_config(reference: dict[str, Reference], folder: Path) -> Path:
    made.config(folder, reference)
    return made.f4(reference, folder)


def without_alphas(make: made.Maker) -> made.Maker:
    def save(reference: dict[str, Reference], folder: Path) -> Path:
        file = make(reference, folder)
        tensors = {k: v for k, v in load_file(file).items() if not k.endswith("alpha")}
        save_file(tensors, file)
        return file

    return save


# The alpha that is taken for rank 16, and words of the note.
TRAPS: dict[str, tuple[made.Maker, bool, float, str]] = {
    "F4": (made.f4, True, 8, "taken as 8"),
    "F4, attention only": (made.f4, False, 8, "taken as 8"),
    "F4 beside its configuration": (with_config, True, made.ALPHA, ""),
    "F3 without configuration": (without_config, True, 8, "taken as 8"),
    "F3 without it, attention only": (without_config, False, 16, "json is missing"),
    "F1 without metadata": (without_alphas(made.f1), True, 16, ""),
    "F2 without metadata": (without_alphas(made.f2), True, 16, ""),
    "F5 without alpha": (without_alphas(made.f5), True, 16, "taken as its rank"),
    "F6 without alpha": (without_alphas(made.f6), True, 16, "taken as its rank"),
    "F7 without alpha": (without_alphas(made.f7), True, 16, ""),
    "F9 without alpha": (without_alphas(made.f9), True, 8, "taken as 8"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_the_alpha_trap(trap: str, tmp_path: Path) -> None:
    make, outer, alpha, words = TRAPS[trap]
    reference = made.reference(outer=outer, rank=16)
    source = make(reference, tmp_path)
    lora = files.read(source)
    check(lora, reference, alpha)
    notes = [note for note in lora.notes if "left out" not in note]
    assert len(notes) == bool(words)
    assert all(words in note for note in notes)
    # The card says so, too, without reading a tensor.
    assert card.read(sources.weights_file(source), "x").notes == lora.notes


def test_an_alpha_tensor_wins_over_the_metadata(tmp_path: Path) -> None:
    reference = only_attention()
    tensors = made.peft_names(reference, "transformer.")
    tensors |= {f"transformer.{p}.alpha": torch.tensor(1.0) for p in reference}
    noted = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 9})}
    save_file(tensors, tmp_path / "x.safetensors", noted)
    check(files.read(tmp_path / "x.safetensors"), reference, 1.0)


def test_metadata_wins_over_a_configuration(tmp_path: Path) -> None:
    reference = only_attention()
    made.f2(reference, tmp_path)
    made.config(tmp_path, reference, lora_alpha=64)
    check(files.read(tmp_path / "bare.safetensors"), reference)


def test_one_layer_without_alpha_is_taken_as_its_rank(tmp_path: Path) -> None:
    reference = only_attention()
    file = made.f5(reference, tmp_path)
    tensors = load_file(file)
    del tensors["lora_transformer_transformer_blocks_0_ff_net_2.alpha"]
    save_file(tensors, file)
    old = reference["transformer_blocks.0.ff.net.2"]
    reference["transformer_blocks.0.ff.net.2"] = Reference(old.a, old.b, 4.0)
    lora = files.read(file)
    check(lora, reference)
    assert "1 of its layers do not say" in lora.notes[-1]


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("to_q", ["0.attn1.to_q", "0.attn2.to_q", "1.attn1.to_q", "1.attn2.to_q"]),
        ("attn1.to_q", ["0.attn1.to_q", "1.attn1.to_q"]),
        (r"^transformer_blocks\.1\.attn1\.to_q$", ["1.attn1.to_q"]),
        ("^attn1.to_q", []),
        ("o_q", []),
    ],
)
def test_patterns_name_the_end_of_a_path(pattern: str, hits: list[str], tmp_path: Path) -> None:
    reference = only_attention()
    expected = dict(reference)
    for hit in hits:
        path = f"transformer_blocks.{hit}"
        expected[path] = Reference(reference[path].a, reference[path].b, 50.0)
    check(files.read(made.f3(reference, tmp_path, alpha_pattern={pattern: 50})), expected)


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    reference = only_attention()
    alphas = {"attn1.to_q": 50, "to_q": 60}
    lora = files.read(made.f3(reference, tmp_path, alpha_pattern=alphas))
    for path, alpha in (("attn1.to_q", 50), ("attn2.to_q", 60), ("attn1.to_k", 3)):
        full = f"transformer_blocks.0.{path}"
        wanted = reference[full].change(alpha)
        assert (lora.pairs[full].change() - wanted).abs().max() < 1e-5


# Writing.


def equal(one: Lora, other: Lora, dtype: torch.dtype) -> None:
    assert list(one.pairs) == list(other.pairs)
    for path, pair in one.pairs.items():
        assert torch.equal(pair.down.to(dtype).float(), other.pairs[path].down)
        assert torch.equal(pair.up.to(dtype).float(), other.pairs[path].up)


def halved(lora: Lora) -> Lora:
    """Numbers that float16 holds."""
    return Lora(
        pairs={
            path: LoraPair(down=pair.down.half().float(), up=pair.up.half().float())
            for path, pair in lora.pairs.items()
        }
    )


def dtypes(file: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(file).values()}


def test_a_file_of_float32_loses_nothing(tmp_path: Path) -> None:
    lora = files.read(made.f1(made.reference(alpha=4.0), tmp_path))
    files.write(tmp_path / "a.safetensors", lora, {})
    assert dtypes(tmp_path / "a.safetensors") == {torch.float32}
    written = files.read(tmp_path / "a.safetensors")
    for path, one in made.reference(alpha=4.0).items():
        assert torch.equal(written.pairs[path].down, one.a)
        assert torch.equal(written.pairs[path].up, one.b)


@pytest.mark.parametrize(("alpha", "kept"), [(2.0, torch.float16), (3.0, torch.float32)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_float16_stays_one_where_its_strength_can_be_held(
    dtype: torch.dtype, alpha: float, kept: torch.dtype, tmp_path: Path
) -> None:
    file = made.f5(only_attention(), tmp_path)
    tensors = {key: value.to(dtype) for key, value in load_file(file).items()}
    tensors |= {k: torch.tensor(alpha) for k in tensors if k.endswith("alpha")}
    tensors = {k: v for k, v in tensors.items() if k.endswith("alpha") or v.abs().max() < 2**9}
    # Below 2^-14 float16 has fewer digits than bfloat16.
    tensors = {k: torch.where(v.abs() < 2**-10, 0, v) for k, v in tensors.items()}
    save_file(tensors, file)
    lora = files.read(file)
    files.write(tmp_path / "a.safetensors", lora, {})
    # A factor of 3/4 takes float16 two more digits; bfloat16's eight leave room for them.
    held = torch.float16 if dtype is torch.bfloat16 else kept
    assert dtypes(tmp_path / "a.safetensors") == {held}
    equal(lora, files.read(tmp_path / "a.safetensors"), torch.float32)


def test_an_import_says_what_it_took_for_granted(tmp_path: Path) -> None:
    """PixArt's script notes neither alpha nor rsLoRA; with a configuration both are known."""
    reference = made.reference(rank=16)
    file = made.f4(reference, tmp_path)
    (note,) = files.read(file).notes
    assert "taken as 8" in note
    assert "--use_rslora it is 4 times too weak" in note
    assert card.short(note) == note
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "use_rslora": true}')
    lora = files.read(file)
    assert lora.notes == ()
    # As the documentation says: alpha 8 over the root of 16.
    check(lora, reference, 8 * 4)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    lora = files.read(made.f6(made.reference(), tmp_path))
    lora = Lora(pairs=dict(sorted(lora.pairs.items())))
    lora = halved(lora)
    files.write(tmp_path / "a.safetensors", lora, {"modelspec.title": "Dog"})
    again = files.read(tmp_path / "a.safetensors")
    equal(lora, again, torch.float32)
    assert again.notes == ()
    files.write(tmp_path / "b.safetensors", again, {"modelspec.title": "Dog"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", "pt") as found:
        assert {found.get_tensor(key).dtype for key in found.keys()} == {torch.float16}
        assert found.metadata()["modelspec.title"] == "Dog"
        assert found.metadata()["format"] == "pt"


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_numbers_that_float16_cannot_hold_are_written_as_float32(
    scale: float, tmp_path: Path
) -> None:
    lora = files.read(made.f2(only_attention(), tmp_path))
    first = next(iter(lora.pairs))
    pairs = {**lora.pairs}
    pairs[first] = LoraPair(down=pairs[first].down * scale, up=pairs[first].up)
    changed = Lora(pairs=dict(sorted(pairs.items())))
    files.write(tmp_path / "a.safetensors", changed, {})
    equal(changed, files.read(tmp_path / "a.safetensors"), torch.float32)


def test_pieces_that_share_memory_are_written(tmp_path: Path) -> None:
    down = torch.randn(4, 48)
    up = torch.randn(144, 4)
    paths = targets.paths_of("blocks.0.attn.qkv")
    pairs = {p: LoraPair(down=down, up=b) for p, b in zip(paths, up.chunk(3), strict=True)}
    pairs = dict(sorted(pairs.items()))
    files.write(tmp_path / "a.safetensors", Lora(pairs=pairs), {})
    equal(Lora(pairs=pairs), files.read(tmp_path / "a.safetensors"), torch.float32)


def test_the_names_and_the_metadata_are_those_of_diffusers(tmp_path: Path) -> None:
    """As `diffusers.loaders.peft` takes them: prefix off, then straight into PEFT's LoraConfig."""
    from diffusers.utils.state_dict_utils import _load_sft_state_dict_metadata

    reference = only_attention()
    odd = "transformer_blocks.1.ff.net.2"
    reference[odd] = made.reference(rank=6, outer=False)[odd]
    lora = files.read(made.f2(reference, tmp_path))
    files.write(tmp_path / "a.safetensors", lora, {})
    keys = set(load_file(tmp_path / "a.safetensors"))
    assert keys == {f"transformer.{p}.lora_{half}.weight" for p in reference for half in "AB"}
    metadata = _load_sft_state_dict_metadata(str(tmp_path / "a.safetensors"))
    own = {key.removeprefix("transformer."): value for key, value in metadata.items()}
    assert all(key.startswith("transformer.") for key in metadata)
    assert own == {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": sorted(reference),
        "rank_pattern": {odd: 6},
        "alpha_pattern": {odd: 6},
    }


def test_writing_leaves_nothing_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = files.read(made.f2(only_attention(), tmp_path))
    folder = tmp_path / "new"
    folder.mkdir()
    target = folder / "a.safetensors"

    def fails(code: int) -> Callable[..., None]:
        def raising(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        return raising

    for name, code, words in (
        ("fsync", errno.ENOSPC, "no space left"),
        ("fsync", errno.EIO, "cannot be written"),
        ("replace", errno.EACCES, "cannot be written"),
    ):
        for before in (None, b"old"):
            if before:
                target.write_bytes(before)
            with monkeypatch.context() as patch:
                patch.setattr(os, name, fails(code))
                with pytest.raises(LoraError, match=words):
                    files.write(target, lora, {})
            assert [file.name for file in folder.iterdir()] == [target.name] * bool(before)
            assert not before or target.read_bytes() == before
        target.unlink()
    with pytest.raises(LoraError, match="cannot be written"):
        files.write(tmp_path / "nowhere" / "a.safetensors", lora, {})
    target.write_bytes(b"old")
    with pytest.raises(LoraError, match="exists"):
        files.write(target, lora, {}, replace=False)
    assert target.read_bytes() == b"old"
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(LoraError, match="changes nothing"):
        files.write(target, Lora(pairs={}), {})


def test_a_disk_without_links_takes_a_new_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = files.read(made.f2(only_attention(), tmp_path))

    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    files.write(tmp_path / "a.safetensors", lora, {}, replace=False)
    assert set(files.read(tmp_path / "a.safetensors").pairs) == set(lora.pairs)
    with pytest.raises(LoraError, match="exists"):
        files.write(tmp_path / "a.safetensors", lora, {}, replace=False)
    assert not [file for file in tmp_path.iterdir() if re.search("part", file.name)]


@pytest.mark.parametrize("what", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_one_that_changes_nothing_says_so(what: str, tmp_path: Path) -> None:
    file = made.f6(made.reference(), tmp_path)
    zeroed = {k: v * 0 if k.endswith(what) else v for k, v in load_file(file).items()}
    save_file(zeroed, file)
    (note,) = files.read(file).notes
    assert note.startswith("It changes nothing")


def test_a_fused_layer_of_which_one_piece_is_changed_is_one_layer(tmp_path: Path) -> None:
    file = made.f6(made.reference(), tmp_path)
    tensors = load_file(file)
    tensors["lora_unet_blocks_0_attn_qkv.lora_up.weight"][48:] = 0
    save_file(tensors, file)
    pairs = files.read(file).pairs
    assert "transformer_blocks.0.attn1.to_q" in pairs
    assert not {"transformer_blocks.0.attn1.to_k", "transformer_blocks.0.attn1.to_v"} & set(pairs)
