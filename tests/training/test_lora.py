"""A model learns a little more: a LoRA on captions, a subject as LoRA and as a whole net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from lora_manager import attach, card, files, headers
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, SaveError
from pipelines.models import loader
from pipelines.progress import Progress
from tests import tiny
from tests.training import small
from training import publish, stages
from training.bases import of_model
from training.config import TrainingRecipe
from training.data.sources import Sources
from training.loop.order import Pick
from training.loop.task import trained
from training.methods import adapted, lora
from training.methods.kind_pictures import OF_KIND
from training.recipes import resolve

SUBJECT = {"word": "sks", "kind": "disc"}
NO_AVERAGE = {"decay": 0.0}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    models = tmp_path_factory.mktemp("models")
    tiny.build(models / "tiny")
    return Catalog(user_models=models)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small.pictures(folder / "pictures", count=6)
    bare = small.pictures(folder / "bare", count=4)
    (bare / "metadata.jsonl").unlink()
    return folder


def recipe(method: str, steps: int = 4, **more: Any) -> TrainingRecipe:
    source = "pictures" if method == "lora" else "bare"
    held = 0.2 if method == "lora" else 0.0
    own: dict[str, Any] = {
        "base": {"model": "tiny"},
        "data": {"source": source, "held_out": held},
        "ema": NO_AVERAGE,
        "objective": {"variational": 0.0},
        "steps": steps,
        "batch": 2,
    }
    if method != "lora":
        own["subject"] = SUBJECT
    if method != "dreambooth-net":
        own["lora"] = {"rank": 4}
    values = {
        "title": "One",
        "publish": {"id": "mine", "title": "Mine", "size": "64x64", "max_side": 256, "bins": "128"},
        "stage": [small.stage("one", method, **own, **more)],
    }
    return resolve(values, name="one")


def walk(values: TrainingRecipe, root: Path, data: Path, catalog: Catalog) -> str:
    told: list[str] = []
    outcome = stages.walk(
        values,
        root=root,
        data=data,
        report=lambda config: lambda progress: None,
        should_stop=lambda: False,
        tell=told.append,
        catalog=catalog,
    )
    return outcome.reason


def published(values: TrainingRecipe, root: Path, catalog: Catalog, out: Path) -> Path:
    made = publish.finished(values, root, catalog, models=out / "models", loras=out / "loras")
    assert made is not None
    return made


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_lora_is_trained_and_put_into_the_library(
    method: str, catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    sheets = {"every": 2, "steps": 2, "prompts": ["a photo of sks disc", "a red disc"]}
    values = recipe(method, preview=sheets)
    assert walk(values, tmp_path / "run", data, catalog) == "finished"
    file = published(values, tmp_path / "run", catalog, tmp_path)
    assert file == tmp_path / "loras" / "mine.safetensors"
    found = LoraLibrary(tmp_path / "loras").find("mine")
    assert (found.title, found.base, found.rank) == ("Mine", "tiny", 4)
    assert found.trigger == ("sks disc" if method == "dreambooth" else "")
    # Attention and feed-forward of two blocks.
    assert found.modules == 2 * 10
    metadata = headers.read(file).metadata
    assert metadata["pixart_studio.steps"] == "4"
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    read = files.read(file)
    assert any(pair.up.abs().max() > 0 for pair in read.pairs.values())
    # The same run again replaces its own, and nobody else's.
    assert published(values, tmp_path / "run", catalog, tmp_path) == file
    lone = files.read(file)
    files.write(file, lone, {card.TITLE: "Somebody's"})
    with pytest.raises(SaveError, match="that this training has not made"):
        published(values, tmp_path / "run", catalog, tmp_path)


def _net(folder: Path) -> PixArtTransformer2DModel:
    net: PixArtTransformer2DModel = PixArtTransformer2DModel.from_pretrained(folder)
    return net.eval().requires_grad_(False)


def test_a_whole_net_learns_a_subject_and_becomes_a_model(
    catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    values = recipe("dreambooth-net", steps=2)
    assert walk(values, tmp_path / "run", data, catalog) == "finished"
    folder = published(values, tmp_path / "run", catalog, tmp_path)
    assert Catalog(user_models=folder.parent).find("mine").folder == folder
    before = _net(catalog.find("tiny").part("transformer")).state_dict()
    after = _net(folder / "transformer").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("lora", {"dropout": 0.2}),
        ("lora", {"dora": True}),
        ("dreambooth", {}),
        ("dreambooth", {"dora": True}),
    ],
)
def test_it_goes_on_to_the_bit(
    method: str, own: dict[str, Any], catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    extra = {"lora": {"rank": 4, **own}}
    whole = _with(recipe(method), extra)
    cut = _with(recipe(method, steps=2), extra)
    walk(whole, tmp_path / "whole", data, catalog)
    walk(cut, tmp_path / "cut", data, catalog)
    walk(whole, tmp_path / "cut", data, catalog)
    results = [
        files.read(tmp_path / name / "01-one" / "result" / lora.RESULT) for name in ("whole", "cut")
    ]
    for path, pair in results[0].pairs.items():
        assert torch.equal(pair.up, results[1].pairs[path].up), path
        assert torch.equal(pair.down, results[1].pairs[path].down), path
        assert (pair.magnitude is not None) == own.get("dora", False)
        if pair.magnitude is not None:
            other = results[1].pairs[path].magnitude
            assert other is not None
            assert torch.equal(pair.magnitude, other), path


def _with(values: TrainingRecipe, changes: dict[str, Any]) -> TrainingRecipe:
    told = json.loads(values.model_dump_json(exclude_unset=True))
    told["stages"][0] |= changes
    stage = told.pop("stages")
    return resolve({"title": told["title"], "publish": told["publish"], "stage": stage}, name="one")


def test_what_it_was_before_is_kept_by_the_prior(
    catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    """Trained hard on four pictures, the answers about the kind stay nearer with the prior."""
    moved = {}
    for prior in ("base", "none"):
        subject = {**SUBJECT, "prior": prior}
        values = _with(
            recipe("dreambooth", steps=30),
            {
                "subject": subject,
                "optimizer": {"lr": 1e-2},
                "objective": {"variational": 0.0, "dropout": 0.0},
                "validation": {"every": 0},
            },
        )
        root = tmp_path / prior
        walk(values, root, data, catalog)
        made = files.read(root / "01-one" / "result" / lora.RESULT)
        moved[prior] = _moved(catalog, made, values)
    assert moved["base"] < 0.8 * moved["none"]


def _moved(catalog: Catalog, made: files.Lora, values: TrainingRecipe) -> float:
    """How far the prediction about the kind went, over eight draws."""
    from pipelines.text.tokens import tokenize

    model = catalog.find("tiny")
    encoder = loader.part(model, "text_encoder", torch.float32)
    ids = tokenize(values.stages[0].subject.of_the_kind, model).ids
    net = _net(model.part("transformer"))
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, 8, 8, generator=draw)
    with torch.no_grad():
        embeds = encoder(torch.tensor([ids])).last_hidden_state.expand(8, -1, -1)
        given = {
            "encoder_hidden_states": embeds,
            "timestep": torch.arange(50, 850, 100),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
        before = net(x, **given).sample[:, :4]
        attach.merge(net, [("made", made, 1.0)])
        after = net(x, **given).sample[:, :4]
    return float((after - before).square().mean())


def test_pictures_of_the_kind_are_painted_once(
    catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    """Stopped in their middle, the rest is painted; another training finds them all."""
    values = _with(
        recipe("dreambooth", steps=2),
        {"subject": {**SUBJECT, "prior": "pictures", "pictures": 6}, "log_every": 1},
    )
    painted: list[int] = []

    def report(progress: Progress) -> None:
        if progress.note == "a photo of disc":
            painted.append(progress.total)

    def walk_until(stop: int, root: Path) -> str:
        return stages.walk(
            values,
            root=root,
            data=data,
            report=lambda config: report,
            should_stop=lambda: len(painted) >= stop,
            catalog=catalog,
        ).reason

    assert walk_until(2, tmp_path / "run") == "stopped"
    assert painted == [6, 6]
    assert walk_until(99, tmp_path / "run") == "finished"
    assert painted == [6, 6, 4, 4, 4, 4]
    steps = [e for e in _events(tmp_path / "run") if e["event"] == "step"]
    assert all("prior" in event for event in steps)


def test_pictures_of_the_kind_stand_among_those_of_the_subject(
    catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    subject = {**SUBJECT, "prior": "pictures", "pictures": 4, "share": 0.25, "weight": 3.0}
    values = _with(recipe("dreambooth"), {"subject": subject})
    config = values.stages[0]
    sources = _sources(values, catalog, data, tmp_path)
    made = config.row.load()(config, sources)
    items = [made.samples[Pick(index=number % 4, key=number)] for number in range(400)]
    of_kind = [item for item in items if item[OF_KIND]]
    assert 60 < len(of_kind) < 140
    assert {item["ids"].partition(":")[0] for item in of_kind} == {"of the kind"}
    # The same pick is the same picture, in whatever order they are read.
    again = made.samples[Pick(index=0, key=0)]
    assert torch.equal(again["latents"], items[0]["latents"])
    own = [item for item in items if not item[OF_KIND]]
    batch = made.collate([of_kind[0], own[0]])
    for value, weight in ((True, 3.0), (False, 1.0)):
        batch[OF_KIND] = torch.tensor([value, value])
        loss = made.net(batch, 7, None)
        plain = super(lora.SubjectLoss, made.net).forward(batch, 7, None)
        assert torch.equal(loss["loss"], weight * plain["loss"])
        assert torch.equal(loss["prior"], plain["loss"] * value)


def _sources(values: TrainingRecipe, catalog: Catalog, data: Path, root: Path) -> Sources:
    return Sources(
        values.stages[0],
        folder=data,
        cache=root / "cache",
        bases={name: of_model("tiny", catalog) for name in ("vae", "text", "transformer")},
        report=lambda progress: None,
        tell=lambda sentence: None,
        should_stop=lambda: False,
    )


def _events(root: Path) -> list[dict[str, Any]]:
    lines = (root / "01-one" / "events.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        ("lora", {"base": {}}, "name it with base.model"),
        ("lora", {"lora": {"rank": 4096}}, "less than or equal to 1024"),
        ("lora", {"lora": {"ranks": {"to_q": 0}}}, "between 1 and 1024"),
        ("lora", {"subject": SUBJECT}, "the table subject belongs to dreambooth"),
        ("lora", {"net": {"heads": 2}}, "leave net out"),
        ("lora", {"shard": True}, "shard does not go with lora"),
        ("dreambooth", {"subject": {"word": "  ", "kind": "dog"}}, "subject.word is empty"),
        ("dreambooth", {"subject": {"word": "sks"}}, "subject.kind is empty"),
        ("dreambooth", {"subject": {**SUBJECT, "template": "a photo"}}, "{subject} in it"),
        ("dreambooth-net", {"lora": {"rank": 4}}, "the table lora belongs to lora and dreambooth"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_read(
    method: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError) as caught:
        _with(recipe(method), changes)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("method", "prior", "dtypes"),
    [
        ("lora", "none", [torch.bfloat16]),
        ("dreambooth", "base", [torch.bfloat16]),
        ("dreambooth", "pictures", [torch.bfloat16]),
        # What learns, and what answers for what was before.
        ("dreambooth-net", "base", [torch.float32, torch.bfloat16]),
        ("dreambooth-net", "none", [torch.float32]),
    ],
)
def test_a_base_is_read_in_the_precision_that_it_is_kept_in(
    method: str,
    prior: str,
    dtypes: list[torch.dtype],
    catalog: Catalog,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read in float32 first, XL/2 would take a gigabyte more than it needs."""
    read: list[torch.dtype] = []
    part = loader.part

    def noted(model: Any, name: str, dtype: torch.dtype, **options: Any) -> Any:
        if name == "transformer":
            read.append(dtype)
        return part(model, name, dtype, **options)

    monkeypatch.setattr(loader, "part", noted)
    changes: dict[str, Any] = {"precision": "bf16"}
    if method != "lora":
        changes["subject"] = {**SUBJECT, "prior": prior, "pictures": 2}
    values = _with(recipe(method), changes)
    made = values.stages[0].row.load()(values.stages[0], _sources(values, catalog, data, tmp_path))
    assert read == dtypes
    learns = {weight.dtype for _, weight in trained(made.net)}
    assert learns == {torch.float32}
    if method != "dreambooth-net":
        plain = _net(catalog.find("tiny").part("transformer"))
        for path, layer in adapted.layers(made.net).items():
            own = plain.get_submodule(path.removeprefix("transformer.")).weight
            assert torch.equal(layer.get_base_layer().weight, own.to(torch.bfloat16))


