"""Styles: line drawings, what is asked, and the whole way on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests import tiny
from tests.training.evaluation import sprites
from training.evaluation import references, styles
from training.evaluation.edges import Edges
from training.evaluation.measure import Count
from training.evaluation.references import Look
from training.evaluation.teaching import Surroundings


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sprites.package(tmp_path_factory.mktemp("npm"))


def test_edges_are_dark_where_colours_meet() -> None:
    picture = Image.new("RGB", (96, 64), "yellow")
    ImageDraw.Draw(picture).rectangle((30, 16, 66, 48), fill="navy")
    drawing = Edges().drawing(picture)
    assert drawing.size == (96, 64)
    tones = np.asarray(drawing.convert("L"), dtype=int)
    assert tones[14:19, 30:66].min(axis=0).max() < 110, "the upper edge"
    assert tones[32, 28:33].min() < 110, "the left edge"
    assert tones[30:34, 44:52].min() > 170, "inside"
    assert tones[4:8, 8:90].min() > 170, "outside"


def test_new_prompts_ask_for_other_things(source: Path) -> None:
    taught, asked = styles.things(source)
    names = {thing.name for thing in taught}
    assert len(taught) == len(names) == len(asked) == 40
    assert not names & {thing.name for thing in asked}
    assert styles.caption(taught[0]).startswith("a line drawing of ")


def test_a_style_is_told_from_another() -> None:
    edges = Edges()
    plain, lines = [], []
    for number in range(6):
        picture = Image.new("RGB", (64, 64), ("red", "green", "blue")[number % 3])
        ImageDraw.Draw(picture).ellipse((10 + number, 12, 50, 52), fill="gold")
        plain.append(picture)
        lines.append(edges.drawing(picture))
    nearer = styles._nearer(lines[:3], plain[:3])
    assert [nearer(picture) for picture in lines[3:]] == [True] * 3
    assert [nearer(picture) for picture in plain[3:]] == [False] * 3


class _Seeing:
    def look(self, picture: Image.Image, emoji: str) -> Look:
        return Look(colour="white", place="", nearest=emoji, likeness=1.0)


def test_the_whole_way(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styles, "PICTURES", 10)
    monkeypatch.setattr(references, "references", lambda *_, **__: _Seeing())
    tiny.build(tmp_path / "models" / "tiny")
    around = Surroundings(
        models=tmp_path / "models",
        inputs=tmp_path / "inputs",
        cache=tmp_path / "cache",
        report=lambda step: None,
        tell=lambda sentence: None,
        should_stop=lambda: False,
    )
    out = tmp_path / "out"
    changes = ("steps=1", "batch=2", "lora.rank=2", "precision=fp32")
    found = styles.run("tiny", source, out, changes, around)
    assert found is not None
    assert found.right == Count(hits=10, total=10)
    assert {way: one.total for way, one in found.styled.items()} == {
        "without": 10,
        "with": 10,
        "unasked": 10,
    }
    assert len(list((out / "drawings").glob("*.png"))) == 10
    texts = [file.read_text("utf-8") for file in (out / "drawings").glob("*.txt")]
    assert len(texts) == 10
    assert all("line drawing" in text for text in texts)
    assert (out / "loras" / "line-drawing.safetensors").is_file()
    told: dict[str, Any] = json.loads((out / "style.json").read_bytes())
    assert told["right"] == {"hits": 10, "total": 10}
    with Image.open(out / "style.png") as sheet:
        assert sheet.width == 10 * 64
    assert "10 of 10" in styles.table(found)
    assert references.VIEWS == 2
