"""Every form that is written is read back, by us and where it is a package by its own code."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.loaders import PeftAdapterMixin
from peft import PeftModel
from safetensors.torch import load_file

from lora_manager import attach, card, export, files, forms
from lora_manager.errors import LoraError
from lora_manager.files import Lora, LoraPair
from tests import tiny
from tests.lora_manager import made
from tests.lora_manager.test_attach import forward

ROOT = Path(__file__).resolve().parents[2]
SAID = {"title": "Ink", "trigger": "in ink", "licence": "CC0", "base": "alpha-512"}


@pytest.fixture
def lora(tmp_path: Path) -> Lora:
    """Of different ranks by layer, and without the value of the first block."""
    one, two = made.reference(), made.reference(1, rank=7, alpha=5.0)
    mixed = {path: (one if n % 3 else two)[path] for n, path in enumerate(one)}
    del mixed["transformer_blocks.0.attn1.to_v"]
    folder = tmp_path / "source"
    folder.mkdir()
    return files.read(made.f5(mixed, folder))


def written(lora: Lora, name: str, folder: Path, **given: Any) -> Path:
    form = forms.find(name)
    target = forms.target(form, folder / ("ink" if form.folder else "ink.safetensors"), "ink")
    export.write(lora, form, target, card.metadata(SAID), base="alpha-512", **given)
    return target


def same(one: Lora, other: Lora, limit: float = 1e-5) -> None:
    assert set(one.pairs) == set(other.pairs)
    for path, pair in one.pairs.items():
        wanted = pair.change().double()
        error = (other.pairs[path].change().double() - wanted).norm() / wanted.norm()
        assert error <= limit, path


@pytest.mark.parametrize("name", forms.FORMS)
def test_what_is_exported_is_read_back(name: str, lora: Lora, tmp_path: Path) -> None:
    target = written(lora, name, tmp_path)
    again = files.read(target)
    assert again.notes == ()
    same(lora, again)
    file = target / "adapter_model.safetensors" if target.is_dir() else target
    found = card.read(file, "ink")
    assert (found.title, found.trigger, found.licence, found.base) == tuple(SAID.values())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", forms.FORMS)
def test_keys_are_those_of_the_form(name: str, tmp_path: Path) -> None:
    """As the trainers' own files have them (`made`), of one LoRA with all layers."""
    makers = {
        "diffusers": made.f1,
        "peft": made.f3,
        "kohya": made.f6,
        "comfyui": made.f8,
        "original": made.f7,
    }
    source = tmp_path / "source"
    source.mkdir()
    given = makers[name](made.reference(), source)
    target = written(files.read(given), name, tmp_path)
    where = [
        path / "adapter_model.safetensors" if path.is_dir() else path for path in (given, target)
    ]
    theirs, ours = map(load_file, where)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].numel() == value.numel(), key


@pytest.mark.parametrize("rank", [4, 9])
def test_a_fused_file_comes_out_as_small_as_it_came(rank: int, tmp_path: Path) -> None:
    """Where q, k and v share their down half, it is written once."""
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(rank, 48, generator=generator)
    ups = [torch.randn(48, rank, generator=generator) for _ in "qkv"]
    paths = [f"transformer_blocks.0.attn1.to_{letter}" for letter in "qkv"]
    lora = Lora(pairs={p: LoraPair(down=down, up=up) for p, up in zip(paths, ups, strict=True)})
    tensors = load_file(written(lora, "comfyui", tmp_path))
    assert tensors["diffusion_model.blocks.0.attn.qkv.lora_A.weight"].shape == (rank, 48)
    assert float(tensors["diffusion_model.blocks.0.attn.qkv.alpha"]) == rank
    same(lora, files.read(tmp_path / "ink.safetensors"))


def test_a_fused_layer_keeps_the_strength(tmp_path: Path) -> None:
    """Three ranks side by side: the alpha grows with them, so that the factor stays 1."""
    reference = made.reference(rank=4, alpha=2.0, outer=False)
    lora = files.read(made.f2(reference, tmp_path))
    tensors = load_file(written(lora, "kohya", tmp_path))
    key = "lora_unet_blocks_1_attn_qkv"
    assert tensors[f"{key}.lora_down.weight"].shape == (12, 48)
    assert float(tensors[f"{key}.alpha"]) == 12
    product = (
        tensors[f"{key}.lora_up.weight"].double() @ tensors[f"{key}.lora_down.weight"].double()
    )
    wanted = torch.cat([reference[f"transformer_blocks.1.attn1.to_{x}"].change() for x in "qkv"])
    assert (product - wanted).norm() / wanted.norm() < 1e-5


