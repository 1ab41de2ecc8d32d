"""A net with a LoRA on it: what is trained is what its file does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from lora_manager import attach, files
from lora_manager.errors import LoraError
from pipelines.catalog import Catalog
from pipelines.errors import RequestError
from tests import tiny
from training.adapter_config import LoraConfig
from training.loop.task import trained
from training.methods import adapted


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    models = tmp_path_factory.mktemp("models")
    tiny.build(models / "tiny")
    return Catalog(user_models=models)


def _net(folder: Path) -> PixArtTransformer2DModel:
    net: PixArtTransformer2DModel = PixArtTransformer2DModel.from_pretrained(folder)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("dora", [False, True])
def test_the_file_is_the_change_that_was_trained(
    dora: bool, catalog: Catalog, tmp_path: Path
) -> None:
    folder = catalog.find("tiny").part("transformer")
    torch.manual_seed(0)
    wanted = LoraConfig(rank=3, alpha=6.0, ranks={"to_q": 2}, dora=dora)
    net = adapted.with_lora(_net(folder), wanted)
    names = [name for name, _ in trained(net)]
    assert names
    assert all(".lora_" in name for name in names)
    with torch.no_grad():
        for _, weight in trained(net):
            # Magnitudes stay near those of the rows; the rest is drawn.
            own = weight if weight.ndim == 1 else torch.zeros_like(weight)
            weight.copy_(own + torch.randn_like(weight) * 0.1)
    files.write(tmp_path / "made.safetensors", adapted.lora_of(net), {})
    made = files.read(tmp_path / "made.safetensors")
    assert made.is_dora == dora
    assert {pair.rank for path, pair in made.pairs.items() if path.endswith("to_q")} == {2}
    assert {pair.rank for path, pair in made.pairs.items() if path.endswith("to_k")} == {3}
    plain = _net(folder)
    given = {
        "encoder_hidden_states": torch.randn(1, 5, plain.config.caption_channels),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        bare = plain(x, **given).sample
        with adapted.without(net):
            assert torch.equal(net(x, **given).sample, bare)
        ours = net.eval()(x, **given).sample
        attach.merge(plain, [("mine", made, 1.0)])
        merged = plain(x, **given).sample
    assert (merged - bare).abs().max() > 1e-3
    torch.testing.assert_close(ours, merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (LoraConfig(rank=49), "larger than the layer transformer_blocks.0.attn1.to_q"),
        (LoraConfig(rank=4, ranks={"to_qq": 8}), "No layer that is trained ends with “to_qq”"),
        (LoraConfig(rank=4, ranks={"ff.net.2": 64}), "larger than the layer"),
    ],
)
def test_ranks_that_fit_no_layer(wanted: LoraConfig, sentence: str, catalog: Catalog) -> None:
    net = _net(catalog.find("tiny").part("transformer"))
    with pytest.raises(RequestError) as caught:
        adapted.with_lora(net, wanted)
    assert sentence in str(caught.value)


def test_rows_of_zeros_have_no_direction(catalog: Catalog) -> None:
    net = _net(catalog.find("tiny").part("transformer"))
    net.transformer_blocks[1].attn2.to_out[0].weight[3] = 0
    with pytest.raises(RequestError, match=r"attn2\.to_out\.0 has rows of zeros") as caught:
        adapted.with_lora(net, LoraConfig(rank=2, dora=True))
    assert "without dora" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_dora_changes_nothing_whatever_the_precision(
    dtype: torch.dtype, catalog: Catalog
) -> None:
    folder = catalog.find("tiny").part("transformer")
    plain = _net(folder).to(dtype)
    net = adapted.with_lora(_net(folder).to(dtype), LoraConfig(rank=2, dora=True))
    found = adapted.lora_of(net)
    merged = _net(folder).to(dtype)
    with pytest.raises(LoraError, match="changes nothing in this model"):
        attach.merge(merged, [("new", found, 1.0)])
    for one, two in zip(merged.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two) if dtype == torch.bfloat16 else torch.allclose(one, two)
    kinds = {weight.requires_grad: weight.dtype for weight in net.parameters()}
    assert kinds == {True: torch.float32, False: dtype}
