"""A field of a request is declared once: every door of the studio has it from there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import field_docs
from app.gallery.query import TERMS
from pipelines.request import FIELDS, GenerationRequest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the doors say of a field that only its declaration adds."""
    out = subprocess.run(
        [sys.executable, "-m", "tests.app.new_field", str(tmp_path_factory.mktemp("new"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    told: dict[str, Any] = json.loads(out.stdout)
    return told


def test_a_new_field_is_an_option_of_the_command_line(new: dict[str, Any]) -> None:
    assert "--grain F How much grain is added." in new["help"]


def test_a_new_field_is_in_the_docs(new: dict[str, Any]) -> None:
    assert "| `--grain F` | how much grain is added | 0 to 2 | 0.5 |" in new["docs"]


def test_a_new_field_is_in_the_recipe_where_it_says_something(new: dict[str, Any]) -> None:
    assert new["recipe"]["grain"] == 1.25
    assert new["again"]
    # Earlier versions read the recipes of pictures that do not use it.
    assert "grain" not in new["silent"]


def test_a_new_field_is_a_control_of_the_form(new: dict[str, Any]) -> None:
    shown = {
        "type": "slider",
        "label": "Film grain",
        "info": "As in old films.",
        "minimum": 0,
        "maximum": 2,
        "step": 0.25,
        "value": 0.5,
    }
    assert {name: new["control"][name] for name in shown} == shown
    assert new["painted"]["grain"] == 1.5
    # Shown again, kept by the browser, and not where the browser keeps what cannot be.
    assert new["form"] == [1.5, 1.5, 0.5]


def test_a_new_field_is_a_parameter_of_the_api(new: dict[str, Any]) -> None:
    parameter = new["parameter"]
    assert parameter["parameter_has_default"]
    assert parameter["parameter_default"] == 0.5
    assert parameter["type"] == {"type": "number"}


def test_a_new_field_is_in_the_infotext_and_is_found_by_it(new: dict[str, Any]) -> None:
    last = new["infotext"].splitlines()[-1]
    # Behind what other programs know.
    assert re.search(r"Size: 128x128, Model: nano, Film grain: 1.5, Version: PixArt", last)
    assert new["found"] == "2026-11-27/101531-1-a1b2c3.png"
    assert new["rest"] == ["2026-11-27/101530-0-a1b2c3.png"]
    assert new["listed"] == 1.5
    assert "<dt>Film grain</dt><dd>1.5" in new["detail"]


def test_a_new_field_has_its_limits(new: dict[str, Any]) -> None:
    field, sentence = new["error"]
    assert field == "grain"
    assert sentence == "The grain must be a number from 0 to 2, not “3”."


@pytest.mark.parametrize("name", field_docs.TABLES)
def test_the_tables_of_the_docs_are_those_of_the_fields(name: str) -> None:
    text = (field_docs.DOCS / field_docs.TABLES[name][0]).read_text("utf-8")
    assert field_docs.written(text, name, FIELDS) == text, "run: python -m app.field_docs"


def test_every_term_of_a_search_is_in_the_docs() -> None:
    text = (field_docs.DOCS / "gallery.md").read_text("utf-8")
    assert [term for term in TERMS if f"`{term}:" not in text] == []


def test_every_field_is_declared_for_every_door() -> None:
    assert {name for row in FIELDS.values() for name in row.names} == set(
        GenerationRequest.model_fields
    )
    assert len({row.option for row in FIELDS.values()}) == len(FIELDS)