def test_peft_itself_loads_the_folder(lora: Lora, tmp_path: Path) -> None:
    net = tiny.transformer()
    ours = copy.deepcopy(net)
    attach.merge(ours, [("ink", lora, 1.0)])
    wanted = forward(ours.double())
    target = written(lora, "peft", tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(net), str(target))
    layers = [n for n, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert len(layers) == len(lora.pairs), "peft is silent about layers that it does not find"
    found = forward(theirs.merge_and_unload().double())
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-5
    assert (forward(net.double()) - wanted).abs().max() > 1e-2


class _WithAdapters(PixArtTransformer2DModel, PeftAdapterMixin):
    """diffusers gives PixArt no loader of LoRAs; this is what its other nets have."""


def test_diffusers_itself_loads_the_file(lora: Lora, tmp_path: Path) -> None:
    net = tiny.transformer()
    ours = copy.deepcopy(net)
    attach.merge(ours, [("ink", lora, 0.5)])
    wanted = forward(ours.double())
    target = written(lora, "diffusers", tmp_path)
    theirs: Any = copy.deepcopy(net)
    theirs.__class__ = _WithAdapters
    theirs.load_lora_adapter(
        str(tmp_path), weight_name=target.name, prefix="transformer", adapter_name="ink"
    )
    layers = [n for n, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert len(layers) == len(lora.pairs)
    theirs.set_adapters(["ink"], [0.5])
    found = forward(theirs.double())
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-5


def test_the_target_is_a_file_or_a_folder_that_is_there(tmp_path: Path) -> None:
    kohya, peft = forms.find("kohya"), forms.find("peft")
    assert forms.target(kohya, tmp_path, "ink") == tmp_path / "ink.safetensors"
    assert forms.target(peft, tmp_path / "new", "ink") == tmp_path / "new"
    with pytest.raises(LoraError, match=r"“ink.pt” does not end with .safetensors"):
        forms.target(kohya, tmp_path / "ink.pt", "ink")
    for bad in (tmp_path / "no" / "ink.safetensors", Path("x\0y/ink.safetensors")):
        with pytest.raises(LoraError, match="There is no folder"):
            forms.target(kohya, bad, "ink")
    with pytest.raises(LoraError, match=r"“xxx.*…” is no name that a file can have"):
        forms.target(kohya, tmp_path / f"{'x' * 300}.safetensors", "ink")
    with pytest.raises(
        LoraError, match=r"no form of LoRA files called “koya”\. Did you mean “kohya”"
    ):
        forms.find("koya")


@pytest.mark.parametrize("name", forms.FORMS)
def test_what_is_there_is_replaced_only_when_asked(name: str, lora: Lora, tmp_path: Path) -> None:
    target = written(lora, name, tmp_path)
    with pytest.raises(LoraError, match=r"exists\. Take another name"):
        written(lora, name, tmp_path)
    same(lora, files.read(target))
    small = Lora(pairs=dict(list(lora.pairs.items())[:3]))
    written(small, name, tmp_path, replace=True)
    same(small, files.read(target))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, "source"])


def test_somebody_elses_folder_is_never_replaced(lora: Lora, tmp_path: Path) -> None:
    folder = tmp_path / "ink"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(LoraError, match="exists"):
        written(lora, "peft", tmp_path, replace=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    written(lora, "peft", tmp_path)
    assert len(list(folder.iterdir())) == 2
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(LoraError, match="exists"):
        export.write(lora, forms.find("peft"), link, {}, replace=True)


@pytest.mark.parametrize("name", forms.FORMS)
def test_a_full_disk_leaves_what_was_there(
    name: str, lora: Lora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = written(lora, name, tmp_path)

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(LoraError, match="no space left on the disk"):
            written(Lora(pairs=dict(list(lora.pairs.items())[:3])), name, tmp_path, replace=True)
    same(lora, files.read(target))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, "source"])


def test_the_configuration_of_peft_is_one_of_the_model(lora: Lora, tmp_path: Path) -> None:
    config = json.loads((written(lora, "peft", tmp_path) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "alpha-512"
    assert (config["peft_type"], config["use_dora"], config["use_rslora"]) == ("LORA", False, False)
    assert set(config["target_modules"]) == set(lora.pairs)


def test_pieces_of_other_sizes_are_not_fused(tmp_path: Path) -> None:
    pairs = {
        f"transformer_blocks.0.attn1.to_{x}": LoraPair(
            down=torch.ones(1, wide), up=torch.ones(wide, 1)
        )
        for x, wide in (("q", 48), ("k", 96))
    }
    with pytest.raises(LoraError, match=r"parts of “blocks\.0\.attn\.qkv” have different sizes"):
        written(Lora(pairs=pairs), "original", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_form_is_documented() -> None:
    text = (ROOT / "docs" / "loras.md").read_text("utf-8")
    for form in forms.FORMS.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{form.name}` |"))
        assert form.read_by in row.replace("`", "")
        assert all(part in row.replace("`", "") for part in form.written.split(" and "))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kohya", "peft"])
def test_what_a_killed_export_left_goes_with_the_next(
    name: str, lora: Lora, tmp_path: Path
) -> None:
    """Killed in the middle of writing: what was there is whole."""
    folder = tmp_path / "out"
    folder.mkdir()
    target = written(lora, name, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    child = (
        "import os, signal, sys; from pathlib import Path; from lora_manager import export, files, "
        "forms\n"
        "def save(stream, tensors, metadata):\n"
        "    stream.write(b'x' * 5000); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.save = save; form = forms.find(sys.argv[1])\n"
        "lora = files.read(Path(sys.argv[2]))\n"
        "export.write(lora, form, Path(sys.argv[2]), {}, replace=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, name, str(target)], check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert len([path for path in folder.iterdir() if path.name.startswith(".")]) == 1
    kept = {path: path.read_bytes() for path in before}
    assert kept == before
    written(lora, name, folder, replace=True)
    assert [path.name for path in folder.iterdir()] == [target.name]
    same(lora, files.read(target))
