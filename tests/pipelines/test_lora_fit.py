"""A LoRA that was made for something else is refused with the name of what it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_manager.card import LoraCard
from pipelines import lora_fit
from pipelines.catalog import Catalog
from pipelines.errors import RequestError

CATALOG = Catalog()
ALPHA = CATALOG.default
SIGMA = ALPHA.model_copy(update={"id": "my-sigma", "family": "sigma"})


def card(base: str, width: int = 384) -> LoraCard:
    return LoraCard(name="dog", file=Path("dog"), size=1, rank=4, modules=1, width=width, base=base)


@pytest.mark.parametrize(
    ("base", "family"),
    [
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "sigma"),
        ("PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", "sigma"),
        ("pixart sigma", "sigma"),
        ("sigma-1024", "sigma"),
        ("PixArt-Σ", "sigma"),
        ("PixArt-alpha/PixArt-XL-2-512x512", "alpha"),
        ("PixArt-alpha/PixArt-alpha", "alpha"),
        ("pixart-alpha/lora", "alpha"),
        ("/models/PixArt-XL-2-1024-MS", "alpha"),
        ("alpha-512", "alpha"),
        ("nano", "alpha"),
        ("my-finetune", ""),
        ("", ""),
    ],
)
def test_the_other_family_is_refused_by_name(base: str, family: str) -> None:
    for model in (ALPHA, SIGMA):
        if family in ("", model.family):
            lora_fit.check(card(base), model, CATALOG)
            continue
        names = {"alpha": "PixArt-α", "sigma": "PixArt-Σ"}
        with pytest.raises(RequestError) as caught:
            lora_fit.check(card(base), model, CATALOG)
        assert str(caught.value).startswith(
            f"The LoRA “dog” was made for {names[family]} ({base}), and “{model.id}” is"
            f" {names[model.family]}."
        )


def test_loras_of_two_families_do_not_belong_together() -> None:
    together = [card("alpha-512"), card("alpha-1024"), card(""), card("my-finetune")]
    lora_fit.check_together(together, CATALOG)
    with pytest.raises(RequestError) as caught:
        lora_fit.check_together([*together, card("sigma-1024")], CATALOG)
    assert str(caught.value) == (
        "These LoRAs were not made for one model: “dog” for PixArt-α (alpha-512) and “dog” for"
        " PixArt-Σ (sigma-1024). Take LoRAs of one family."
    )
    with pytest.raises(RequestError, match=r"made for Sana \(sana_1600m\), which is no PixArt"):
        lora_fit.check_together([card("sana_1600m")], CATALOG)


def test_a_model_of_ones_own_says_its_family() -> None:
    class WithMine(Catalog):
        def __iter__(self):
            return iter((ALPHA, SIGMA))

    with pytest.raises(RequestError, match=r"made for PixArt-Σ \(my-sigma\)"):
        lora_fit.check(card("my-sigma"), ALPHA, WithMine())


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("Efficient-Large-Model/Sana_600M_1024px_diffusers", "Sana"),
        ("Lightricks/LTX-Video", "LTX-Video"),
    ],
)
def test_nets_with_the_same_names_of_layers_are_refused(base: str, name: str) -> None:
    with pytest.raises(RequestError, match=f"made for {name} .*, which is no PixArt"):
        lora_fit.check(card(base), ALPHA, CATALOG)


def test_another_width_is_refused() -> None:
    with pytest.raises(RequestError, match="layers that are 1152 wide; those of “nano” are 384"):
        lora_fit.check(card("", 1152), ALPHA, CATALOG)
    # One that changes none of the layers that tell.
    lora_fit.check(card("", 0), ALPHA, CATALOG)
