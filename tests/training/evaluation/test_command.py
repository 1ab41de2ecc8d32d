"""The whole way: a model's folder in, a report out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.catalog import ROOT
from pipelines.errors import ModelError, RequestError, UnknownNameError
from tests import tiny
from tests.training.evaluation import sprites
from training.evaluation import command, paint
from training.evaluation.judge import Judge
from training.evaluation.measure import BACKGROUND, OBJECT
from training.evaluation.prompts import all_prompts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sprites.package(tmp_path_factory.mktemp("npm"))


def run(model: str, source: Path, tmp_path: Path, **changes: Any) -> Any:
    return command.run(
        model,
        source,
        **{
            "workspace_models": tmp_path / "models",
            "inputs": tmp_path / "inputs",
            "cache": tmp_path / "cache",
            "limit": 3,
            "report": lambda step: None,
            "should_stop": lambda: False,
            **changes,
        },
    )


def test_a_models_folder_is_measured(
    model: Path, source: Path, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def found(things: Any, cache: Path, report: Any, should_stop: Any) -> Judge:
        asked.append((things[0].name, cache))
        return judge

    monkeypatch.setattr(command.judges, "find", found)
    kept: list[Image.Image] = []
    report = run(str(model), source, tmp_path, keep=kept.append)
    assert asked == [("cat", tmp_path / "cache")]
    assert [row.prompt for row in report.rows] == [asked.prompt for asked in all_prompts()[:3]]
    assert report.complete
    assert report.measures[BACKGROUND].total == 3
    assert report.ceiling is not None
    assert report.ceiling[OBJECT].total == report.measures[OBJECT].total
    assert report.likeness is not None
    assert report.best is not None
    assert min(report.likeness.energy, report.best.energy) > 0
    # The model's default size; the ceiling's pictures are not the model's.
    assert [picture.size for picture in kept] == [(64, 64)] * 3
    # The same model by its name in the workspace paints the same.
    again: list[Image.Image] = []
    named = run("small", source, tmp_path, workspace_models=model.parent, keep=again.append)
    assert named == report
    assert [a.tobytes() for a in again] == [a.tobytes() for a in kept]


def test_pictures_do_not_depend_on_the_others(model: Path, tmp_path: Path) -> None:
    painter = paint.EvaluationPainter(
        str(model),
        workspace_models=tmp_path,
        inputs=tmp_path,
        report=lambda step: None,
        should_stop=lambda: False,
    )
    first, other = painter("a cat", 7), painter("a cat", 8)
    again = painter("a cat", 7)
    assert first is not None
    assert other is not None
    assert again is not None
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_a_stop_while_the_judge_learns(model: Path, source: Path, tmp_path: Path) -> None:
    report = run(str(model), source, tmp_path, should_stop=lambda: True)
    assert (report.asked, report.rows, report.ceiling) == (3, (), None)


def test_the_shipped_model_by_id_and_by_folder(tmp_path: Path) -> None:
    for name in ("nano", str(ROOT / "assets" / "models" / "nano")):
        _, spec = paint._find(name, tmp_path)
        assert (spec.id, spec.embedded) == ("nano", True)


def test_models_that_cannot_be_measured(model: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nano"):
        run("nanoo", source, tmp_path)
    with pytest.raises(RequestError, match=r"holds no model\.toml"):
        run(str(tmp_path), source, tmp_path)
    # Never the shipped one in place of the folder that was asked for.
    shutil.copytree(model, tmp_path / "nano")
    with pytest.raises(ModelError, match="called “nano” already"):
        run(str(tmp_path / "nano"), source, tmp_path)
    for limit in (0, -1, 449):
        with pytest.raises(RequestError, match="1 to 448"):
            run(str(model), source, tmp_path, limit=limit)
    with pytest.raises(UnknownNameError, match="“countz”"):
        run(str(model), source, tmp_path, lists=("countz",))
    with pytest.raises(RequestError, match="npm pack"):
        run(str(model), tmp_path / "none.tgz", tmp_path)