@pytest.mark.parametrize("method", ["lora", "dreambooth", "dreambooth-net"])
def test_computing_blocks_again_changes_nothing(
    method: str, catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    """Also where the kernel of attention is chosen outside of the blocks, and dropout is drawn."""
    results = []
    for again in (False, True):
        changes: dict[str, Any] = {"gradient_checkpointing": again, "precision": "bf16"}
        if method == "lora":
            changes["lora"] = {"rank": 4, "dropout": 0.3}
        values = _with(recipe(method, steps=2), changes)
        root = tmp_path / f"again-{again}"
        assert walk(values, root, data, catalog) == "finished"
        events = [
            json.loads(line) for line in (root / "01-one" / "events.jsonl").read_text().splitlines()
        ]
        results.append([(e["loss"], e["norm"]) for e in events if e["event"] == "step"])
    assert len(results[0]) == 2
    assert results[0] == results[1]


@pytest.mark.parametrize("dora", [False, True])
def test_samples_are_painted_with_a_lora_in_half_precision(
    dora: bool, catalog: Catalog, data: Path, tmp_path: Path
) -> None:
    """The net is half as exact as the LoRA on it, and nothing makes them meet but the layers."""
    sheets = {"every": 2, "steps": 2, "prompts": ["a red disc"]}
    changes = {"precision": "bf16", "preview": sheets, "lora": {"rank": 2, "dora": dora}}
    assert walk(_with(recipe("lora", steps=2), changes), tmp_path, data, catalog) == "finished"
    assert (tmp_path / "01-one" / "previews" / "step-00000002.png").is_file()
