"""Photos that nobody has described: what is said of them, and how they are shown besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipelines.catalog import Catalog
from tests import tiny
from tests.training import small
from training.adapter_config import SubjectConfig
from training.bases import of_model
from training.config import RunConfig
from training.data.sources import Sources
from training.loop.order import Pick
from training.loop.rng import generator
from training.methods import lora, subject_photos
from training.recipes import resolve

SUBJECT: dict[str, Any] = {
    "word": "sks",
    "kind": "disc",
    "wordings": ["{subject} on {a_colour} background", "{subject}, {colour}"],
    "places": ["small {subject} at the {place}, {colour}"],
    "moved": 0.5,
    "keep": ["a cat", "a dog on a red background"],
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    models = tmp_path_factory.mktemp("models")
    tiny.build(models / "tiny")
    return Catalog(user_models=models)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs on orange and on a background that is none."""
    folder = tmp_path_factory.mktemp("data")
    plain = Image.new("RGB", (64, 64), (244, 132, 32))
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name, picture in {"plain": plain, "noise": Image.fromarray(noise)}.items():
        ImageDraw.Draw(picture).ellipse((20, 16, 44, 48), fill="navy")
        picture.save(folder / f"{name}.png")
    return folder


def config(**subject: Any) -> RunConfig:
    stage = small.stage(
        "one",
        "dreambooth",
        base={"model": "tiny"},
        data={"source": ".", "held_out": 0.0},
        ema={"decay": 0.0},
        objective={"variational": 0.0, "dropout": 0.0},
        lora={"rank": 2},
        batch=2,
        preview={"every": 0, "prompts": ["{subject} on the moon", "any {kind}"]},
        subject={**SUBJECT, **subject},
    )
    return resolve({"title": "One", "stage": [stage]}, name="one").stages[0]


def task(values: RunConfig, data: Path, catalog: Catalog, tmp_path: Path) -> Any:
    sources = Sources(
        values,
        folder=data,
        cache=tmp_path / "cache",
        bases={name: of_model("tiny", catalog) for name in ("vae", "text", "transformer")},
        report=lambda progress: None,
        tell=lambda sentence: None,
        should_stop=lambda: False,
    )
    return values.row.load()(values, sources)


def test_a_plain_background_is_said() -> None:
    told = {k: tuple(v) if isinstance(v, list) else v for k, v in SUBJECT.items()}
    subject = SubjectConfig.model_validate(told)
    assert subject_photos.captions(subject, "orange") == (
        "sks disc on an orange background",
        "sks disc, orange",
    )
    assert subject_photos.captions(subject, None) == ("a photo of sks disc",)
    assert subject_photos.captions(SubjectConfig(kind="disc"), "red") == ("a photo of sks disc",)
    assert subject_photos.moved_captions(subject, "red")["left"] == (
        "small sks disc at the left, red",
    )


def test_a_wording_needs_the_subject() -> None:
    with pytest.raises(ValueError, match="subject"):
        SubjectConfig(wordings=("a photo",))
    with pytest.raises(ValueError, match="subject"):
        SubjectConfig(places=("at the left",))


