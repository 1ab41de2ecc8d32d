"""What a training does on a GPU besides learning, on one that is pretended: features, previews.

The pretended GPU has no backward pass; tests/gpu/test_train.py trains on a real one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import T5Config, T5EncoderModel

from pipelines.models import loader
from pipelines.sizes import Size
from pipelines.text import text_loader
from tests import pretend_gpu, tiny
from tests.pretend_gpu import GPU
from tests.training import small
from tests.training.loop import toy
from training import nets
from training.bases import of_folder
from training.config import RunConfig
from training.data import features, sources
from training.data.sources import Sources
from training.loop.devices import lent
from training.methods import text_to_image
from training.objective import LINEAR
from training.recipes import resolve
from training.sampling import SamplingOptions, paint_classes, sheet

SHAPE = {"heads": 2, "head_dim": 24, "layers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config() -> RunConfig:
    return resolve(small.recipe(), name="small").stage("words")


def read(
    config: RunConfig, model: Path, root: Path, tell: Callable[[str], None] = lambda _: None
) -> Sources:
    if not (root / "data").exists():
        small.pictures(root / "data" / "pictures")
    return Sources(
        config,
        folder=root / "data",
        cache=root / "cache",
        bases={"vae": of_folder(model), "text": of_folder(model)},
        report=lambda _: None,
        tell=tell,
        should_stop=lambda: False,
    )


def free_on_gpu(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(sources, "_device", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)


def test_the_net_of_the_tests_computes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    net = toy.ToyNet()
    batch = {"values": torch.ones(3, toy.WIDTH)}
    wanted = net.eval()(batch, 7, None)["loss"].detach()
    with pretend_gpu.pretend(monkeypatch), torch.no_grad():
        net.to(GPU)
        found = net({"values": batch["values"].to(GPU)}, 7, None)["loss"]
        assert found.device == GPU
        assert torch.equal(found.cpu(), wanted)


def test_latents_are_the_same_and_leave_the_card_free(
    tmp_path: Path, model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = AutoencoderKL.from_pretrained(model / "vae").eval()
    here = read(config, model, tmp_path / "here")
    learning, _ = here.buckets()
    wanted = here.latents(vae, learning)
    there = read(config, model, tmp_path / "there")
    with pretend_gpu.pretend(monkeypatch) as gpu:
        free_on_gpu(monkeypatch, 10**12)
        found = there.latents(vae, learning)
        assert next(vae.parameters()).device.type == "cpu"
    assert gpu.peak > 0
    for bucket in learning:
        for sample in bucket.samples:
            name = features.latent_key(sample, bucket)
            assert torch.equal(found.read(name), wanted.read(name))


def folders(place: Sources) -> list[str]:
    return sorted(folder.name for folder in (place.cache / "features").glob("latents-*"))


def test_latents_are_computed_in_bf16_where_that_is_wanted_and_fast(
    tmp_path: Path, model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that was begun goes on in its precision, whatever this machine would choose."""
    vae = AutoencoderKL.from_pretrained(model / "vae").eval()
    digest = features.weights_digest(model / "vae")
    name = {p: f"latents-{features.latents_id(digest, p)}" for p in ("fp32", "bf16")}
    in_bf16 = config.model_copy(update={"precision": "bf16"})

    def made(root: str, recipe: RunConfig, fast: bool) -> list[str]:
        monkeypatch.setattr(sources, "has_bf16", lambda _: fast)
        place = read(recipe, model, tmp_path / root)
        place.latents(vae, place.buckets()[0])
        return folders(place)

    assert made("old", config, True) == [name["fp32"]]
    assert made("old", in_bf16, True) == [name["fp32"]]
    assert made("slow", in_bf16, False) == [name["fp32"]]
    assert made("new", in_bf16, True) == [name["bf16"]]
    assert made("new", in_bf16, False) == [name["bf16"]]
    # What asks for fp32 never gets the other, and does not take that one's place.
    assert made("new", config, True) == sorted(name.values())
    monkeypatch.setattr(
        features, "add_latents", lambda store, *_, **said: said["precision"] == "bf16"
    )
    assert made("new", in_bf16, False) == sorted(name.values())


