"""What is prepared for a training: photos as people have them, crops, captions, what is kept."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from app.training import orders
from app.training.preparation import MOST_PHOTOS, Crop, Photo, Preparation, Preparations
from pipelines.errors import RequestError, StudioError


@pytest.fixture
def prepared(tmp_path: Path) -> Preparations:
    return Preparations(tmp_path / "trainings")


@pytest.fixture
def made(prepared: Preparations) -> Preparation:
    return prepared.new("subject", "nano")


def picture(
    file: Path, size: tuple[int, int] = (80, 60), shade: int = 0, **options: object
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 90, 30)).save(file, **options)  # type: ignore[arg-type]
    return file


def test_it_is_there_again_as_it_was(prepared: Preparations, made: Preparation) -> None:
    changed = prepared.change(made.id, subject="dog", settings={"steps": "40"})
    again = Preparations(prepared.root)
    assert again.get(made.id) == changed
    assert [one.id for one in again.all()] == [made.id]
    again.remove(made.id)
    assert again.all() == []
    with pytest.raises(RequestError, match="not there any more"):
        again.get(made.id)


def test_photos_come_one_by_one(prepared: Preparations, made: Preparation, tmp_path: Path) -> None:
    for number in range(3):
        file = picture(tmp_path / f"{number}.jpg", shade=80 * number)
        made = prepared.add(made.id, f"holidays/dog {number}.jpg", file)
    assert [one.file for one in made.photos] == ["0001.jpg", "0002.jpg", "0003.jpg"]
    assert [one.title for one in made.photos] == ["dog 0.jpg", "dog 1.jpg", "dog 2.jpg"]
    again = prepared.add(made.id, "copy.jpg", tmp_path / "0.jpg")
    assert len(again.photos) == 3
    assert again.left_out == ("“copy.jpg” is there already.",)
    left = prepared.drop(made.id, "0002.jpg")
    assert [one.file for one in left.photos] == ["0001.jpg", "0003.jpg"]
    assert not (prepared.root / made.id / "originals" / "0002.jpg").exists()


def test_a_turned_photo_is_seen_upright(
    prepared: Preparations, made: Preparation, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    made = prepared.add(made.id, "a.jpg", picture(tmp_path / "a.jpg", (80, 60), exif=exif))
    (photo,) = made.photos
    assert (photo.width, photo.height) == (60, 80)
    assert photo.notes == ("Turned upright.",)
    with Image.open(BytesIO(prepared.picture(made.id, photo.file))) as seen:
        assert seen.size == (60, 80)


def archive(file: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
        if link:
            member = zipfile.ZipInfo(link)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            opened.writestr(member, "/etc/passwd")
    return file


def test_a_zip_brings_photos_and_captions_and_nothing_else(
    prepared: Preparations, made: Preparation, tmp_path: Path
) -> None:
    good = picture(tmp_path / "x.png", shade=9).read_bytes()
    file = archive(
        tmp_path / "dogs.zip",
        {
            "dogs/a.png": good,
            "dogs/a.txt": b"a dog on a sofa",
            "../evil.png": good,
            "dogs/film.mp4": b"\0" * 100,
            "dogs/bomb.png": b"\0" * 5_000_000,
        },
        link="dogs/link.png",
    )
    made = prepared.add(made.id, "dogs.zip", file)
    (photo,) = made.photos
    assert photo.caption == "a dog on a sofa"
    assert not list(tmp_path.glob("**/evil.png"))
    told = " ".join(made.left_out)
    for name in ("evil.png", "film.mp4", "bomb.png", "link.png"):
        assert name in told
    assert sorted(os.listdir(prepared.root / made.id)) == ["originals", "preparation.json"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("film.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 300),
        ("photo.heic", b"\0\0\0\x18ftypheic" + b"\0" * 300),
        ("empty.png", b""),
        ("cut.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 30),
        ("bad.zip", b"PK\x03\x04 and no more"),
        ("note.txt", b"a dog"),
    ],
)
def test_what_is_no_photo_is_a_sentence(
    prepared: Preparations, made: Preparation, tmp_path: Path, name: str, data: bytes
) -> None:
    file = tmp_path / "upload"
    file.write_bytes(data)
    try:
        made = prepared.add(made.id, name, file)
        told = made.left_out
    except StudioError as error:
        told = (str(error),)
    assert prepared.get(made.id).photos == ()
    assert told
    assert all(str(tmp_path) not in sentence for sentence in told)


@pytest.mark.parametrize("size", [(1, 1), (4000, 8)])
def test_a_photo_of_no_use_is_left_out(
    prepared: Preparations, made: Preparation, tmp_path: Path, size: tuple[int, int]
) -> None:
    made = prepared.add(made.id, "a.png", picture(tmp_path / "a.png", size))
    assert made.photos == ()
    assert "a.png" in made.left_out[0]


def test_there_is_an_end_of_photos(
    prepared: Preparations, made: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.training.preparation.MOST_PHOTOS", 2)
    for number in range(3):
        picture(tmp_path / "many" / f"{number}.png", shade=80 * number)
    made = prepared.add(made.id, "many", tmp_path / "many")
    assert len(made.photos) == 2
    assert "the rest stays out" in made.left_out[-1]
    assert MOST_PHOTOS == 1000


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (Crop(), (0, 0, 100, 60)),
        (Crop(zoom=2.0), (25, 15, 75, 45)),
        (Crop(x=0.0, y=0.0, zoom=2.0), (0, 0, 50, 30)),
        (Crop(x=1.0, y=1.0, zoom=4.0), (75, 45, 100, 60)),
    ],
)
def test_a_crop_stays_within_the_photo(crop: Crop, box: tuple[int, int, int, int]) -> None:
    assert crop.box(100, 60) == box


def test_a_run_gets_what_is_seen(prepared: Preparations, made: Preparation, tmp_path: Path) -> None:
    whole = Image.new("RGB", (80, 80), "white")
    whole.paste((255, 0, 0), (0, 0, 40, 40))
    whole.save(tmp_path / "a.png")
    made = prepared.add(made.id, "a.png", tmp_path / "a.png")
    made = prepared.add(made.id, "b.jpg", picture(tmp_path / "b.jpg"))
    photo = made.photos[0].model_copy(
        update={"crop": Crop(x=0.25, y=0.25, zoom=2.0), "caption": " red "}
    )
    prepared.save(made.with_photo(photo))
    prepared.write(made.id, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["0001.png", "0001.txt", "0002.jpg"]
    with Image.open(tmp_path / "run" / "0001.png") as cropped:
        assert cropped.size == (40, 40)
        assert cropped.getcolors() == [(1600, (255, 0, 0))]
    assert (tmp_path / "run" / "0001.txt").read_text("utf-8") == "red\n"
    assert (tmp_path / "run" / "0002.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


def test_a_copy_has_photos_of_its_own(
    prepared: Preparations, made: Preparation, tmp_path: Path
) -> None:
    prepared.add(made.id, "a.png", picture(tmp_path / "a.png"))
    prepared.change(made.id, name="my-dog", runs=("my-dog",))
    other = prepared.copy(made.id)
    assert (other.name, other.runs, len(other.photos)) == ("", (), 1)
    prepared.remove(made.id)
    assert prepared.picture(other.id, "0001.png")


@pytest.mark.parametrize("name", ["", "..", "../../etc", "0" * 12 + "/x", "g" * 12, "0" * 13])
def test_no_name_leads_out_of_the_folder(prepared: Preparations, name: str) -> None:
    with pytest.raises(RequestError):
        prepared.get(name)
    with pytest.raises(RequestError):
        prepared.add(name, "a.png", Path("/etc/passwd"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"id": "../../../../x"}', '{"photos": [{"file": "../../secret.png"}]}'],
)
def test_a_damaged_file_is_a_sentence(prepared: Preparations, made: Preparation, text: str) -> None:
    file = prepared.root / made.id / "preparation.json"
    told = json.loads(file.read_text("utf-8"))
    if text.startswith("{") and len(text) > 1:
        text = json.dumps(told | json.loads(text))
    file.write_text(text, "utf-8")
    with pytest.raises(RequestError, match="damaged"):
        prepared.get(made.id)
    assert prepared.all() == []


# --- what becomes of it ---------------------------------------------------------------------------


def ready(prepared: Preparations, made: Preparation, **values: object) -> Preparation:
    photo = Photo(file="0001.png", title="a.png", digest="0", width=64, height=64)
    return prepared.change(made.id, **{"subject": "dog", "photos": (photo,), **values})


def test_what_was_typed_is_the_recipe(
    prepared: Preparations, made: Preparation, tmp_path: Path
) -> None:
    settings = {
        "steps": "40",
        "lora.rank": "4",
        "gradient_checkpointing": "false",
        "preview.prompts": "a {subject} in the rain\n\na {kind}",
        "lora.ranks": "attn2.to_k = 2",
        "lora.alpha": "",
    }
    order = orders.order(ready(prepared, made, settings=settings, word="zwx"), tmp_path)
    config = order.recipe.stages[0]
    assert order.name == "zwx-dog"
    assert (config.steps, config.lora.rank, config.lora.alpha) == (40, 4, None)
    assert config.lora.ranks == {"attn2.to_k": 2}
    assert config.gradient_checkpointing is False
    assert config.preview_prompts == ("a zwx dog in the rain", "a dog")
    assert (config.base.model, config.subject.caption) == ("nano", "a photo of zwx dog")
    assert order.recipe.publish is not None
    assert order.recipe.publish.id == "zwx-dog"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"subject": " "}, "subject"),
        ({"word": " "}, "recipe"),
        ({"photos": ()}, "photos"),
        ({"name": "../x"}, "name"),
        ({"settings": {"steps": "many"}}, "steps"),
        ({"settings": {"steps": "0"}}, "recipe"),
        ({"settings": {"steps": ""}}, "steps"),
        ({"settings": {"lora.rank": "4096"}}, "recipe"),
        ({"settings": {"base.model": "x"}}, "base.model"),
        ({"settings": {"no.key": "x"}}, "no.key"),
        ({"settings": {"precision": "fp64"}}, "recipe"),
        ({"kind": "style"}, "captions"),
        ({"kind": "scratch", "recipe": "no-recipe", "name": "x"}, "recipe"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(
    prepared: Preparations,
    made: Preparation,
    tmp_path: Path,
    values: dict[str, object],
    field: str,
) -> None:
    with pytest.raises(StudioError) as caught:
        orders.order(ready(prepared, made, **values), tmp_path)
    assert getattr(caught.value, "field", "recipe") == field


def test_too_few_photos_are_a_warning(prepared: Preparations, made: Preparation) -> None:
    assert "One photo shows" in orders.warnings(ready(prepared, made))[0]


def test_a_caption_comes_behind_its_photo(prepared: Preparations, tmp_path: Path) -> None:
    """As browsers bring them, one file at a time."""
    key = prepared.new("style").id
    for folder, shade in (("a", 10), ("b", 90)):
        photo = tmp_path / f"{folder}.png"
        Image.new("RGB", (64, 64), (shade, 0, 0)).save(photo)
        text = tmp_path / "text"
        text.write_text(f"\ufeffa {folder}\r\nanother", "utf-8")
        prepared.add(key, f"{folder}/0.png", photo)
        prepared.add(key, f"{folder}/0.txt", text)
    assert [one.caption for one in prepared.get(key).photos] == ["a a", "a b"]
    with pytest.raises(RequestError, match="is the caption of no photo that is here"):
        prepared.add(key, "1.txt", text)
    text.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RequestError, match=r"0\.txt"):
        prepared.add(key, "0.txt", text)
    assert [one.caption for one in prepared.get(key).photos] == ["a a", "a b"]
    text.write_text("word " * 2000, "utf-8")
    last = prepared.add(key, "0.txt", text).photos[-1]
    assert (len(last.caption), last.notes) == (
        4000,
        ("Its caption had 9,999 characters; the first 4,000 are kept.",),
    )
