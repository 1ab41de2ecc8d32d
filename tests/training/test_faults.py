"""What people give and what happens meanwhile: a sentence for each, and nothing that was learned is
lost."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, SaveError, StudioError
from pipelines.progress import Stage
from pipelines.text import seen_words
from tests import small_loras, tiny
from tests.training import small
from training import whole
from training.recipes import resolve
from training.whole import Trained

SUBJECT = {"word": "sks", "kind": "disc", "prior": "none"}


class Place:
    """A workspace with the model "tiny", and photos to learn from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = root / "photos"
        self.told: list[str] = []
        self.report: Callable[[Any], None] = lambda progress: None
        tiny.build(root / "models" / "tiny")

    def draw(self, count: int, side: int = 64) -> None:
        """So many photos, all different."""
        self.photos.mkdir(exist_ok=True)
        for number in range(count):
            colour = (number % 251, number // 251 * 40, 90)
            Image.new("RGB", (side, side), colour).save(self.photos / f"{number:04d}.png")

    def train(self, method: str = "dreambooth", *, run: str = "run", **more: Any) -> Trained:
        """Two updates."""
        own: dict[str, Any] = {
            "base": {"model": "tiny"},
            "data": {"source": more.pop("source", "photos"), "held_out": 0.0},
            "ema": {"decay": 0.0},
            "objective": {"variational": 0.0},
            "validation": {"every": 0},
            "steps": 2,
            "batch": 1,
        }
        if method != "lora":
            own["subject"] = SUBJECT
        if method != "dreambooth-net":
            own["lora"] = {"rank": 2}
        publish = {"id": "mine", "title": "Mine", "size": "64x64", "max_side": 256, "bins": "128"}
        stage = small.stage("one", method, **{**own, **more})
        return whole.train(
            resolve({"title": "One", "publish": publish, "stage": [stage]}, name="one"),
            root=self.root / run,
            data=self.root,
            models=self.root / "models",
            loras=self.root / "loras",
            catalog=Catalog(user_models=self.root / "models"),
            report=lambda config: self.report,
            should_stop=lambda: False,
            tell=self.told.append,
        )

    @property
    def features(self) -> bool:
        """Whether anything was computed."""
        return any((self.root / "run" / "cache" / "features").glob("*/*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    return made


# --- photos ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "There is only one picture of the subject: the model may learn the picture instead"),
        (2, "There are only 2 pictures of the subject"),
        (3, None),
        (31, "There are 31 pictures of the subject; 3 to 30 are enough"),
    ],
)
def test_few_and_many_photos_are_told(count: int, sentence: str | None, place: Place) -> None:
    place.draw(count)
    assert place.train().made is not None
    said = [line for line in place.told if "of the subject" in line]
    assert len(said) == (sentence is not None)
    assert all(line.startswith(sentence or "?") for line in said)


def test_a_thousand_photos_are_refused_before_anything_is_computed(place: Place) -> None:
    place.draw(1000, side=16)
    with pytest.raises(RequestError, match=r"There are 1,000 pictures.*at most 300") as caught:
        place.train()
    assert "data.limit = 30" in str(caught.value)
    assert not place.features
    # Nothing has begun, so the same run may take another recipe.
    assert place.train(data={"source": "photos", "held_out": 0.0, "limit": 3}).made is not None


def test_photos_of_every_kind_are_used_or_told(place: Place) -> None:
    place.draw(3)
    photo = Image.new("RGB", (80, 64), "red")
    photo.save(place.photos / "print.jpg")
    Image.new("CMYK", (72, 64), (10, 60, 200, 0)).save(place.photos / "cmyk.jpg")
    Image.new("I;16", (72, 72), 40_000).save(place.photos / "deep.png")
    turned = Image.new("RGB", (64, 100), "green")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(place.photos / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("pink", "navy")]
    frames[0].save(place.photos / "moving.webp", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save(place.photos / "pixel.png")
    Image.new("1", (20_000, 20_000)).save(place.photos / "huge.png")
    for name in ("film.mp4", "film.mov", "phone.heic"):
        (place.photos / name).write_bytes(b"\0\0\0\x18ftyp")
    assert place.train().made is not None
    (table,) = [line for line in place.told if line.startswith("what was done")]
    rows = {line.split()[2]: line.split()[:2] for line in table.splitlines()[1:]}
    assert rows["unsupported"] == ["rejected", "3"]
    assert rows["too-many-pixels"] == rows["too-small"] == ["rejected", "1"]
    assert rows["animated"] == ["warning", "1"]
    for code in ("cmyk", "16-bit", "rotated"):
        assert rows[code] == ["handled", "1"]
    assert any("8 pictures are used" in line for line in place.told)


def test_an_archive_from_anywhere_writes_nothing_outside(place: Place) -> None:
    place.draw(3)
    with zipfile.ZipFile(place.root / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(place.photos.iterdir()):
            archive.write(file, file.name)
        archive.write(place.photos / "0000.png", "../outside.png")
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(50_000_000))
    before = sorted(path.name for path in place.root.iterdir())
    assert place.train(source="photos.zip").made is not None
    assert sorted(path.name for path in place.root.iterdir()) == sorted([*before, "loras", "run"])
    told = "\n".join(place.told)
    for name in ("outside.png", "link.png", "bomb.png"):
        assert name in told
    assert not list(place.root.rglob("bomb.png"))


def test_a_caption_of_two_thousand_words_is_cut_and_told(place: Place) -> None:
    place.draw(2)
    with pytest.raises(RequestError, match="No picture in"):
        place.train("lora")
    for number in range(2):
        words = " ".join(f"word{n}" for n in range(2000))
        (place.photos / f"{number:04d}.txt").write_text(words)
    assert place.train("lora", run="other").made is not None
    assert any("long-caption" in line for line in place.told)


# --- words and names ------------------------------------------------------------------------------


def test_a_word_that_the_model_knows_is_told_and_learned(place: Place) -> None:
    place.draw(3)
    tokenizer = place.root / "models" / "tiny" / "tokenizer"
    (tokenizer / "words.txt").write_text("dog\napple\n")
    assert place.train(subject={**SUBJECT, "word": "dogs"}).made is not None
    (said,) = [line for line in place.told if "knows the word" in line]
    assert said.startswith("The model knows the word “dogs”")
    assert "“sks” means nothing to it" in said
    place.told.clear()
    spec = Catalog(user_models=place.root / "models").find("tiny")
    assert [seen_words.is_known(w, spec) for w in ("sks", "apple", "sks dog", "")] == [
        False,
        True,
        False,
        False,
    ]


def test_without_a_list_of_words_its_tokens_tell(place: Place) -> None:
    """As T5-XXL, whose vocabulary has frequent words whole."""
    file = place.root / "models" / "tiny" / "tokenizer" / "tokenizer.json"
    (file.parent / seen_words.WORDS_FILE).unlink()
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁dog", -2.0), ("▁", -5.0)]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(file))
    spec = Catalog(user_models=place.root / "models").find("tiny")
    words = ("dog", "Dog", "sks", "dog dog", "sks dog", "a dog")
    known = [seen_words.is_known(word, spec) for word in words]
    assert known == [True, True, False, True, False, False]
    assert seen_words.rare_word(spec) == "sks"


def test_a_name_that_is_taken_is_said_before_anything_is_computed(place: Place) -> None:
    place.draw(3)
    foreign = small_loras.lora(place.root / "loras" / "mine.safetensors")
    before = foreign.read_bytes()
    with pytest.raises(SaveError, match="“mine” that this training has not made") as caught:
        place.train()
    assert "--name" in str(caught.value)
    assert not place.features
    assert foreign.read_bytes() == before
    foreign.unlink()
    assert place.train().made == foreign
    # The same training in another folder is that one; other photos are another one.
    assert place.train(run="again").made == foreign
    place.draw(4)
    with pytest.raises(SaveError, match="has not made"):
        place.train(run="more")
    (place.root / "models" / "mine").mkdir()
    with pytest.raises(SaveError, match="is a model that was not trained here"):
        place.train("dreambooth-net", run="net")


def test_a_rank_that_no_layer_has_is_said_before_anything_is_computed(place: Place) -> None:
    place.draw(3)
    with pytest.raises(RequestError, match="rank 49 is larger than the layer"):
        place.train(lora={"rank": 49})
    assert not place.features
    place.draw(4)
    assert place.train(lora={"rank": 48}).made is not None


# --- what happens meanwhile -----------------------------------------------------------------------


def away(place: Place) -> Path:
    """Takes the base away; returns where it is now."""
    kept = place.root / "kept"
    (place.root / "models" / "tiny").rename(kept)
    return kept


def test_a_base_that_is_removed_while_it_waits(place: Place) -> None:
    place.draw(3)
    kept = away(place)
    with pytest.raises(StudioError, match="tiny"):
        place.train()
    kept.rename(place.root / "models" / "tiny")
    assert place.train().made is not None


@pytest.mark.parametrize("method", ["dreambooth", "dreambooth-net"])
def test_a_base_that_is_removed_while_it_learns(method: str, place: Place) -> None:
    """What learns has it in memory. A whole net wants its VAE and T5 at the end, and waits."""
    place.draw(3)

    def remove(progress: Any) -> None:
        if progress.stage is Stage.TRAINING and (place.root / "models" / "tiny").exists():
            shutil.move(place.root / "models" / "tiny", place.root / "kept")

    place.report = remove
    if method == "dreambooth":
        assert place.train(method).made is not None
        return
    with pytest.raises(StudioError, match="tiny"):
        place.train(method)
    place.report = lambda progress: None
    (place.root / "kept").rename(place.root / "models" / "tiny")
    steps: list[Any] = []
    place.report = lambda progress: (
        steps.append(progress) if progress.stage is Stage.TRAINING else None
    )
    assert place.train(method).made == place.root / "models" / "mine"
    assert steps == [], "what was learned was kept"


@pytest.mark.parametrize("method", ["dreambooth", "dreambooth-net"])
def test_a_disk_that_is_full_as_the_result_is_published(
    method: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.draw(3)
    finished = whole.publish.finished
    fsync = os.fsync

    def full(*given: Any, **named: Any) -> Any:
        def fails(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            return finished(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(whole.publish, "finished", full)
        with pytest.raises(StudioError, match=r"[Ff]ree some space|no space"):
            place.train(method)
    assert os.fsync is fsync
    assert LoraLibrary(place.root / "loras").cards() == []
    assert [path.name for path in (place.root / "models").iterdir()] == ["tiny"]
    seen: list[Any] = []
    place.report = seen.append
    assert place.train(method).made is not None
    assert Stage.TRAINING not in {progress.stage for progress in seen}
