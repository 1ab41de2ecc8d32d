"""DoRAs: what trainers write is read, applied as their formula says, and written again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_manager import algebra, attach, card, export, files, forms
from lora_manager.errors import LoraError
from lora_manager.files import Lora, LoraPair
from tests import tiny
from tests.lora_manager import made
from tests.lora_manager.made import Reference, Tensors
from tests.lora_manager.test_attach import forward
from tests.lora_manager.test_export import _WithAdapters

Sizes = dict[str, Tensor]
CONV = made.CONV[0]


@pytest.fixture(scope="module")
def base() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return tiny.transformer()


def sizes_of(reference: dict[str, Reference], base: Any, columns: bool = False) -> Sizes:
    """Magnitudes near those of the weights: (out, 1), or (1, in) of `columns`."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for path in reference:
        weight = base.get_submodule(path).weight.detach()
        kept = 1 if columns else 0
        along = tuple(axis for axis in range(weight.ndim) if axis != kept)
        sizes = torch.linalg.vector_norm(weight, dim=along, keepdim=True)
        found[path] = sizes * (0.7 + 0.6 * torch.rand(sizes.shape, generator=generator))
    return found


def turned(weight: Tensor, one: Reference, sizes: Tensor) -> Tensor:
    """m * (W + s B A) / |W + s B A| in float64."""
    whole = weight.double() + one.change().double()
    along = tuple(axis for axis, count in enumerate(sizes.shape) if count == 1)
    return sizes.double() * whole / whole.square().sum(dim=along, keepdim=True).sqrt()


def of_peft(reference: dict[str, Reference], sizes: Sizes, folder: Path) -> Path:
    made.f3(reference, folder, use_dora=True)
    file = folder / "adapter_model.safetensors"
    own = {f"base_model.model.{p}.lora_magnitude_vector": s.flatten() for p, s in sizes.items()}
    if CONV in sizes:
        own[f"base_model.model.{CONV}.lora_magnitude_vector"] = sizes[CONV].transpose(0, 1)
    save_file(load_file(file) | {k: v.contiguous() for k, v in own.items()}, file)
    return folder


def of_peft_with_ends(reference: dict[str, Reference], sizes: Sizes, folder: Path) -> Path:
    of_peft(reference, sizes, folder)
    file = folder / "adapter_model.safetensors"
    ends = "lora_magnitude_vector"
    state = {k.replace(ends, f"{ends}.default.weight"): v for k, v in load_file(file).items()}
    save_file(state, file)
    return folder


def of_onetrainer(
    reference: dict[str, Reference], sizes: Sizes, folder: Path, name: str = "dora_scale"
) -> Path:
    file = made.f5(reference, folder)
    own: Tensors = {
        f"lora_transformer_{p.replace('.', '_')}.{name}": s.clone() for p, s in sizes.items()
    }
    save_file(load_file(file) | own, file)
    return file


def of_lycoris(reference: dict[str, Reference], sizes: Sizes, folder: Path) -> Path:
    file = of_onetrainer(reference, sizes, folder)
    state = {
        key.replace("lora_transformer_", "lycoris_"): value
        for key, value in load_file(file).items()
        if key.startswith("lora_transformer_")
    }
    save_file(state, file)
    return file


def of_ai_toolkit(reference: dict[str, Reference], sizes: Sizes, folder: Path) -> Path:
    flat = {path: value if path == CONV else value.flatten() for path, value in sizes.items()}
    return of_onetrainer(reference, flat, folder, "magnitude")


def of_kohya(reference: dict[str, Reference], sizes: Sizes, folder: Path) -> Path:
    """q, k and v in one, and their magnitudes behind one another."""
    file = made.f6(reference, folder)
    joined: dict[str, list[Tensor]] = {}
    for path, value in sizes.items():
        joined.setdefault(made.ORIGINAL[path], []).append(value)
    own = {
        f"lora_unet_{name.replace('.', '_')}.dora_scale": torch.cat(parts)
        for name, parts in joined.items()
    }
    save_file(load_file(file) | own, file)
    return file


Maker = Callable[[dict[str, Reference], Sizes, Path], Path]
MAKERS: dict[str, tuple[Maker, bool]] = {
    "PEFT": (of_peft, False),
    "PEFT, whole names": (of_peft_with_ends, False),
    "OneTrainer": (of_onetrainer, False),
    "OneTrainer, columns": (of_onetrainer, True),
    "LyCORIS": (of_lycoris, False),
    "LyCORIS, columns": (of_lycoris, True),
    "ai-toolkit": (of_ai_toolkit, False),
    "kohya": (of_kohya, False),
}


