"""LoRAs in pictures: what they change, that nothing of them is left, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from app.gallery import metadata
from app.gallery.pictures import Gallery
from lora_manager import attach, files
from lora_manager.card import LoraUse
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.denoising import active_loras
from pipelines.engine import Engine
from pipelines.errors import ModelError, RequestError
from pipelines.request import complete, from_mapping
from tests import tiny
from tests.lora_manager import made
from tests.pipelines.conftest import CPU
from tests.small_loras import dora

Paint = Callable[..., np.ndarray]


def keep(file: Path, reference: dict[str, made.Reference]) -> Path:
    """A LoRA as people have them, under a name of the library."""
    return made.f1(reference, file.parent).replace(file)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with "tiny", and LoRAs for it and for a wider net."""
    home = tmp_path_factory.mktemp("home")
    tiny.build(home / "models" / "tiny")
    (home / "loras").mkdir()
    for seed, name in enumerate(("ink", "gold")):
        keep(home / "loras" / f"{name}.safetensors", made.reference(seed))
    keep(home / "loras" / "wide.safetensors", made.reference(9, wide=96))
    dora(home / "loras" / "dora.safetensors", home / "models" / "tiny")
    return home


@pytest.fixture(scope="module")
def catalog(home: Path) -> Catalog:
    return Catalog(user_models=home / "models", loras=home / "loras")


@pytest.fixture(scope="module")
def engine(home: Path, catalog: Catalog) -> Engine:
    return Engine(catalog, inputs=home / "inputs", machine=CPU)


@pytest.fixture
def paint(engine: Engine, catalog: Catalog) -> Paint:
    def pixels(loras: str = "", **values: object) -> np.ndarray:
        given = {"prompt": "a cat", "model": "tiny", "seed": 1, "steps": 3, "loras": loras}
        request = complete({**given, **values}, catalog)
        (picture,) = engine.generate(request, lambda progress: None, lambda: False)
        return np.asarray(picture.image, dtype=int)

    return pixels


def test_a_lora_changes_the_picture_and_leaves_no_trace(paint: Paint) -> None:
    plain = paint()
    ink = paint("ink")
    assert np.abs(ink - plain).mean() > 1
    assert np.array_equal(paint("ink:0"), plain)
    assert np.array_equal(paint(), plain)
    assert np.array_equal(paint("ink"), ink)
    assert not np.array_equal(paint("ink:0.5"), ink)
    assert not np.array_equal(paint("ink:-1"), ink)


def test_a_dora_changes_the_picture_and_leaves_no_trace(paint: Paint) -> None:
    plain = paint()
    whole = paint("dora")
    assert np.abs(whole - plain).mean() > 1
    assert np.array_equal(paint("dora:0"), plain)
    assert np.array_equal(paint(), plain)
    assert not np.array_equal(paint("dora:0.5"), whole)


def test_without_it_the_weights_are_those_of_the_model_to_the_bit(
    engine: Engine, paint: Paint
) -> None:
    def bits() -> dict[str, torch.Tensor]:
        assert engine._loaded is not None
        net = engine._loaded.transformer.net
        return {name: value.clone() for name, value in net.state_dict().items()}

    paint()
    before = bits()
    paint("ink:0.7, gold:-0.4, dora:0.6")
    with_them = bits()
    assert sum(not torch.equal(with_them[name], value) for name, value in before.items()) == 27
    paint()
    after = bits()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_it_is_the_picture_of_a_model_that_has_learned_it(
    home: Path, catalog: Catalog, paint: Paint
) -> None:
    """Two LoRAs in any order are the model whose weights were changed and saved."""
    folder = home / "models" / "learned"
    shutil.copytree(home / "models" / "tiny", folder)
    net = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    chosen = [("ink", 0.7), ("gold", -0.4)]
    with torch.no_grad():
        for name, weight in chosen:
            lora = files.read(home / "loras" / f"{name}.safetensors")
            for path, pair in lora.pairs.items():
                change = (pair.up.flatten(1).double() @ pair.down.flatten(1).double()) * weight
                target = net.get_submodule(path).weight
                target.add_(change.view(target.shape).float())
    net.save_pretrained(folder / "transformer")
    catalog.reload()
    learned = paint(model="learned")
    for text in ("ink:0.7, gold:-0.4", "gold:-0.4, ink:0.7"):
        assert np.abs(paint(text) - learned).max() <= 1
    shutil.rmtree(folder)
    catalog.reload()


