"""The table of training methods: it is whole, and nobody else asks for a method by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from training.methods.table import METHODS, known

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_everything(name: str) -> None:
    row = METHODS[name]
    assert row.name == name
    assert row.title
    assert row.trains
    assert row.needs
    # A method that changes a model has its net.
    assert bool(row.net) != (row.goes_on_from in row.frozen)
    assert callable(row.load())
    # A part is published with its model; everything else has a place of its own.
    assert (row.published is None) == (row.result == "part")
    assert set(row.bases) | {row.goes_on_from} <= {"vae", "text", "transformer"}
    assert set(row.frozen) <= set(row.bases)


def test_an_unknown_method_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="did you mean text-to-image"):
        known("text2image")
    with pytest.raises(ValueError, match="the methods are vae, text-encoder"):
        known("xyz")


def test_only_the_table_asks_for_methods_by_name() -> None:
    """ "vae" is a part and "lora" a result as well, so the others tell."""
    names = set(METHODS) - {"vae", "lora"}
    for file in sorted((ROOT / "training").rglob("*.py")):
        if file.name == "table.py":
            continue
        found = [
            node.value
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.Constant) and node.value in names
        ]
        assert found == [], file


def test_the_documentation_lists_the_table() -> None:
    text = (ROOT / "docs" / "train-from-scratch.md").read_text("utf-8")
    for row in METHODS.values():
        assert f"| `{row.name}` | {row.trains} | {row.needs} | {row.result}, " in text
