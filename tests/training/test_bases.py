"""What a training starts from: models of the catalog, runs of earlier versions, T5 in each way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from pipelines.catalog import ROW_FILE, Catalog
from pipelines.engine import Engine
from pipelines.errors import ModelError, OutOfMemoryError, RequestError, UnknownNameError
from pipelines.memory import ram
from pipelines.models import loader
from pipelines.request import complete
from pipelines.text import prompt_files
from tests import tiny
from tests.training import small
from training import publish, run, stages
from training.bases import of_folder, of_model
from training.config import RunConfig, differences
from training.data import features, text_plan
from training.data.sources import Sources
from training.recipes import resolve

NANO = tiny.NANO


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A model whose T5 and tokenizer lie in a folder of their own, as a shared one does."""
    models = tmp_path_factory.mktemp("models")
    folder, shared = tiny.build(models / "tiny"), tmp_path_factory.mktemp("shared")
    for part in ("text_encoder", "tokenizer"):
        shutil.move(folder / part, shared / part)
    with open(folder / ROW_FILE, "a", encoding="utf-8") as row:
        row.write("[places]\n")
        for part in ("text_encoder", "tokenizer"):
            row.write(f"{part} = {json.dumps(str(shared / part))}\n")
    found = Catalog(user_models=models)
    assert found.problems == []
    return found


def one_stage(method: str = "text-to-image", **more: Any) -> dict[str, Any]:
    return {"title": "One", "stage": [small.stage("words", method, **more)]}


def config(method: str, **base: str) -> RunConfig:
    return resolve(one_stage(method, base=base), name="one").stages[0]


def test_a_model_stands_for_the_bases_that_a_method_uses() -> None:
    everything = {name: "model:nano" for name in ("transformer", "vae", "text")}
    assert config("text-to-image", model="nano").bases == everything
    assert config("class-to-image", model="nano").bases == {"vae": "model:nano"}
    assert config("vae", model="nano").bases == {"vae": "model:nano"}
    assert config("text-encoder", model="nano").bases == {"text": "model:nano"}
    assert config("text-to-image", model="nano", vae="own").bases == everything | {"vae": "own"}
    assert config("text-to-image").bases == {}


@pytest.mark.parametrize(
    ("base", "error", "sentence"),
    [
        ({"model": "nanno"}, UnknownNameError, "Did you mean “nano”"),
        ({"model": "alpha-512"}, ModelError, "launch.py models download alpha-512"),
        ({"vae": "model:alpha-512"}, ModelError, "launch.py models download alpha-512"),
        (
            {"vae": "nano"},
            RequestError,
            "There is no model folder nano. For a model of",
        ),
    ],
)
def test_a_base_that_is_not_there_is_said_before_anything_is_trained(
    tmp_path: Path, base: dict[str, str], error: type[Exception], sentence: str
) -> None:
    small.pictures(tmp_path / "data" / "pictures")
    with pytest.raises(error, match=sentence):
        stages.walk(
            resolve(one_stage(base=base), name="one"),
            root=tmp_path / "run",
            data=tmp_path / "data",
            report=lambda _: lambda _: None,
            should_stop=lambda: False,
        )
    assert not (tmp_path / "run").exists()


def test_a_model_of_the_catalog_is_trained_further_and_published(
    tmp_path: Path, catalog: Catalog
) -> None:
    small.pictures(tmp_path / "data" / "pictures")
    values = one_stage(base={"model": "tiny"}, optimizer={"lr": 1e-2})
    values["publish"] = small.recipe()["publish"]
    recipe = resolve(values, name="one")
    outcome = stages.walk(
        recipe,
        root=tmp_path / "run",
        data=tmp_path / "data",
        report=lambda _: lambda _: None,
        should_stop=lambda: False,
        catalog=catalog,
    )
    assert outcome.reason == "finished"
    models = tmp_path / "models"
    folder = publish.publish(recipe, stages.results(recipe, tmp_path / "run", catalog), models)
    assert folder is not None
    before, after = (
        PixArtTransformer2DModel.from_pretrained(place).state_dict()
        for place in (catalog.find("tiny").part("transformer"), folder / "transformer")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name].float()) for name in before)
    assert max((before[n] - after[n].float()).abs().max().item() for n in before) < 0.2
    made = Catalog(user_models=models)
    asked = complete({"prompt": "a red disc", "model": "small", "steps": 3}, made)
    (picture,) = Engine(made, inputs=tmp_path).generate(asked, lambda _: None, lambda: False)
    assert picture.image.size == (64, 64)
    # Folders of this machine do not travel.
    assert str(catalog.find("tiny").folder.parent) not in (folder / publish.MADE_BY).read_text()


def test_what_a_training_reads_comes_as_the_engine_loads_it(
    tmp_path: Path, catalog: Catalog
) -> None:
    found = reads(tmp_path, catalog)
    spec = catalog.find("tiny")
    for part, own in (("vae", found.vae()), ("text_encoder", found.text_encoder())):
        theirs = loader.part(spec, part, torch.float32).state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in own.state_dict().items())
        assert not any(p.requires_grad for p in own.parameters())


