"""A LoRA that is merged does what its formula says, and a misfit touches nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from lora_manager import attach, files
from lora_manager.errors import LoraError
from lora_manager.files import Lora, LoraPair
from tests import tiny
from tests.lora_manager import made
from tests.lora_manager.made import Reference


@pytest.fixture(scope="module")
def base() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return tiny.transformer()


@pytest.fixture(scope="module")
def references() -> list[dict[str, Reference]]:
    return [made.reference(), made.reference(seed=1, rank=7, alpha=5.0, outer=False)]


def loaded(reference: dict[str, Reference], folder: Path) -> Lora:
    return files.read(made.f2(reference, folder))


def forward(net: PixArtTransformer2DModel, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    captions = torch.randn(2, 6, 32, generator=generator).to(dtype)
    with torch.no_grad():
        return net(
            latents,
            encoder_hidden_states=captions,
            timestep=torch.tensor([5, 700]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


def changed(
    net: PixArtTransformer2DModel, parts: list[tuple[dict[str, Reference], float]]
) -> PixArtTransformer2DModel:
    """The formula, in float64: W + Σ s · alpha / r · B @ A."""
    made_ = copy.deepcopy(net).double()
    with torch.no_grad():
        for reference, weight in parts:
            for path, one in reference.items():
                made_.get_submodule(path).weight.add_(weight * one.change())
    return made_


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.7, 0.3), (-0.5, 1.2), (0.0, -1.0)])
def test_a_merged_net_paints_as_the_formula_says(
    weights: tuple[float, float],
    base: PixArtTransformer2DModel,
    references: list[dict[str, Reference]],
    tmp_path: Path,
) -> None:
    net = copy.deepcopy(base)
    loras = [("a", loaded(references[0], tmp_path), weights[0])]
    loras += [("b", loaded(references[1], tmp_path), weights[1])]
    assert attach.merge(net, loras) == (27 if weights[0] else 20)
    wanted = changed(base, list(zip(references, weights, strict=True)))
    for (name, value), reference in zip(net.named_parameters(), wanted.parameters(), strict=True):
        assert (value.double() - reference).abs().max() < 1e-5, name
    # The tiny net's numbers grow under so strong a change: compare with their size.
    expected = forward(wanted)
    assert not torch.allclose(expected, forward(base.double()), atol=1e-2)
    base.float()
    error = (forward(net.double()) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_changes_are_rounded_once(
    dtype: torch.dtype,
    base: PixArtTransformer2DModel,
    references: list[dict[str, Reference]],
    tmp_path: Path,
) -> None:
    net = copy.deepcopy(base).to(dtype)
    before = copy.deepcopy(net)
    loras = [
        (name, loaded(reference, tmp_path), weight)
        for name, reference, weight in zip("ab", references, (0.7, -0.4), strict=True)
    ]
    attach.merge(net, loras)
    twice = copy.deepcopy(before)
    for lora in loras:
        attach.merge(twice, [lora])
    exact = changed(before, list(zip(references, (0.7, -0.4), strict=True)))
    off = {"once": 0, "twice": 0}
    for path in references[0]:
        wanted = exact.get_submodule(path).weight.to(dtype)
        for kind, merged in (("once", net), ("twice", twice)):
            found = merged.get_submodule(path).weight
            assert found.dtype == dtype
            off[kind] += int((found != wanted).sum())
    numbers = sum(one.change().numel() for one in references[0].values())
    # float32's own rounding moves a few in a hundred thousand to the other neighbour.
    assert off["once"] < 1e-3 * numbers
    assert off["twice"] > 1e-2 * numbers


def test_the_weights_stay_the_same_tensors(
    base: PixArtTransformer2DModel, references: list[dict[str, Reference]], tmp_path: Path
) -> None:
    net = copy.deepcopy(base)
    before = {name: (id(p), p.data_ptr(), p._version) for name, p in net.named_parameters()}
    attach.merge(net, [("a", loaded(references[1], tmp_path), 1.0)])
    for name, parameter in net.named_parameters():
        same, place, version = before[name]
        assert (id(parameter), parameter.data_ptr()) == (same, place)
        # What watches for changed weights sees these, and those only.
        assert (parameter._version != version) == (
            name.removesuffix(".weight") in references[1] and name.endswith(".weight")
        )
        assert parameter.grad_fn is None


def test_weights_of_inference_mode_are_changed(
    base: PixArtTransformer2DModel, references: list[dict[str, Reference]], tmp_path: Path
) -> None:
    with torch.inference_mode():
        net = copy.deepcopy(base)
    path = "transformer_blocks.0.attn1.to_q"
    before = net.get_submodule(path).weight.clone()
    attach.merge(net, [("a", loaded(references[1], tmp_path), 1.0)])
    assert not torch.equal(net.get_submodule(path).weight, before)


def bits(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def unchanged(net: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_nothing_and_weight_0_change_nothing(
    base: PixArtTransformer2DModel, references: list[dict[str, Reference]], tmp_path: Path
) -> None:
    before = bits(base)
    assert attach.merge(base, []) == 0
    assert attach.merge(base, [("a", loaded(references[0], tmp_path), 0.0)]) == 0
    assert unchanged(base, before)


def single(path: str, rows: int, columns: int, scale: float = 1.0) -> Lora:
    pair = LoraPair(down=torch.ones(2, columns) * scale, up=torch.ones(rows, 2))
    return Lora(pairs={path: pair})


Q = "transformer_blocks.1.attn1.to_q"
MISFITS: dict[str, tuple[Lora, float, str]] = {
    "wider": (
        single(Q, 1152, 1152),
        1.0,
        "The LoRA “bad” does not fit this model: it changes layers that are 1152 wide, this"
        " model's are 48",
    ),
    "weight 0": (single(Q, 1152, 1152), 0.0, "does not fit"),
    "taller": (single(Q, 96, 48), 1.0, f"it changes “{Q}” of 96×48, this model's is of 48×48"),
    "more blocks": (
        single("transformer_blocks.2.attn1.to_q", 48, 48),
        1.0,
        "changes “transformer_blocks.2.attn1.to_q”, which this model does not have",
    ),
    "sizes": (
        single("adaln_single.emb.resolution_embedder.linear_1", 16, 256),
        1.0,
        "which this model does not have",
    ),
    "no layer": (single("transformer_blocks", 48, 48), 1.0, "which this model does not have"),
    "no convolution": (single("pos_embed.proj", 48, 16), 1.0, "this model's is of 48×4×2×2"),
    "too strong": (single(Q, 48, 48, 1e38), 4.0, f"change “{Q}” so strongly that the result"),
    "not a number": (single(Q, 48, 48), float("nan"), "weight of the LoRA “bad” is nan"),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_a_misfit_changes_nothing(
    fault: str,
    base: PixArtTransformer2DModel,
    references: list[dict[str, Reference]],
    tmp_path: Path,
) -> None:
    bad, weight, words = MISFITS[fault]
    before = bits(base)
    with pytest.raises(LoraError, match=words):
        attach.merge(base, [("good", loaded(references[0], tmp_path), 1.0), ("bad", bad, weight)])
    assert unchanged(base, before)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1e-12], "The LoRA “a” changes nothing in this model: rounded to the precision"),
        ([1.0, -1.0], "Together, the LoRAs change nothing in this model"),
    ],
)
def test_what_has_no_effect_is_said(
    weights: list[float],
    said: str,
    base: PixArtTransformer2DModel,
    references: list[dict[str, Reference]],
    tmp_path: Path,
) -> None:
    net = copy.deepcopy(base).half()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lora = loaded(references[0], tmp_path)
    with pytest.raises(LoraError, match=said):
        attach.merge(net, [(name, lora, w) for name, w in zip("ab", weights, strict=False)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_float16_cannot_hold_is_refused(base: PixArtTransformer2DModel) -> None:
    net = copy.deepcopy(base).half()
    before = bits(net)
    with pytest.raises(LoraError, match="not finite"):
        attach.merge(net, [("a", single(Q, 48, 48, 1e5), 1.0)])
    assert unchanged(net, before)
    # Large numbers that do fit are no fault.
    assert attach.merge(net, [("a", single(Q, 48, 48, 2e4), 1.0)]) == 1


def test_quantised_and_absent_weights_are_refused(base: PixArtTransformer2DModel) -> None:
    net = copy.deepcopy(base)
    layer = net.get_submodule(Q)
    layer.weight = torch.nn.Parameter(torch.ones(48, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(LoraError, match="are quantised or not loaded"):
        attach.merge(net, [("a", single(Q, 48, 48), 1.0)])
    layer.weight = torch.nn.Parameter(torch.ones(48, 48, device="meta"))
    with pytest.raises(LoraError, match="are quantised or not loaded"):
        attach.merge(net, [("a", single(Q, 48, 48), 1.0)])