@pytest.mark.parametrize("place", subject_photos.PLACES)
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_subject_is_shown_small_at_a_side(place: str, size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size, "orange")
    middle = (size[0] // 2, size[1] // 2)
    ImageDraw.Draw(photo).rectangle(
        (middle[0] - 15, middle[1] - 10, middle[0] + 15, middle[1] + 10), fill="navy"
    )
    shown = subject_photos.moved(photo, place, 0.4)
    assert shown is not None
    assert shown.size == size
    # Nothing but the background's colour is there besides.
    changed = np.abs(np.asarray(shown, dtype=int) - (255, 165, 0)).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    wide, high = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
    assert wide == pytest.approx(0.4 * min(size), abs=3)
    assert wide > high
    near = {
        "left": columns.min(),
        "right": size[0] - 1 - columns.max(),
        "top": rows.min(),
        "bottom": size[1] - 1 - rows.max(),
    }
    assert 0 < near.pop(place) < 8
    # As far from the sides across as from each other.
    across = ("left", "right") if place in ("top", "bottom") else ("top", "bottom")
    assert near[across[0]] == pytest.approx(near[across[1]], abs=3)


def test_an_empty_photo_is_not_moved() -> None:
    assert subject_photos.moved(Image.new("RGB", (64, 64), "orange"), "left", 0.4) is None


def test_photos_on_plain_backgrounds_are_moved(
    data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    made = task(config(), data, catalog, tmp_path)
    items = [made.samples[Pick(index=number % 2, key=number)] for number in range(400)]
    names = {item["ids"] for item in items}
    assert names == {"plain.png", "noise.png", "plain.png, moved"}
    moved = [item for item in items if item["ids"] == "plain.png, moved"]
    assert 70 < len(moved) < 130
    assert len({item["latents"].numpy().tobytes() for item in moved}) == 4 * 2
    # The same pick is the same, whenever it is read.
    again = made.samples[Pick(index=0, key=0)]
    assert torch.equal(again["latents"], items[0]["latents"])
    assert again["ids"] == items[0]["ids"]
    # Every place has words of its own.
    assert len({item["embeds"].numpy().tobytes() for item in moved}) == 4
    assert made.facts["captions"] >= 4 + 2 + 2


def test_nothing_is_moved_unless_asked(data: Path, catalog: Catalog, tmp_path: Path) -> None:
    for values in (config(moved=0.0), config(places=[])):
        made = task(values, data, catalog, tmp_path)
        items = [made.samples[Pick(index=number % 2, key=number)] for number in range(40)]
        assert {item["ids"] for item in items} == {"plain.png", "noise.png"}


def test_what_shall_stay_is_asked(data: Path, catalog: Catalog, tmp_path: Path) -> None:
    """The questions are the kind and `keep`, each about as often; nobody else's text changes."""
    made = task(config(), data, catalog, tmp_path)
    loss: lora.SubjectLoss = made.net
    asked, masked = (loss.get_buffer(name) for name in ("asked", "asked_mask"))
    assert len(asked) == 3
    embeds, mask = torch.zeros(2, 3, asked.shape[2]), torch.ones(2, 3)
    draw, seen = generator("questions"), []
    for _ in range(90):
        found, masks = loss._questions(embeds, mask, torch.tensor([True, False]), draw)
        assert not found[1].any()
        length = int(masks[0].sum())
        which = [
            row
            for row in range(3)
            if int(masked[row].sum()) == length
            and torch.equal(found[0, :length], asked[row, :length])
        ]
        assert len(which) == 1
        seen += which
    assert min(seen.count(row) for row in range(3)) > 15


def test_the_prior_counts_as_a_picture_does(data: Path, catalog: Catalog, tmp_path: Path) -> None:
    """A recipe that weighs the noise error by the timestep weighs the prior in the same way."""
    from training.methods.text_to_image import CaptionLoss

    values = config()
    weighed = values.model_copy(
        update={"objective": values.objective.model_copy(update={"clean": 50.0, "min_snr": 5.0})}
    )
    made = task(weighed, data, catalog, tmp_path)
    made.net._subject = made.net._subject.model_copy(update={"share": 0.999999})
    with torch.no_grad():
        for name, weight in made.net.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator(name)))
    batch = made.collate([made.samples[Pick(index=n, key=n)] for n in (0, 1)])
    found = made.net(batch, 5, None)
    assert (found["prior"] > 0).all()
    _, timesteps = lora.drawn(batch["latents"], generator(5), None, middle=0.0)
    scale = made.net.diffusion.weight(timesteps, min_snr=5.0, clean=50.0)
    torch.testing.assert_close(found["loss"], scale * found["prior"])
    assert isinstance(made.net, CaptionLoss)


def test_previews_are_about_the_subject(data: Path, catalog: Catalog, tmp_path: Path) -> None:
    assert config().preview_prompts == ("sks disc on the moon", "any disc")