def check_weights(net: Any, base: Any, wanted: dict[str, Tensor], limit: float = 1e-5) -> None:
    for path, value in wanted.items():
        found = net.get_submodule(path).weight.double()
        error = (found - value).norm() / (value - base.get_submodule(path).weight).norm()
        assert error < limit, path


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("factor", [1.0, 0.5, -0.5])
def test_it_is_applied_as_its_formula_says(
    maker: str, factor: float, base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    """A weight is a share of its whole change."""
    make, columns = MAKERS[maker]
    reference = made.reference()
    sizes = sizes_of(reference, base, columns)
    file = make(reference, sizes, tmp_path)
    lora = files.read(file)
    assert lora.is_dora
    net = copy.deepcopy(base)
    assert attach.merge(net, [("d", lora, factor)]) == len(reference)
    wanted = {}
    for path, one in reference.items():
        weight = base.get_submodule(path).weight.detach().double()
        wanted[path] = weight + factor * (turned(weight, one, sizes[path]) - weight)
    check_weights(net, base, wanted)
    source = file / "adapter_model.safetensors" if file.is_dir() else file
    assert card.read(source, "d").is_dora


def test_several_are_each_a_change_of_the_model(
    base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    """In any order, beside a plain LoRA, and at 0 not at all."""
    reference, plain = made.reference(), made.reference(1, outer=False)
    sizes = sizes_of(reference, base)
    dora = files.read(of_onetrainer(reference, sizes, tmp_path))
    other = files.read(made.f2(plain, tmp_path))
    nets = []
    for order in ([("a", dora, 0.6), ("b", other, 0.8)], [("b", other, 0.8), ("a", dora, 0.6)]):
        net = copy.deepcopy(base)
        attach.merge(net, [*order, ("c", dora, 0.0)])
        nets.append(net)
    wanted = {}
    for path, one in reference.items():
        weight = base.get_submodule(path).weight.detach().double()
        change = 0.6 * (turned(weight, one, sizes[path]) - weight)
        if path in plain:
            change = change + 0.8 * plain[path].change().double()
        wanted[path] = weight + change
    for net in nets:
        check_weights(net, base, wanted)
    untouched = copy.deepcopy(base)
    assert attach.merge(untouched, [("a", dora, 0.0)]) == 0
    assert all(
        torch.equal(one, two)
        for one, two in zip(untouched.parameters(), base.parameters(), strict=True)
    )


def test_a_row_of_zeros_stays_one_and_no_number_is_lost(tmp_path: Path) -> None:
    weight = torch.zeros(48, 48)
    one = Reference(torch.zeros(4, 48), torch.zeros(48, 4), 4.0)
    path = "transformer_blocks.0.attn1.to_q"
    lora = files.read(of_lycoris({path: one}, {path: torch.ones(48, 1)}, tmp_path))
    # Its magnitudes are a change, whatever its product is.
    assert lora.notes == ()
    assert torch.equal(
        attach.added(path, weight, [("d", lora, 1.0)], torch.float32), torch.zeros(48, 48)
    )


def linear(reference: dict[str, Reference]) -> dict[str, Reference]:
    return {path: one for path, one in reference.items() if path != CONV}


def written(lora: Lora, name: str, folder: Path) -> Path:
    form = forms.find(name)
    target = forms.target(form, folder / ("out" if form.folder else "out.safetensors"), "out")
    export.write(lora, form, target, {})
    return target


@pytest.fixture
def lora(base: PixArtTransformer2DModel, tmp_path: Path) -> Lora:
    reference = linear(made.reference())
    folder = tmp_path / "source"
    folder.mkdir()
    return files.read(of_onetrainer(reference, sizes_of(reference, base), folder))


@pytest.mark.parametrize("name", forms.FORMS)
def test_every_form_holds_it(
    name: str, lora: Lora, base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    again = files.read(written(lora, name, tmp_path))
    assert again.notes == ()
    assert set(again.pairs) == set(lora.pairs)
    nets = []
    for one in (lora, again):
        net = copy.deepcopy(base)
        attach.merge(net, [("d", one, 1.0)])
        nets.append(net)
    wanted = {path: nets[0].get_submodule(path).weight.double() for path in lora.pairs}
    check_weights(nets[1], base, wanted)


def same_sizes(lora: Lora, pairs: Mapping[str, LoraPair]) -> bool:
    """Whether both have the same magnitudes in the same layers."""
    return all(
        (one is None and two is None)
        or (one is not None and two is not None and torch.equal(one, two))
        for one, two in ((lora.pairs[p].magnitude, pair.magnitude) for p, pair in pairs.items())
    )


def test_a_form_that_cannot_hold_it_is_named(
    base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    reference = linear(made.reference())
    columns = files.read(of_lycoris(reference, sizes_of(reference, base, True), tmp_path))
    outer = {path: pair for path, pair in columns.pairs.items() if "blocks" not in path}
    for name in ("diffusers", "peft"):
        with pytest.raises(LoraError, match=f"does not measure rows alone.*the form {name}"):
            written(columns, name, tmp_path)
    for name in ("kohya", "comfyui", "original"):
        with pytest.raises(LoraError, match=r"measures the columns of “blocks\.0\.attn\.qkv”"):
            written(columns, name, tmp_path)
    # Where nothing is fused, columns can be written.
    again = files.read(written(Lora(pairs=outer), "kohya", tmp_path))
    assert same_sizes(again, outer)


def test_a_part_of_a_fused_layer_is_not_guessed(lora: Lora, tmp_path: Path) -> None:
    some = {path: pair for path, pair in lora.pairs.items() if not path.endswith("attn1.to_v")}
    with pytest.raises(LoraError, match=r"has not all parts of “blocks\.0\.attn\.qkv”"):
        written(Lora(pairs=some), "comfyui", tmp_path)
    mixed = dict(lora.pairs)
    first = next(iter(mixed))
    mixed[first] = LoraPair(down=mixed[first].down, up=mixed[first].up)
    with pytest.raises(LoraError, match="in some of its layers only"):
        written(Lora(pairs=mixed), "peft", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_library_keeps_every_kind(base: PixArtTransformer2DModel, tmp_path: Path) -> None:
    """Also what PEFT's names cannot hold: columns, and magnitudes of some layers only."""
    reference = made.reference()
    sizes = sizes_of(reference, base, True)
    kept = files.read(of_lycoris(reference, dict(list(sizes.items())[:5]), tmp_path))
    file = tmp_path / "kept.safetensors"
    files.write(file, kept, {})
    again = files.read(file)
    assert all(torch.equal(again.pairs[path].up, pair.up) for path, pair in kept.pairs.items())
    assert sum(pair.magnitude is not None for pair in kept.pairs.values()) == 5
    assert same_sizes(again, kept.pairs)


def test_peft_itself_loads_the_folder(
    lora: Lora, base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    ours = copy.deepcopy(base)
    attach.merge(ours, [("d", lora, 1.0)])
    wanted = forward(ours.double())
    target = written(lora, "peft", tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(target))
    found = [name for name, _ in theirs.named_parameters() if "lora_magnitude_vector" in name]
    assert len(found) == len(lora.pairs)
    painted = forward(theirs.double())
    assert (painted - wanted).abs().max() / wanted.abs().max() < 1e-5


def test_diffusers_itself_loads_the_file(
    lora: Lora, base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    ours = copy.deepcopy(base)
    attach.merge(ours, [("d", lora, 1.0)])
    wanted = forward(ours.double())
    target = written(lora, "diffusers", tmp_path)
    theirs: Any = copy.deepcopy(base)
    theirs.__class__ = _WithAdapters
    theirs.load_lora_adapter(
        str(tmp_path), weight_name=target.name, prefix="transformer", adapter_name="d"
    )
    found = forward(theirs.double())
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-5


def test_what_needs_the_model_is_refused_without_it(lora: Lora, tmp_path: Path) -> None:
    plain = files.read(made.f2(made.reference(outer=False), tmp_path))
    with pytest.raises(LoraError, match=r"“d” is a DoRA.*cannot be merged as a file\. Bake it"):
        algebra.merged([("p", plain, 1.0), ("d", lora, 0.5)])
    with pytest.raises(LoraError, match=r"is a DoRA.*cannot be resized"):
        algebra.reduced(lora, 2)
    with pytest.raises(LoraError, match=r"is a DoRA.*cannot be resized"):
        algebra.losses(lora)
    with pytest.raises(LoraError, match=r"The second LoRA is a DoRA.*cannot be compared"):
        algebra.compared(plain, lora)
    # What is not used does not matter.
    assert algebra.merged([("p", plain, 1.0), ("d", lora, 0.0)]).pairs


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("other rows", (47, 1), r"has magnitudes of “.*to_q” in the shape 47×1\."),
        ("a matrix", (48, 48), "in the shape 48×48"),
        ("a number", (), "in the shape of one number"),
        ("nothing", (0, 1), "in the shape 0×1"),
    ],
)
def test_magnitudes_that_fit_no_weight(
    name: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    path = "transformer_blocks.0.attn1.to_q"
    one = Reference(torch.ones(4, 48), torch.ones(48, 4), 4.0)
    file = of_onetrainer({path: one}, {path: torch.ones(shape)}, tmp_path)
    for reads in (lambda: files.read(file), lambda: card.read(file, "x")):
        with pytest.raises(LoraError, match=words):
            reads()


def test_columns_of_a_fused_layer_are_refused(tmp_path: Path) -> None:
    reference = {
        path: one for path, one in made.reference(outer=False).items() if "attn1.to_" in path
    }
    file = made.f6(reference, tmp_path)
    key = "lora_unet_blocks_0_attn_qkv.dora_scale"
    save_file(load_file(file) | {key: torch.ones(1, 48)}, file)
    with pytest.raises(LoraError, match="measures the columns of “blocks_0_attn_qkv”"):
        files.read(file)


def test_too_strong_magnitudes_change_nothing(
    base: PixArtTransformer2DModel, tmp_path: Path
) -> None:
    reference = linear(made.reference())
    sizes = {path: torch.full((len(one.b), 1), 1e30) for path, one in reference.items()}
    lora = files.read(of_onetrainer(reference, sizes, tmp_path))
    net = copy.deepcopy(base).half()
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(LoraError, match="so strongly that the result is not finite"):
        attach.merge(net, [("d", lora, 1.0)])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
