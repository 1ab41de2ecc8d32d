"""A model with LoRAs in its weights paints what the model with the LoRAs paints."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.models import baking, own_models
from app.models.baking import BakeOptions
from lora_manager import card
from pipelines.catalog import Catalog, ModelSpec
from pipelines.engine import Engine
from pipelines.errors import ModelError, SaveError, StudioError
from pipelines.models import weights_digest
from pipelines.request import complete
from tests import tiny
from tests.lora_manager import made
from tests.pipelines.conftest import CPU
from tests.small_loras import dora, lora

Bake = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    tiny.build(home / "models" / "tiny")
    for seed, name in enumerate(("ink", "gold")):
        lora(home / "loras" / f"{name}.safetensors", seed)
    lora(home / "loras" / "wide.safetensors", 9, wide=96)
    dora(home / "loras" / "dora.safetensors", home / "models" / "tiny")
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "home"))


@pytest.fixture
def catalog(home: Path) -> Catalog:
    return Catalog(user_models=home / "models", loras=home / "loras")


@pytest.fixture
def bake(home: Path, catalog: Catalog) -> Bake:
    def run(loras: str, model_id: str = "baked", **options: str) -> ModelSpec:
        return baking.bake(
            catalog,
            catalog.find("tiny"),
            card.parse(loras),
            home / "models",
            BakeOptions(id=model_id, **options),
        )

    return run


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_paints_what_the_model_with_the_loras_paints(
    home: Path, catalog: Catalog, bake: Bake
) -> None:
    before = hashes(home / "models" / "tiny")
    spec = bake("ink:0.7, gold:-0.4, dora:0.8")
    assert hashes(home / "models" / "tiny") == before, "the model itself stays as it is"
    engine = Engine(catalog, inputs=home / "inputs", machine=CPU)

    def pixels(**given: object) -> np.ndarray:
        values = {"prompt": "a cat", "seed": 1, "steps": 3}
        request = complete({**values, **given}, catalog)
        (picture,) = engine.generate(request, lambda progress: None, lambda: False)
        return np.asarray(picture.image, dtype=int)

    baked = pixels(model="baked")
    assert np.array_equal(baked, pixels(model="tiny", loras="ink:0.7, gold:-0.4, dora:0.8"))
    assert not np.array_equal(baked, pixels(model="tiny", loras="ink:0.7, gold:-0.4"))
    assert (spec.id, spec.tokens, spec.size) == ("baked", 24, "64x64")
    assert spec.title == "Tiny with ink:0.7, gold:-0.4, dora:0.8"


def test_only_the_transformer_is_written(home: Path, catalog: Catalog, bake: Bake) -> None:
    spec = bake("ink", title="Inked")
    assert spec.title == "Inked"
    assert sorted(path.name for path in spec.folder.iterdir()) == [
        "baked.json",
        "model.toml",
        "transformer",
    ]
    assert spec.places["vae"] == (home / "models" / "tiny" / "vae").resolve()
    with pytest.raises(ModelError, match="“baked” reads the vae of “tiny”"):
        own_models.find(home / "models", "tiny")
    own_models.remove(home / "models", "baked")
    assert own_models.find(home / "models", "tiny").id == "tiny"


def test_it_says_what_it_was_made_of(home: Path, bake: Bake) -> None:
    story = json.loads((bake("ink:0.5").folder / "baked.json").read_text())
    file = home / "loras" / "ink.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert story["model"] == "tiny"
    assert story["weights"] == weights_digest.digest(home / "models" / "tiny" / "transformer")
    assert story["loras"] == [{"name": "ink", "weight": 0.5, "sha256": digest}]


@pytest.mark.parametrize(
    ("stored", "precision", "wanted"),
    [("fp16", "keep", "fp16"), ("fp16", "fp32", "fp32"), ("fp32", "bf16", "bf16")],
)
def test_the_change_is_rounded_once_to_what_is_saved(
    stored: str, precision: str, wanted: str, home: Path, bake: Bake
) -> None:
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    file = home / "models" / "tiny" / "transformer" / "diffusion_pytorch_model.safetensors"
    before = {k: v.to(types[stored]) for k, v in load_file(file).items()}
    save_file(before, file)
    spec = bake("ink:0.5", precision=precision)
    after = load_file(spec.folder / "transformer" / file.name)
    assert set(after) == set(before)
    reference = made.reference(0)
    for name, value in after.items():
        assert value.dtype == types[wanted]
        change = reference.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        exact = before[name].double() + (0 if change is None else 0.5 * change.change())
        spacing = torch.finfo(types[wanted]).eps * exact.abs().clamp(min=1e-3)
        # Half of the spacing is what one rounding may do; float32's own sums add a little.
        assert ((value.double() - exact).abs() <= 0.6 * spacing + 1e-6).all(), name


@pytest.mark.parametrize(
    ("loras", "model_id", "options", "said"),
    [
        ("ink", "tiny", {}, "There is a model called “tiny” already"),
        ("ink", "Nano", {}, "There is a model called “Nano” already"),
        ("ink", "../x", {}, "not possible as a model's id"),
        ("ink", "nul", {}, "not possible as a model's id"),
        ("lost", "baked", {}, "no LoRA called “lost”"),
        ("wide", "baked", {}, "“wide” was made for layers that are 96 wide"),
        ("ink:0", "baked", {}, "No LoRA has a weight"),
        ("ink", "baked", {"precision": "int4"}, "no kind of precision called “int4”"),
    ],
)
def test_what_cannot_be_baked_is_said_and_leaves_nothing(
    loras: str, model_id: str, options: dict[str, str], said: str, home: Path, bake: Bake
) -> None:
    before = hashes(home)
    with pytest.raises(StudioError) as error:
        bake(loras, model_id, **options)
    assert said in str(error.value)
    assert hashes(home) == before


def test_layers_that_the_model_has_not_are_said(home: Path, bake: Bake) -> None:
    deep = {
        f"transformer_blocks.7.{path[21:]}": one
        for path, one in made.reference().items()
        if "blocks.0" in path
    }
    file = home / "loras" / "deep.safetensors"
    made.f1(deep, home / "loras").replace(file)
    with pytest.raises(ModelError, match="“deep” does not fit this model"):
        bake("deep")
    assert sorted(path.name for path in (home / "models").iterdir()) == ["tiny"]


def test_a_sum_beyond_the_type_is_said(home: Path, bake: Bake) -> None:
    strong = made.reference(0)
    path = "transformer_blocks.0.attn1.to_q"
    one = strong[path]
    strong = {path: made.Reference(one.a * 1e4, one.b * 1e4, one.alpha)}
    made.f1(strong, home / "loras").replace(home / "loras" / "strong.safetensors")
    with pytest.raises(ModelError, match=f"change “{path}” so strongly"):
        bake("strong", precision="fp16")
    assert sorted(path.name for path in (home / "models").iterdir()) == ["tiny"]


def test_what_would_be_the_model_itself_is_not_baked(home: Path, bake: Bake) -> None:
    shutil.copy(home / "loras" / "ink.safetensors", home / "loras" / "again.safetensors")
    with pytest.raises(ModelError, match="Together, the LoRAs change nothing in this model"):
        bake("ink, again:-1")
    assert sorted(path.name for path in (home / "models").iterdir()) == ["tiny"]


def test_a_full_disk_leaves_nothing(
    home: Path, bake: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(SaveError, match="There is no space for"):
        bake("ink")
    assert sorted(path.name for path in (home / "models").iterdir()) == ["tiny"]


def test_a_lora_that_distills_makes_a_distilled_model(
    catalog: Catalog, bake: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (spec := bake("ink", "plain")).distilled is None
    assert spec.steps is None
    monkeypatch.setattr(catalog, "distilled_by", lambda uses: "lcm")
    spec = bake("ink")
    assert (spec.distilled, spec.sampler, spec.steps, spec.guidance) == ("lcm", "lcm", 4, 0)
