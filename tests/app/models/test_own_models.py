"""Models of one's own can be given up, and nothing else goes with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from app.cli import main
from app.models import own_models
from pipelines.catalog import Catalog
from pipelines.errors import ModelError, SaveError
from tests import tiny


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tiny.build(tmp_path / "workspace" / "models" / "dog")
    return tmp_path / "workspace" / "models"


def test_the_folder_goes_and_its_bytes_are_told(models: Path) -> None:
    size = sum(file.stat().st_size for file in (models / "dog").rglob("*") if file.is_file())
    assert own_models.find(models, "dog").size == size > 100_000
    assert own_models.remove(models, "dog") == size
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["nano", "alpha-1024", "hub", "", ".", "..", "../models/dog", "dog/vae", ".dog", "cat"]
)
def test_only_a_folder_with_a_row_is_ones_own(models: Path, name: str) -> None:
    (models / "hub").mkdir()
    (models / "hub" / "model.toml").touch()
    (models / ".dog").mkdir()
    (models / ".dog" / "model.toml").touch()
    assert not own_models.is_own(models, name)
    with pytest.raises(ModelError, match="not a model of your own"):
        own_models.remove(models, name)
    assert (models / "dog" / "model.toml").is_file()


def test_what_another_model_reads_stays(models: Path) -> None:
    cat = models / "cat"
    cat.mkdir()
    row = (models / "dog" / "model.toml").read_text("utf-8")
    places = {part: models / "dog" / part for part in ("transformer", "vae", "text_encoder")}
    lines = [f"{part} = {json.dumps(str(place))}" for part, place in places.items()]
    (cat / "model.toml").write_text("\n".join([row, "[places]", *lines]), "utf-8")
    assert not Catalog(user_models=models).problems
    with pytest.raises(ModelError, match="“cat” reads the transformer of “dog”"):
        own_models.remove(models, "dog")
    own_models.remove(models, "cat")
    assert (models / "dog" / "vae").is_dir(), "parts that lie elsewhere stay"
    own_models.remove(models, "dog")


def test_of_a_link_only_the_link_goes(models: Path, tmp_path: Path) -> None:
    home = (models / "dog").rename(tmp_path / "elsewhere")
    (models / "dog").symlink_to(home)
    assert own_models.find(models, "dog").is_link
    assert own_models.remove(models, "dog") == 0
    assert not (models / "dog").exists()
    assert (home / "model.toml").is_file()


def test_a_row_that_cannot_be_read_can_be_removed(models: Path) -> None:
    (models / "dog" / "model.toml").write_text("title =", "utf-8")
    own_models.remove(models, "dog")
    assert Catalog(user_models=models).problems == []


def test_a_folder_that_stays_is_a_sentence(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(SaveError, match="cannot be deleted"):
        own_models.remove(models, "dog")


def test_a_removal_that_fails_halfway_names_what_is_left(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(SaveError) as caught:
        own_models.remove(models, "dog")
    (left,) = models.iterdir()
    assert left.name.endswith(".gone")
    assert str(left) in caught.value.message


def test_the_command(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = ["--workspace", str(models.parent)]
    assert main.main(["models", "remove", "dog", *workspace]) == 2
    assert "--yes" in capsys.readouterr().err
    assert (models / "dog").is_dir()
    size = own_models.find(models, "dog").size
    assert main.main(["models", "remove", "dog", "--yes", "--json", *workspace]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "dog", "bytes_freed": size}
    assert main.main(["models", "remove", "dog", "--yes", *workspace]) == 2
