"""What the user's own models read of a released one stays, and a local copy spares a download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from app.cli.main import main
from app.models.importing import import_model
from app.models.rows import ImportOptions
from pipelines.catalog import Catalog
from pipelines.models import convert, loader
from pipelines.models.sources import ReadOptions
from tests import tiny
from tests.fake_hub import FakeHub
from tests.hub import published
from tests.hub.conftest import Shelf
from tests.hub.published import COCO, PTH, put_original

ALPHA = "alpha-1024"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def shelf(workspace: Path) -> Shelf:
    return Shelf(workspace)


@pytest.fixture
def model(hub: FakeHub, tmp_path: Path) -> Path:
    """A small model, published as the released one."""
    folder = tiny.build(tmp_path / "published", micro_conditions=True)
    published.put(hub, ALPHA, folder)
    return folder


def import_own(shelf: Shelf, model: Path, tmp_path: Path) -> None:
    convert.convert(model, tmp_path / "own.pth", ReadOptions())
    wanted = ImportOptions(id="mine", text=ALPHA, vae=ALPHA)
    import_model(tmp_path / "own.pth", shelf.settings.models, wanted)


def test_what_ones_own_model_reads_stays(
    shelf: Shelf, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert shelf.get(ALPHA)
    import_own(shelf, model, tmp_path)
    assert [part.part for part in shelf.store.removable(ALPHA)] == ["transformer", "scheduler"]
    assert main(["models", "remove", ALPHA, "--yes"]) == 0
    told = capsys.readouterr().out
    assert "T5-XXL text encoder: stays; it is read by “mine”" in told
    catalog = Catalog(user_models=shelf.settings.models)
    assert {spec.id for spec in catalog} == {"nano", "mine"}
    spec = catalog.find("mine")
    loader.check(spec)
    expected = load_file(model / "text_encoder" / "model.safetensors")
    assert load_file(spec.part("text_encoder") / "model.safetensors").keys() == expected.keys()
    # Nothing is left that could go.
    assert main(["models", "remove", ALPHA, "--yes"]) == 2
    assert "nothing to remove" in capsys.readouterr().err
    # Without its reader all of it can.
    assert main(["models", "remove", "mine", "--yes"]) == 0
    assert main(["models", "remove", ALPHA, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bytes_freed"] > 100_000
    assert not list(shelf.root.rglob("*.safetensors"))


@pytest.mark.parametrize("row", ["a place that is gone", "a row that is refused"])
def test_a_model_that_cannot_be_used_just_now_keeps_its_parts(
    row: str, shelf: Shelf, model: Path, tmp_path: Path
) -> None:
    assert shelf.get(ALPHA)
    import_own(shelf, model, tmp_path)
    file = shelf.settings.models / "mine" / "model.toml"
    text = file.read_text("utf-8")
    if row == "a row that is refused":
        file.write_text(text.replace('bins = "', 'bins = "no-'), "utf-8")
    else:
        file.write_text(f'{text}transformer = "/nowhere"\n', "utf-8")
    assert Catalog(user_models=shelf.settings.models).problems
    assert [part.part for part in shelf.store.removable(ALPHA)] == ["transformer", "scheduler"]


def test_a_model_that_was_left_in_place_keeps_all_it_reads(
    shelf: Shelf, model: Path, tmp_path: Path
) -> None:
    assert shelf.get(ALPHA)
    folder = Catalog(user_models=shelf.settings.models).find(ALPHA).folder
    wanted = ImportOptions(id="mine", in_place=True)
    import_model(folder, shelf.settings.models, wanted)
    assert shelf.store.removable(ALPHA) == ()
    assert shelf.store.remove(ALPHA) == 0
    loader.check(Catalog(user_models=shelf.settings.models).find("mine"))


def test_a_link_to_a_downloaded_file_keeps_that_file(
    shelf: Shelf, model: Path, tmp_path: Path
) -> None:
    assert shelf.get(ALPHA)
    import_own(shelf, model, tmp_path)
    own = shelf.settings.models / "mine"
    text = (own / "model.toml").read_text("utf-8")
    (own / "model.toml").write_text(text.partition("[places]")[0], "utf-8")
    there = Catalog(user_models=shelf.settings.models).find(ALPHA).part("vae")
    (own / "vae").mkdir()
    (own / "vae" / "weights.safetensors").symlink_to(next(there.glob("*.safetensors")))
    assert "vae" not in [part.part for part in shelf.store.removable(ALPHA)]
    assert "text_encoder" in [part.part for part in shelf.store.removable(ALPHA)]


def test_problems_are_said_and_stdout_stays_a_list(
    shelf: Shelf, capsys: Capture, tmp_path: Path
) -> None:
    broken = shelf.settings.models / "broken"
    broken.mkdir(parents=True)
    (broken / "model.toml").write_text("title =", "utf-8")
    for options in ([], ["--all"]):
        assert main(["models", "list", *options]) == 0
        told = capsys.readouterr()
        assert "broken/model.toml cannot be read" in told.err
        assert "broken" not in told.out
    assert main(["models", "list", "--json"]) == 0
    told = capsys.readouterr()
    assert [json.loads(line)["id"] for line in told.out.splitlines()] == ["nano"]
    assert "broken/model.toml cannot be read" in told.err


def test_a_name_is_offered_once(shelf: Shelf, model: Path, capsys: Capture) -> None:
    assert shelf.get(ALPHA)
    assert main(["generate", "x", "--model", "qqqqqq"]) == 2
    told = capsys.readouterr().err
    assert "Known: " in told
    assert told.count(ALPHA) == 1


@pytest.mark.parametrize("place", ["folder", "cache", "damaged", "own copy"])
def test_a_local_copy_of_the_checkpoint_is_read(
    place: str, hub: FakeHub, shelf: Shelf, tmp_path: Path, capsys: Capture
) -> None:
    data = put_original(hub, tiny.build(tmp_path / "tiny", seed=8))
    if place == "cache":
        repo = tmp_path / "cache" / "models--PixArt-alpha--PixArt-alpha"
        file = repo / "snapshots" / ("e" * 40) / PTH
    else:
        file = Path("output") / "pretrained_models" / PTH
    file.parent.mkdir(parents=True)
    content = bytes([data[0], data[1] ^ 1]) + data[2:] if place == "damaged" else data
    file.write_bytes(content)
    options = ["--own-copy"] if place == "own copy" else []
    assert main(["models", "download", COCO, "--yes", "--json", *options]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[0])
    (item,) = [item for item in plan["files"] if item["path"] == PTH]
    assert item["bytes_left"] == (len(data) if place == "own copy" else 0)
    # A copy that is not that file, byte for byte, is not believed.
    assert len(hub.requests(PTH)) == (1 if place in ("damaged", "own copy") else 0)
    spec = Catalog(user_models=shelf.settings.models).find(COCO)
    loader.check(spec)
    assert file.read_bytes() == content
    assert not list(shelf.root.rglob(PTH))
    shutil.rmtree(shelf.root)
    assert file.is_file()