def test_only_the_transformer_is_read_again(
    engine: Engine, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint()
    loaded = engine._loaded
    paint("gold")
    assert engine._loaded is loaded
    merged: list[Sequence[object]] = []
    merge = attach.merge

    def counted(net: torch.nn.Module, loras: attach.Weighted) -> int:
        merged.append(loras)
        return merge(net, loras)

    monkeypatch.setattr(attach, "merge", counted)
    paint("gold")
    assert merged == [], "what is applied already is not applied again"
    paint("ink")
    assert len(merged) == 1


def test_a_file_that_was_replaced_is_read_again(home: Path, paint: Paint) -> None:
    file = home / "loras" / "changing.safetensors"
    keep(file, made.reference(3))
    before = paint("changing")
    keep(file, made.reference(4))
    assert not np.array_equal(paint("changing"), before)
    file.unlink()
    with pytest.raises(RequestError, match="no LoRA called “changing”"):
        paint("changing")


def test_a_lora_for_another_net_is_a_sentence_and_harms_nobody(home: Path, paint: Paint) -> None:
    plain = paint()
    with pytest.raises(RequestError, match="“wide” was made for layers that are 96 wide"):
        paint("wide")
    # Where it was not seen before: a layer that this net does not have.
    deep = {
        f"transformer_blocks.7.{path[21:]}": one
        for path, one in made.reference().items()
        if "blocks.0" in path
    }
    file = keep(home / "loras" / "deep.safetensors", deep)
    with pytest.raises(ModelError, match="“deep” does not fit this model"):
        paint("deep")
    file.unlink()
    assert np.array_equal(paint(), plain)


def test_a_file_that_changes_while_it_is_read_is_told(
    home: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the recipe would name other numbers than those that paint."""
    file = keep(home / "loras" / "torn.safetensors", made.reference(5))
    merge = attach.merge

    def replaced(net: torch.nn.Module, loras: attach.Weighted) -> int:
        keep(file, made.reference(6))
        return merge(net, loras)

    monkeypatch.setattr(attach, "merge", replaced)
    with pytest.raises(ModelError, match="“torn” was changed while it was read"):
        paint("torn")
    monkeypatch.undo()
    assert not np.array_equal(paint("torn"), paint())
    file.unlink()


def test_the_hash_of_the_weights_tells_of_loras(home: Path, catalog: Catalog) -> None:
    def name(text: str) -> str:
        request = complete({"prompt": "x", "model": "tiny", "loras": text}, catalog)
        return active_loras.digest("abcdef0123", active_loras.found(request.loras, catalog.loras))

    assert name("") == name("ink:0") == "abcdef0123"
    found = {name(text) for text in ("", "ink", "ink:0.5", "gold", "ink, gold")}
    assert len(found) == 5
    assert {len(one) for one in found} == {10}


def test_the_recipe_has_them(home: Path, engine: Engine, catalog: Catalog, tmp_path: Path) -> None:
    given = {"prompt": "a cat", "model": "tiny", "steps": 2, "loras": "ink:0.5, gold", "seed": 3}
    request = complete(given, catalog)
    (picture,) = engine.generate(request, lambda progress: None, lambda: False)
    file = Gallery(tmp_path).add(picture)
    recipe = metadata.read(file.path)
    assert recipe.request.loras == (LoraUse(name="ink", weight=0.5), LoraUse(name="gold"))
    assert recipe.weights == picture.weights
    text = metadata.infotext(recipe.request, weights=recipe.weights)
    assert 'LoRAs: "ink:0.5, gold"' in text
    assert "Model hash" not in text
    again = complete(recipe.request.model_dump(), catalog)
    assert again == recipe.request
    assert "loras" in recipe.request.recipe()
    plain = recipe.request.model_copy(update={"loras": ()})
    assert "loras" not in plain.recipe(), "earlier versions read it, too"


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ("lost", "no LoRA called “lost”"),
        ("in", "Did you mean “ink”?"),
        ("ink:9", "from -4 to 4"),
        ("ink:nan", "no number"),
        ("ink, ink", "given twice"),
        ("../ink", "no name of a LoRA"),
        (", ".join(f"a{i}" for i in range(9)), "At most 8"),
        ("x" * 3000, "names no LoRAs"),
        (7, "names no LoRAs"),
        ([{"name": "ink", "weight": "much"}], "names no LoRAs"),
        ([{"weight": 1}], "names no LoRAs"),
        ([{"name": "ink", "weight": float("inf")}], "weight"),
    ],
)
def test_what_cannot_be_applied_is_a_sentence(catalog: Catalog, loras: object, said: str) -> None:
    with pytest.raises(RequestError) as error:
        complete({"prompt": "x", "model": "tiny", "loras": loras}, catalog)
    assert error.value.field == "loras"
    assert said in str(error.value)


@pytest.mark.parametrize("loras", [[{"name": "../x"}], [{"name": "x", "weight": 1e9}], "a:b", [[]]])
def test_a_hostile_recipe_is_a_sentence(loras: object) -> None:
    values = {"model": "m", "sampler": "lcm", "steps": 1, "guidance": 0, "width": 64, "height": 64}
    with pytest.raises(RequestError):
        from_mapping({**values, "prompt": "x", "seed": 1, "loras": loras})


def test_a_recipe_of_before_has_none() -> None:
    values = {"model": "m", "sampler": "lcm", "steps": 1, "guidance": 0, "width": 64, "height": 64}
    assert from_mapping({**values, "prompt": "x", "seed": 1}).loras == ()


def test_a_lora_that_distills_brings_its_sampler(home: Path, tmp_path: Path) -> None:
    """The released LCM-LoRA, as it lies after a download; somebody's own of that name does not."""
    ink = home / "loras" / "ink.safetensors"
    catalog = Catalog(user_models=home / "models", loras=home / "loras")
    catalog.loras.use({"lcm-lora-1024": ink})
    given = {"prompt": "x", "model": "tiny"}
    fast = complete({**given, "loras": "lcm-lora-1024"}, catalog)
    assert (fast.sampler, fast.steps, fast.guidance) == ("lcm", 4, 0)
    assert complete({**given, "loras": "lcm-lora-1024", "sampler": "sa-solver"}, catalog).sampler
    assert complete({**given, "loras": "lcm-lora-1024:0"}, catalog).sampler != "lcm"
    assert complete({**given, "loras": "lcm-lora-1024:-0.1"}, catalog).sampler != "lcm"
    assert complete({**given, "loras": "ink"}, catalog).sampler != "lcm"
    own = shutil.copy(ink, home / "loras" / "lcm-lora-1024.safetensors")
    assert complete({**given, "loras": "lcm-lora-1024"}, catalog).sampler != "lcm"
    Path(own).unlink()


def test_what_a_folder_of_peft_was_downloaded_as_can_be_applied(
    home: Path, tmp_path: Path, catalog: Catalog
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    made.f3(made.reference(1), folder)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    library = LoraLibrary(home / "loras", {"fetched": folder / "adapter_model.safetensors"})
    (active,) = active_loras.found([LoraUse(name="fetched")], library)
    net = tiny.transformer()
    before = {name: value.clone() for name, value in net.named_parameters()}
    active_loras.apply(net, [active])
    changed = [name for name, value in net.named_parameters() if not value.equal(before[name])]
    assert len(changed) == len(files.read(active.file).pairs)
