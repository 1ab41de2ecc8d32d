"""Features on disk: right, computed once, never of another VAE, whole after any kill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import T5EncoderModel

from pipelines import pictures
from pipelines.catalog import Catalog, ModelSpec
from pipelines.denoising.latents import to_tensor
from pipelines.errors import TrainingError
from pipelines.sizes import Size
from tests import tiny
from tests.training import small
from training.data import features, lint
from training.data.buckets import Bucket, assign, crop
from training.data.manifest import Manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    root = tmp_path_factory.mktemp("models")
    tiny.build(root / "tiny")
    return Catalog(user_models=root).find("tiny")


@pytest.fixture(scope="module")
def vae(model: ModelSpec) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(model.folder / "vae").eval()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return lint.scan(
        small.pictures(tmp_path / "pictures"), lint.PictureRules(near_duplicates=False)
    )


def buckets(manifest: Manifest) -> list[Bucket]:
    return assign(manifest.samples, (Size(64, 64), Size(96, 64)), minimum=1)


def add(
    folder: Path,
    vae: AutoencoderKL,
    manifest: Manifest,
    should_stop: Callable[[], bool] = lambda: False,
    precision: features.Precision = "fp32",
) -> features.FeatureStore:
    store = features.FeatureStore(folder)
    features.add_latents(
        store,
        vae,
        manifest,
        buckets(manifest),
        precision=precision,
        report=lambda _: None,
        should_stop=should_stop,
    )
    return store


def test_latents_are_the_unscaled_mode_of_the_cropped_picture(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest
) -> None:
    store = add(tmp_path / "f", vae, manifest)
    made = buckets(manifest)
    assert {str(b.size) for b in made} == {"64x64", "96x64"}
    for bucket in made:
        for sample in bucket.samples[:3]:
            picture = crop(pictures.load(manifest.file(sample)), bucket.size)
            with torch.no_grad():
                wanted = vae.encode(to_tensor(picture)).latent_dist.mode()[0]
            found = store.read(features.latent_key(sample, bucket))
            assert found.shape == (4, bucket.size.height // 8, bucket.size.width // 8)
            assert torch.allclose(found, wanted, atol=2e-3)


def test_texts_hold_valid_tokens_only(tmp_path: Path, model: ModelSpec) -> None:
    encoder = T5EncoderModel.from_pretrained(model.folder / "text_encoder").eval()
    store = features.FeatureStore(tmp_path)
    captions = ["a red disc", "", "a  RED disc", "disc " * 100]
    done = features.add_texts(
        store,
        lambda: (encoder, torch.device("cpu")),
        model,
        captions,
        report=lambda _: None,
        should_stop=lambda: False,
    )
    assert done
    for caption in captions:
        ids = features.tokenize(caption, model).ids
        with torch.no_grad():
            wanted = encoder(torch.tensor([ids])).last_hidden_state[0]
        found = store.read(features.caption_key(ids))
        assert found.shape == (len(ids), 32)
        assert torch.allclose(found, wanted, atol=5e-3)
    assert len(features.tokenize("", model).ids) == 1
    # What the encoder cannot tell apart is kept once.
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_second_time_nothing_is_computed(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path / "f", vae, manifest)
    before = sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "f").iterdir())
    monkeypatch.setattr(vae, "encode", None)
    add(tmp_path / "f", vae, manifest)
    after = sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "f").iterdir())
    assert before == after


def test_a_stop_or_a_torn_file_costs_only_what_is_missing(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_PER_FILE", 4)
    monkeypatch.setattr(features, "_TOGETHER", 2)
    looks = iter(range(100))
    stopped = add(tmp_path / "cut", vae, manifest, lambda: next(looks) >= 5)
    names = [features.latent_key(s, b) for b in buckets(manifest) for s in b.samples]
    have = [name for name in names if name in stopped]
    assert 0 < len(have) < len(names)
    torn = next((tmp_path / "cut").glob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:40])
    again = add(tmp_path / "cut", vae, manifest)
    straight = add(tmp_path / "straight", vae, manifest)
    for name in names:
        assert torch.equal(again.read(name), straight.read(name))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_set_that_was_cut_off_ends_as_an_undisturbed_one(
    tmp_path: Path,
    vae: AutoencoderKL,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    precision: features.Precision,
) -> None:
    """To the bit, in groups of several and for a stop at every place."""
    monkeypatch.setattr(features, "_PER_FILE", 4)
    monkeypatch.setattr(features, "_PROCESSOR_AREA", 3 * 64 * 64)
    straight = add(tmp_path / "straight", vae, manifest, precision=precision)
    names = [features.latent_key(s, b) for b in buckets(manifest) for s in b.samples]
    for place in (1, 2, 4, 7):
        looks = iter([False] * place)
        folder = tmp_path / f"cut-{place}"
        stopped = add(folder, vae, manifest, partial(next, looks, True), precision)
        assert not all(name in stopped for name in names)
        again = add(folder, vae, manifest, precision=precision)
        assert all(torch.equal(again.read(name), straight.read(name)) for name in names)


@pytest.mark.parametrize(
    ("size", "here", "there"),
    [
        (Size(64, 64), 16, 16),
        (Size(128, 128), 4, 16),
        (Size(144, 112), 4, 16),
        (Size(256, 256), 1, 16),
        (Size(512, 256), 1, 8),
        (Size(512, 512), 1, 4),
        (Size(1024, 1024), 1, 1),
        (Size(2048, 2048), 1, 1),
    ],
)
def test_pixels_decide_how_many_pictures_are_encoded_at_a_time(
    size: Size, here: int, there: int
) -> None:
    """As many as are fastest on a processor, as many as there is memory for on a GPU."""
    assert features.pictures_together(size, torch.device("cpu")) == here
    assert features.pictures_together(size, torch.device("cuda")) == there


def test_how_many_go_together_changes_no_latents(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = add(tmp_path / "whole", vae, manifest)
    monkeypatch.setattr(features, "_PROCESSOR_AREA", 2 * 96 * 64)
    seen: list[int] = []
    encode = vae.encode

    def counted(pixels: torch.Tensor) -> Any:
        seen.append(pixels.shape[0] * pixels.shape[2] * pixels.shape[3])
        return encode(pixels)

    monkeypatch.setattr(vae, "encode", counted)
    parts = add(tmp_path / "parts", vae, manifest)
    assert max(seen) == 2 * 96 * 64
    for bucket in buckets(manifest):
        for sample in bucket.samples:
            name = features.latent_key(sample, bucket)
            # Kept as float16; the kernels may differ in the last bit.
            assert torch.allclose(parts.read(name), whole.read(name), rtol=2e-3, atol=1e-4)


def test_latents_in_bf16_are_near_those_in_fp32(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1 % of their norm for a trained VAE, whose weights stay what they are."""
    vae = AutoencoderKL.from_pretrained(Catalog().find("nano").part("vae")).eval()
    weights = {name: weight.clone() for name, weight in vae.state_dict().items()}
    exact = add(tmp_path / "fp32", vae, manifest)
    orders: list[bool] = []
    encode = vae.encode

    def looked_at(pixels: torch.Tensor) -> Any:
        orders.append(pixels.is_contiguous())
        return encode(pixels)

    monkeypatch.setattr(vae, "encode", looked_at)
    near = add(tmp_path / "bf16", vae, manifest, precision="bf16")
    names = [features.latent_key(s, b) for b in buckets(manifest) for s in b.samples]
    for name in names:
        distance = (near.read(name) - exact.read(name)).norm() / exact.read(name).norm()
        assert distance < 0.01
    assert any(not torch.equal(near.read(name), exact.read(name)) for name in names)
    assert all(torch.equal(weight, weights[name]) for name, weight in vae.state_dict().items())
    assert orders
    assert all(orders)


