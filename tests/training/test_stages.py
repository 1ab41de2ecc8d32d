"""The whole walk in small: five stages, a model that paints, and what goes wrong."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline
from PIL import Image

from pipelines.catalog import Catalog
from pipelines.engine import Engine
from pipelines.errors import ModelError, RequestError, SaveError, TrainingError
from pipelines.progress import Progress, Stage
from pipelines.request import complete
from tests.training import small
from training import publish, stages
from training.bases import of_folder
from training.config import RunConfig, TrainingRecipe
from training.recipes import resolve


class Place:
    """A data folder and a run folder."""

    def __init__(self, root: Path) -> None:
        self.data, self.run, self.models = root / "data", root / "run", root / "models"
        small.pictures(self.data / "pictures")
        self.seen: list[tuple[str, Progress]] = []

    def walk(self, recipe: TrainingRecipe, **options: Any) -> Any:
        def report(config: RunConfig) -> Any:
            return lambda progress: self.seen.append((config.name, progress))

        options = {"should_stop": lambda: False} | options
        return stages.walk(recipe, root=self.run, data=self.data, report=report, **options)

    def trains(self) -> bool:
        """True behind the first update: a request to stop in the middle."""
        return any(p.stage is Stage.TRAINING for _, p in self.seen)


def small_recipe(**changes: Any) -> TrainingRecipe:
    values = small.recipe()
    for stage in values["stage"]:
        stage.update(copy.deepcopy(changes))
    return resolve(values, name="small")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("walk"))
    outcome = place.walk(small_recipe())
    assert outcome.reason == "finished"
    return place


def test_every_stage_leaves_its_result(walked: Place) -> None:
    names = [folder.name for folder in sorted(walked.run.iterdir()) if folder.name != "cache"]
    assert names == ["01-vae", "02-text", "03-pixels", "04-words", "05-beauty"]
    for name in names:
        story = json.loads((walked.run / name / "result" / "training.json").read_text())
        assert (story["step"], story["reason"]) == (4, "finished")
    with Image.open(walked.run / "04-words" / "previews" / "step-00000000.png") as sheet:
        assert sheet.size == (128, 64)


def test_features_are_computed_once_for_all_stages(walked: Place) -> None:
    computed = [(name, p.note, p.total) for name, p in walked.seen if p.stage is Stage.FEATURES]
    assert {(name, note) for name, note, _ in computed} == {
        ("pixels", "pictures"),
        ("words", "captions"),
    }
    # 24 pictures; 8 captions, the empty one among them, and the prompts that are captions too.
    assert max(total for _, note, total in computed if note == "pictures") == 24


def test_the_last_stage_grew_size_conditions(walked: Place) -> None:
    config = json.loads(
        (walked.run / "05-beauty" / "result" / "transformer" / "config.json").read_text()
    )
    assert config["use_additional_conditions"] is True


def test_the_model_is_published_and_paints(walked: Place, tmp_path: Path) -> None:
    recipe = small_recipe()
    folder = publish.publish(recipe, stages.results(recipe, walked.run), walked.models)
    assert folder == walked.models / "small"
    catalog = Catalog(user_models=walked.models)
    assert catalog.problems == []
    engine = Engine(catalog, inputs=tmp_path)
    request = complete({"prompt": "a red disc", "model": "small", "steps": 3}, catalog)
    (picture,) = engine.generate(request, lambda _: None, lambda: False)
    assert picture.image.size == (64, 64)
    # Other programs load it as well; nothing of this machine is written into it.
    pipeline = PixArtAlphaPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert pipeline.transformer.config.sample_size == 8
    for file in folder.rglob("*.json"):
        assert str(walked.run) not in file.read_text("utf-8"), file
    # Again: what was trained here is replaced, a stranger is not.
    assert publish.publish(recipe, stages.results(recipe, walked.run), walked.models) == folder
    (folder / publish.MADE_BY).unlink()
    with pytest.raises(SaveError, match="was not trained here"):
        publish.publish(recipe, stages.results(recipe, walked.run), walked.models)
    shutil.rmtree(folder)


def test_the_vae_scale_gives_latents_of_unit_variance(walked: Place) -> None:
    vae = AutoencoderKL.from_pretrained(walked.run / "01-vae" / "result" / "vae")
    assert vae.config.scaling_factor != 0.18215


def test_the_same_command_again_does_nothing(walked: Place) -> None:
    before = {f: f.stat().st_mtime_ns for f in walked.run.rglob("*.safetensors")}
    assert walked.walk(small_recipe()).step == 0
    assert {f: f.stat().st_mtime_ns for f in walked.run.rglob("*.safetensors")} == before


def test_one_stage_is_repeated_by_deleting_its_folder(walked: Place, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(walked.run, copied)
    first = _weights(copied / "04-words")
    shutil.rmtree(copied / "04-words")
    stages.walk(
        small_recipe(),
        root=copied,
        data=walked.data,
        report=lambda _: lambda _: None,
        should_stop=lambda: False,
        only="words",
    )
    again = _weights(copied / "04-words")
    assert all(torch.equal(first[name], again[name]) for name in first)


def _weights(stage: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(stage / "result" / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_stop_while_features_are_computed_goes_on(tmp_path: Path, walked: Place) -> None:
    place = Place(tmp_path)
    shutil.copytree(walked.run / "01-vae", place.run / "01-vae")
    looks = iter(range(10**6))
    outcome = place.walk(small_recipe(), only="pixels", should_stop=lambda: next(looks) >= 1)
    assert outcome.reason == "stopped"
    assert place.walk(small_recipe(), only="pixels").reason == "finished"


def test_a_stage_before_its_base_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with pytest.raises(RequestError, match="needs the result of “vae”, which is not finished"):
        place.walk(small_recipe(), only="pixels")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"base": {"vae": "nowhere"}}, "There is no model folder nowhere"),
        ({"data": {"source": "nothing-here", "side": 64}}, "nothing-here"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, walked: Place, change: dict[str, Any], sentence: str
) -> None:
    place = Place(tmp_path)
    shutil.copytree(walked.run / "01-vae", place.run / "01-vae")
    with pytest.raises((RequestError, ModelError), match=sentence):
        place.walk(small_recipe(**change), only="pixels")


def test_an_unknown_table_of_sizes_is_said(tmp_path: Path, walked: Place) -> None:
    place = Place(tmp_path)
    for name in ("01-vae", "02-text", "03-pixels"):
        shutil.copytree(walked.run / name, place.run / name)
    values = small.recipe()
    values["stage"][3]["data"] = {"source": "pictures", "bins": "129"}
    with pytest.raises(RequestError, match="no table of sizes called “129”"):
        place.walk(resolve(values, name="small"), only="words")


def test_other_pictures_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    outcome = place.walk(small_recipe(), only="text", should_stop=place.trains)
    assert outcome.reason == "stopped"
    table = place.data / "pictures" / "metadata.jsonl"
    table.write_text(table.read_text().replace("a red disc", "a crimson disc"))
    with pytest.raises(RequestError, match="are not those that"):
        place.walk(small_recipe(), only="text")


def test_a_text_stage_keeps_its_tokenizer_over_a_stop(tmp_path: Path, walked: Place) -> None:
    """The library numbers pieces differently each time, and weights belong to one numbering."""
    place = Place(tmp_path)
    place.walk(small_recipe(), only="text", should_stop=place.trains)
    place.seen.clear()
    (kept,) = (place.run / "cache" / "tokenizers").iterdir()
    before = kept.read_bytes()
    assert place.walk(small_recipe(), only="text").reason == "finished"
    assert kept.read_bytes() == before
    result = place.run / "02-text" / "result" / "tokenizer" / "tokenizer.json"
    assert json.loads(result.read_bytes())["model"] == json.loads(before)["model"]


def test_a_finished_stage_goes_on_when_it_is_given_more_steps(
    walked: Place, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(walked.run, copied)
    values = small.recipe()
    values["stage"][1]["steps"] = 6
    outcome = stages.walk(
        resolve(values, name="small"),
        root=copied,
        data=walked.data,
        report=lambda _: lambda _: None,
        should_stop=lambda: False,
        only="text",
    )
    assert (outcome.reason, outcome.step) == ("finished", 6)


def test_a_vae_can_go_on_from_another(tmp_path: Path, walked: Place) -> None:
    place = Place(tmp_path)
    values = small.recipe()
    del values["stage"][1:], values["publish"]
    values["stage"][0]["base"] = {"vae": str(walked.run / "01-vae" / "result")}
    values["stage"][0]["data"]["held_out"] = 0.0
    assert place.walk(resolve(values, name="more")).reason == "finished"


def test_samples_can_be_handed_to_spawned_loaders(tmp_path: Path, walked: Place) -> None:
    """Windows, macOS and new Pythons start loader processes without copying memory."""
    from training.data.sources import Sources
    from training.loop.order import Pick
    from training.methods import class_to_image, text_to_image

    recipe = small_recipe()
    result = {
        name: of_folder(walked.run / name / "result") for name in ("01-vae", "02-text", "03-pixels")
    }
    bases = {"vae": result["01-vae"], "text": result["02-text"], "transformer": result["03-pixels"]}
    for name, method in (("pixels", class_to_image), ("words", text_to_image)):
        sources = Sources(
            recipe.stage(name),
            folder=walked.data,
            cache=walked.run / "cache",
            bases=bases,
            report=lambda _: None,
            tell=lambda _: None,
            should_stop=lambda: False,
        )
        samples = method.task(recipe.stage(name), sources).samples
        mine = samples[Pick(index=3, key=5)]
        theirs = pickle.loads(pickle.dumps(samples))[Pick(index=3, key=5)]
        assert all(
            torch.equal(mine[k], theirs[k]) if isinstance(mine[k], torch.Tensor) else True
            for k in mine
        )


def test_a_damaged_vae_is_a_sentence(tmp_path: Path, walked: Place) -> None:
    place = Place(tmp_path)
    shutil.copytree(walked.run / "01-vae", place.run / "01-vae")
    weights = place.run / "01-vae" / "result" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be loaded"):
        place.walk(small_recipe(), only="pixels")


@pytest.mark.parametrize("count", [1, 2])
def test_one_picture_is_enough(tmp_path: Path, walked: Place, count: int) -> None:
    place = Place(tmp_path)
    shutil.rmtree(place.data / "pictures")
    small.pictures(place.data / "pictures", count)
    for name in ("01-vae", "02-text", "03-pixels"):
        shutil.copytree(walked.run / name, place.run / name)
    assert place.walk(small_recipe(), only="words").reason == "finished"


def test_pictures_without_labels_cannot_teach_classes(tmp_path: Path, walked: Place) -> None:
    place = Place(tmp_path)
    table = place.data / "pictures" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text("\n".join(json.dumps(row | {"label": None}) for row in rows))
    shutil.copytree(walked.run / "01-vae", place.run / "01-vae")
    with pytest.raises(RequestError, match="No picture has what this training needs"):
        place.walk(small_recipe(), only="pixels")


def test_nothing_is_published_before_the_end(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not a finished text-to-image"):
        stages.results(small_recipe(), tmp_path)
