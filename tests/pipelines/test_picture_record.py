"""The one record of a painted picture, and what is made of it."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.gallery.pictures import PictureFile
from pipelines.catalog import Catalog
from pipelines.errors import RequestError
from pipelines.picture_record import Picture, PictureRecord
from pipelines.request import complete

ROOT = Path(__file__).resolve().parents[2]
REQUEST = complete({"prompt": "a cat", "seed": 2**64 - 1, "loras": ""}, Catalog())
FACTS: dict[str, Any] = {
    "weights": "a1b2",
    "lora_hashes": (("ink", "0a" * 32),),
    "notes": ("less memory",),
    "seconds": 2.5,
    "peak": 7,
    "forecast": 6,
}


def test_a_record_crosses_a_pipe_as_json() -> None:
    record = PictureRecord(request=REQUEST, **FACTS)
    assert PictureRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    file = PictureFile.of(record, Path("outputs") / "2026-11-22" / "101530-42-a1b2c3.png")
    again = PictureFile.from_json(json.loads(json.dumps(file.to_json())))
    assert again == file
    assert again.name == "2026-11-22/101530-42-a1b2c3.png"


def test_a_file_has_all_that_the_engine_told() -> None:
    picture = Picture(request=REQUEST, image=Image.new("RGB", (8, 8)), **FACTS)
    file = PictureFile.of(picture, Path("a.png"))
    assert file.facts() == picture.facts() == {"request": REQUEST, **FACTS}


def test_a_fact_that_is_new_needs_no_second_line() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rated(PictureRecord):
        stars: int = 0

    rated = Rated(request=REQUEST, stars=4)
    assert Rated.from_json(rated.to_json()) == rated


@pytest.mark.parametrize("fact", ["peak", "forecast", "notes"])
def test_nobody_else_copies_the_facts_by_name(fact: str) -> None:
    """Whoever hands a picture on hands on its record, and so whatever is added to it."""
    assert fact in {field.name for field in fields(PictureRecord)}
    makers = {
        file.relative_to(ROOT).as_posix()
        for package in ("app", "pipelines")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in MAKERS
        and fact in {keyword.arg for keyword in node.keywords}
    }
    # Where the fact comes from: the engine, which notes and measures, and the recipe of a file.
    assert makers <= {"pipelines/engine.py", "app/gallery/metadata.py"}


MAKERS = ("Picture", "PictureRecord", "PictureFile", "IndexedPicture", "replace", "tell")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({}, KeyError),
        ({"request": {"prompt": 1}}, RequestError),
        ({"request": REQUEST.recipe(), "seconds": "long"}, ValueError),
        ({"request": REQUEST.recipe(), "notes": 7}, ValueError),
    ],
)
def test_what_is_no_record_is_refused(values: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        PictureRecord.from_json(values)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), 10**400, "x", None, [1]])
def test_figures_that_are_none_are_refused(figure: object) -> None:
    told = {"seconds": 1.0, "peak": 2, "forecast": 3}
    record = PictureRecord(request=REQUEST)
    assert record.with_figures(told).figures() == told
    for name in told:
        with pytest.raises((TypeError, ValueError, ArithmeticError)):
            record.with_figures(told | {name: figure})