def reads(root: Path, catalog: Catalog, **more: Any) -> Sources:
    if not (root / "data").exists():
        small.pictures(root / "data" / "pictures")
    asked = resolve(one_stage(base={"model": "tiny"}, **more), name="one").stages[0]
    tiny_base = of_model("tiny", catalog)
    return Sources(
        asked,
        folder=root / "data",
        cache=root / "cache",
        bases={"vae": tiny_base, "text": tiny_base},
        report=lambda _: None,
        tell=lambda _: None,
        should_stop=lambda: False,
    )


def test_features_of_earlier_versions_stay_valid() -> None:
    """Names as they were before T5 could have another precision."""
    base = of_folder(NANO)
    sources = Sources(
        resolve(one_stage(data={"tokens": 40}), name="one").stages[0],
        folder=NANO,
        cache=NANO,
        bases={"text": base},
        report=lambda _: None,
        tell=lambda _: None,
        should_stop=lambda: False,
    )
    assert features.texts_id(sources.text_row, "fp32") == "de3c62e6935f"
    assert features.caption_key((5, 17, 1)) == "c89b5de7cd77a8c0dd97fc08"
    ids = {features.texts_id(sources.text_row, p) for p in ("fp32", "bf16", "int8", "nf4")}
    assert len(ids) == 4


def test_a_text_has_one_key() -> None:
    key = prompt_files.text_key((5, 17, 1))
    assert features.caption_key((5, 17, 1)) == key[:24]
    assert prompt_files.file(Path("x"), (5, 17, 1), "e").name.startswith(key[:32] + "-")


def test_features_of_another_precision_are_near_and_apart(tmp_path: Path, catalog: Catalog) -> None:
    captions = ["a red disc", "a blue square", ""]
    exact = reads(tmp_path, catalog).texts(captions)
    for precision, error in (("bf16", 0.05), ("int8", 0.15)):
        rough = reads(tmp_path, catalog, text_precision=precision).texts(captions)
        for caption in captions:
            ids = features.tokenize(caption, reads(tmp_path, catalog).text_row).ids
            theirs, ours = (s.read(features.caption_key(ids)) for s in (exact, rough))
            assert not torch.equal(theirs, ours)
            assert (theirs - ours).norm() < error * theirs.norm()
    folders = list((tmp_path / "cache" / "features").glob("text-*"))
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("precision", "device", "free", "text", "own"),
    [
        ("fp32", "cuda", 10**12, "resident", "float32"),
        ("fp32", "cuda", 1, "cpu", "float32"),
        ("bf16", "cuda", 10**12, "resident", "bfloat16"),
        ("int8", "cuda", 10**12, "int8", "bfloat16"),
        ("nf4", "cpu", 0, "nf4", "bfloat16"),
        ("fp32", "cpu", 0, "resident", "float32"),
    ],
)
def test_how_t5_computes_features(
    catalog: Catalog, precision: Any, device: str, free: int, text: str, own: str
) -> None:
    made = text_plan.make(catalog.find("tiny"), precision, torch.device(device), free)
    assert (made.plan.text, made.plan.text_precision) == (text, own)
    assert (made.told is None) == (text != "cpu")
    # Main memory is asked for where T5 waits or works there.
    assert (made.plan.text_ram > 0) == (device == "cpu" or text == "cpu")


def test_too_little_main_memory_is_said_with_a_way_out(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = ram.look().__class__(total=1, free=1, swap=0)
    monkeypatch.setattr(ram, "look", lambda: empty)
    # In bf16 nothing of it can be used as it lies in its file.
    sources = reads(tmp_path, catalog, text_precision="bf16")
    with pytest.raises(OutOfMemoryError, match="set text_precision = “bf16” or “int8”"):
        sources.texts(["a red disc"])


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its config.json knows neither `base.model` nor `text_precision`."""
    small.pictures(tmp_path / "data" / "pictures")
    recipe = resolve(one_stage("text-encoder", net={"vocabulary": 120}), name="one")
    walk: dict[str, Any] = {
        "root": tmp_path / "run",
        "data": tmp_path / "data",
        "report": lambda _: lambda _: None,
    }
    looks = iter(range(10**6))
    outcome = stages.walk(recipe, **walk, should_stop=lambda: next(looks) > 4)
    assert outcome.reason == "stopped"
    file = tmp_path / "run" / "01-words" / run.CONFIG
    values = json.loads(file.read_text("utf-8"))
    del values["text_precision"], values["base"]["model"]
    file.write_text(json.dumps(values, indent=1), "utf-8")
    assert differences(run.read_config(file.parent), recipe.stages[0]) == []
    outcome = stages.walk(recipe, **walk, should_stop=lambda: False)
    assert (outcome.reason, outcome.step) == ("finished", 4)


def test_a_run_keeps_the_precision_of_its_text_encoder() -> None:
    one, other = (
        resolve(one_stage(text_precision=precision), name="one").stages[0]
        for precision in ("fp32", "int8")
    )
    assert differences(one, other) == ["text_precision: fp32 -> int8"]
