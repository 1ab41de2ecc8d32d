"""The verb `train` as people type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import launch as launcher
from tests import ports, tiny, warm
from tests.training import small

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PIXART_STUDIO_WORKSPACE": str(cwd / "w")}
    return warm.launch(*arguments, cwd=cwd, env=env)


def toml(values: dict[str, Any]) -> str:
    """Tables of scalars, lists and inline tables as TOML."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + "}"
        return json.dumps(value)

    lines = [f"title = {json.dumps(values['title'])}"]
    if "publish" in values:
        lines += ["[publish]", *(f"{k} = {inline(v)}" for k, v in values["publish"].items())]
    for stage in values["stage"]:
        lines += ["[[stage]]", *(f"{k} = {inline(v)}" for k, v in stage.items())]
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    small.pictures(tmp_path / "data" / "pictures")
    (tmp_path / "small.toml").write_text(toml(small.recipe()), "utf-8")
    return tmp_path


def test_from_pictures_to_a_painting(place: Path) -> None:
    command = ("train", "text-to-image", "small.toml", "--data", "data")
    done = launch(*command, "--set", "steps=2", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(place / "w" / "models" / "small")
    assert "Loading weights" not in done.stderr
    painted = launch(
        "generate", "a red disc", "--model", "small", "--steps", "2", "--json", cwd=place
    )
    assert painted.returncode == 0, painted.stderr
    assert json.loads(painted.stdout)["model"] == "small"
    again = launch(*command, "--set", "steps=2", "--json", cwd=place)
    assert again.returncode == 0
    assert json.loads(again.stdout.splitlines()[-1])["model"].endswith("small")
    other = launch(*command, "--set", "steps=2", "--set", "batch=2", cwd=place)
    assert other.returncode == 2
    assert "another recipe (batch: 4 -> 2)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nanoo",), "Did you mean “nano”?"),
        (("small.toml", "--data", "nowhere"), "There is no folder"),
        (("small.toml", "--data", "data", "--set", "vae.stepz=1"), "Did you mean “steps”?"),
        (("small.toml", "--data", "data", "--stage", "word"), "Did you mean “words”?"),
        (("small.toml", "--data", "data", "--stage", "words"), "needs the result of “pixels”"),
        (("small.toml", "--data", "small.toml"), "There is no folder"),
        (("small.toml", "--data", "data", "--run", "small.toml"), "is a file, not a folder"),
        (("small.toml", "--data", "data", "--run", "data"), None),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(
    place: Path, arguments: tuple[str, ...], sentence: str | None
) -> None:
    if sentence is None:
        (place / "data" / "01-vae").mkdir()
        (place / "data" / "01-vae" / "letter.txt").write_text("dear", "utf-8")
        sentence = "holds no run"
    done = launch("train", "text-to-image", *arguments, cwd=place)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_check_says_what_is_wrong(place: Path) -> None:
    (place / "data" / "pictures" / "bad.png").write_bytes(b"no picture")
    done = launch("train", "check", "data/pictures", "--bins", "128", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "24 pictures can be used." in done.stdout
    assert "bad.png" in done.stdout
    assert "128x128: 24 pictures" in done.stdout
    told = launch("train", "check", "data/pictures", "--json", cwd=place)
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert rows[-1] == {"usable": 24}
    assert [row["code"] for row in rows if row.get("path") == "bad.png"] == ["unreadable"]
    empty = place / "empty"
    empty.mkdir()
    nothing = launch("train", "check", "empty", cwd=place)
    assert nothing.returncode == 2
    assert len(nothing.stderr.strip().splitlines()) == 1


def test_check_looks_into_an_archive(place: Path) -> None:
    with zipfile.ZipFile(place / "photos.zip", "w") as archive:
        for file in (place / "data" / "pictures").iterdir():
            archive.write(file, file.name)
        archive.writestr("setup.exe", b"MZ")
    done = launch("train", "check", "photos.zip", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "24 pictures can be used." in done.stdout
    assert "setup.exe" in done.stderr


def finished(place: Path, values: dict[str, Any]) -> bool:
    """Whether every stage of two.toml has gone all its updates."""
    runs = place / "w" / "runs" / "two"
    stories = [
        runs / f"{number:02d}-{stage['name']}" / "result" / "training.json"
        for number, stage in enumerate(values["stage"], 1)
    ]
    return [json.loads(story.read_text("utf-8"))["step"] for story in stories] == [4] * len(stories)


TWO = ("train", "text-to-image", "two.toml", "--data", "data", "--workspace", "w")


def test_two_processes_walk_the_stages(place: Path) -> None:
    values = small.recipe()
    del values["publish"], values["stage"][2:]
    (place / "two.toml").write_text(toml(values), "utf-8")
    port = str(ports.free())
    two = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port)
    done = subprocess.run(
        [sys.executable, *two, str(ROOT / "launch.py"), *TWO],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert finished(place, values)


def command(*arguments: str) -> None:
    sys.exit(launcher.main(list(arguments)))


def test_two_processes_that_share_the_weights_walk_the_stages(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small.recipe()
    del values["publish"], values["stage"][4:]
    values["all"] = {"shard": True}
    (place / "two.toml").write_text(toml(values), "utf-8")
    monkeypatch.chdir(place)
    processes = [warm.Started(command, *TWO, **place) for place in warm.places(2)]
    codes = [process.wait(240) for process in processes]
    assert codes == [0, 0], [process.stderr for process in processes]
    assert finished(place, values)


def test_scenes_need_their_package(place: Path) -> None:
    done = launch("train", "scenes", "nowhere.tgz", "out", cwd=place)
    assert done.returncode == 2
    assert "npm pack @lobehub/fluent-emoji-3d" in done.stderr
    wrong = launch("train", "scenes", "nowhere.tgz", "out", "--kinds", "pair=many", cwd=place)
    assert "is not of the form kind=weight" in wrong.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures without a word, packed as a person sends them."""
    folder = small.pictures(tmp_path / "photos", count=4)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(folder.glob("*.png")):
            archive.write(file, file.name)
    tiny.build(tmp_path / "w" / "models" / "tiny")
    return tmp_path


def test_a_subject_is_learned_from_photos_and_painted(photos: Path) -> None:
    command = (
        *("train", "dreambooth", "--data", "photos.zip", "--base", "tiny", "--name", "my-disc"),
        *("--word", "sks", "--kind", "disc", "--set", "precision=fp32", "--set", "data.side=64"),
        *("--set", "preview.every=0", "--set", "accumulate=1", "--set", "optimizer.lr=0.01"),
    )
    done = launch(*command, "--set", "steps=2", cwd=photos)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(photos / "w" / "loras" / "my-disc.safetensors")
    listed = launch("loras", "list", "--json", cwd=photos)
    (row,) = map(json.loads, listed.stdout.splitlines())
    assert (row["name"], row["title"]) == ("my-disc", "my-disc")
    assert (row["trigger"], row["base"]) == ("sks disc", "tiny")
    paint = ("generate", "sks disc", "--model", "tiny", "--steps", "2", "--seed", "1", "--json")
    with_it = launch(*paint, "--lora", "my-disc", cwd=photos)
    assert with_it.returncode == 0, with_it.stderr
    painted = json.loads(with_it.stdout)
    assert painted["loras"] == [{"name": "my-disc", "weight": 1.0}]
    bare = json.loads(launch(*paint, cwd=photos).stdout)
    assert Path(painted["path"]).read_bytes() != Path(bare["path"]).read_bytes()
    # Longer is the same training; another rank is another one.
    longer = launch(*command, "--set", "steps=3", "--json", cwd=photos)
    assert json.loads(longer.stdout.splitlines()[-1])["lora"].endswith("my-disc.safetensors")
    other = launch(*command, "--set", "steps=3", "--set", "lora.rank=2", cwd=photos)
    assert other.returncode == 2
    assert "another recipe (lora.rank: 16 -> 2)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lora", "dreambooth"), "is a recipe of `train dreambooth`"),
        (("dreambooth", "lora-style"), "is a recipe of `train lora`"),
        (("text-to-image", "dreambooth"), "is a recipe of `train dreambooth`"),
        (("dreambooth", "--base", "tinny"), "Did you mean “tiny”?"),
        (("dreambooth", "--base", "alpha-512"), "launch.py models download alpha-512"),
        (("dreambooth", "--word", " "), "subject.word is empty"),
        (("dreambooth", "--kind", ""), "subject.kind is empty"),
        (("dreambooth", "--name", "../dog"), "[publish] id"),
        (("dreambooth", "--set", "lora.rank=4096"), "less than or equal to 1024"),
        (("dreambooth", "--set", "publish.idd=x"), "idd"),
        (("lora",), "No picture in"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(
    photos: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    kind = arguments[0]
    given = arguments if len(arguments) != 1 else (*arguments, "--base", "tiny")
    data = () if "--data" in arguments else ("--data", "photos.zip")
    done = launch("train", *given, *data, cwd=photos)
    assert done.returncode == 2, (kind, done.stderr)
    assert sentence.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