def test_an_edited_picture_has_other_features(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest
) -> None:
    store = add(tmp_path / "f", vae, manifest)
    sample = manifest.samples[0]
    picture = pictures.load(manifest.file(sample))
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(manifest.file(sample))
    edited = lint.scan(manifest.root, lint.PictureRules(near_duplicates=False))
    mine = next(s for s in edited.samples if s.path == sample.path)
    assert mine.id != sample.id
    assert not any(features.latent_key(mine, b) in store for b in buckets(edited))


def test_the_id_changes_with_everything_it_depends_on(tmp_path: Path, model: ModelSpec) -> None:
    one = features.weights_digest(model.folder / "vae")
    tiny.build(tmp_path / "other", seed=9)
    other = features.weights_digest(tmp_path / "other" / "vae")
    ids = {
        features.feature_id(kind="latents", vae=one, crop="a"),
        features.feature_id(kind="latents", vae=other, crop="a"),
        features.feature_id(kind="latents", vae=one, crop="b"),
        features.feature_id(kind="text", vae=one, crop="a"),
    }
    assert len(ids) == 4


def test_sets_of_latents_of_two_precisions_never_meet() -> None:
    """And those that were made before there were two are still found."""
    assert features.CROP == "cover, lanczos, centre"
    assert features.latents_id("ab", "fp32") == "12a671868dcc"
    assert features.latents_id("ab", "bf16") != features.latents_id("ab", "fp32")
    assert features.latents_id("cd", "bf16") != features.latents_id("ab", "bf16")


def test_numbers_that_are_none_are_never_kept(tmp_path: Path) -> None:
    store = features.FeatureStore(tmp_path)
    with pytest.raises(TrainingError, match="not finite"):
        store.add({"a": torch.ones(2), "b": torch.tensor([1.0, np.nan])})
    assert list(tmp_path.iterdir()) == []


def _damage(file: Path, at: int = -3) -> None:
    """Turns one bit of the last tensor over; the length stays."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_damaged_file_is_noticed_and_computed_again(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest
) -> None:
    whole = add(tmp_path / "f", vae, manifest)
    names = sorted(whole._places)
    values = {name: whole.read(name).clone() for name in names}
    (file, *_) = sorted((tmp_path / "f").glob("*.safetensors"))
    _damage(file)
    opened = features.FeatureStore(tmp_path / "f")
    assert opened.damaged == 1
    assert not file.exists()
    again = add(tmp_path / "f", vae, manifest)
    assert again.damaged == 0
    for name in names:
        assert torch.equal(again.read(name), values[name])


def test_damage_that_comes_later_ends_with_a_sentence(
    tmp_path: Path, vae: AutoencoderKL, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are too many features to read them all at the start."""
    add(tmp_path / "f", vae, manifest)
    monkeypatch.setattr(features, "_READ_AT_START", 0)
    (file, *_) = sorted((tmp_path / "f").glob("*.safetensors"))
    _damage(file)
    store = features.FeatureStore(tmp_path / "f")
    assert store.damaged == 0
    with pytest.raises(TrainingError, match=r"are damaged\. Give the same command again"):
        for name in sorted(store._places):
            store.read(name)
    assert not file.exists()


def test_features_of_earlier_versions_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "f").mkdir()
    save_file({"a": torch.ones(2, 2, dtype=torch.float16)}, tmp_path / "f" / "0.safetensors")
    store = features.FeatureStore(tmp_path / "f")
    assert torch.equal(store.read("a"), torch.ones(2, 2))