@pytest.mark.parametrize("free", [10**12, 10_000])
def test_the_text_encoder_goes_where_there_is_room(
    tmp_path: Path, model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    captions = ["a red disc", "a blue square", ""]
    wanted = read(config, model, tmp_path / "here").texts(captions)
    told: list[str] = []
    there = read(config, model, tmp_path / "there", told.append)
    # As it is loaded here: there is no GPU for the threads of the library that read weights.
    encoder: Any = there.text_encoder()
    monkeypatch.setattr(
        text_loader, "load", lambda _, plan, __: encoder.to(text_loader.device(plan))
    )
    with pretend_gpu.pretend(monkeypatch) as gpu:
        free_on_gpu(monkeypatch, free)
        found = there.texts(captions)
    assert (gpu.peak > 0) == (free > 10_000)
    assert len(told) == (free == 10_000)
    assert all("features of the captions on the processor" in sentence for sentence in told)
    for caption in captions:
        name = features.caption_key(features.tokenize(caption, there.text_row).ids)
        assert torch.equal(found.read(name), wanted.read(name))


def test_a_text_encoder_in_blocks_gives_the_same_features(
    tmp_path: Path, model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not fit as a whole, its blocks come to the GPU one after another, in fp32."""
    captions = ["a red disc", "a blue square", ""]
    deep = shutil.copytree(model, tmp_path / "deep")
    shape = T5Config.from_pretrained(model / "text_encoder")
    shape.num_layers = 8
    T5EncoderModel(shape).save_pretrained(deep / "text_encoder")
    here = read(config, deep, tmp_path / "here")
    wanted = here.texts(captions)
    row = here.text_row
    whole = features.text_bytes(loader.unfilled(row, "text_encoder"), row.tokens)
    told: list[str] = []
    there = read(config, deep, tmp_path / "there", told.append)
    with pretend_gpu.pretend(monkeypatch) as gpu:
        free_on_gpu(monkeypatch, whole - 1)
        found = there.texts(captions)
    assert 0 < gpu.peak < whole
    (sentence,) = told
    assert "its blocks come to the GPU one after another" in sentence
    for caption in captions:
        name = features.caption_key(features.tokenize(caption, row).ids)
        assert torch.equal(found.read(name), wanted.read(name))


@pytest.mark.parametrize("tokens", [20, 120])
def test_what_the_text_encoder_needs(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of the proportions of T5-XXL, the most captions at a time, all of full length."""
    shape: dict[str, Any] = {
        "d_model": 64,
        "d_kv": 32,
        "d_ff": 160,
        "num_layers": 2,
        "num_heads": 2,
    }
    config = T5Config(vocab_size=100, feed_forward_proj="gated-gelu", **shape)
    encoder: Any = T5EncoderModel(config).eval()
    with pretend_gpu.pretend(monkeypatch) as gpu, torch.inference_mode():
        encoder.to(GPU)
        encoder(torch.ones(128, tokens, dtype=torch.long).to(GPU))
    assert 0.8 < gpu.peak / features.text_bytes(encoder, tokens) <= 1


def test_previews_are_the_same_and_leave_the_card_free(
    model: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = AutoencoderKL.from_pretrained(model / "vae").eval()
    torch.manual_seed(0)
    net = nets.pixart(SHAPE, channels=4, sample_size=8, caption_channels=16).eval()
    texts = [torch.randn(5, 16), torch.randn(3, 16)]
    preview = text_to_image._preview(config, net, vae, texts, torch.randn(1, 16), Size(64, 64))
    assert preview is not None
    same(preview, net, vae, monkeypatch)


def test_previews_of_classes_are_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = AutoencoderKL.from_pretrained(model / "vae").eval()
    torch.manual_seed(0)
    net = nets.dit(SHAPE, channels=4, sample_size=8, classes=3).eval()
    options = SamplingOptions(seed=1, steps=2, guidance=4.0, size=Size(64, 64))

    def preview() -> Image.Image:
        with lent(vae, next(net.parameters()).device):
            return sheet(paint_classes(net, vae, [0, 2], options, LINEAR))

    same(preview, net, vae, monkeypatch)


@torch.no_grad()
def same(
    preview: Callable[[], Image.Image],
    net: torch.nn.Module,
    vae: AutoencoderKL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = preview().tobytes()
    with pretend_gpu.pretend(monkeypatch) as gpu:
        net.to(GPU)
        before = gpu.held
        assert preview().tobytes() == wanted
        assert next(vae.parameters()).device.type == "cpu"
        assert next(net.parameters()).device == GPU
        assert gpu.held == before
