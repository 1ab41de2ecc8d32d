"""Every key of a recipe as a form shows it: read off the declaration, typed, and read back."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import RequestError
from training import recipe_fields, recipes
from training.recipe_fields import HELP

FIELDS = {one.key: one for one in recipe_fields.fields()}


def test_every_key_has_its_help_and_no_other() -> None:
    assert set(HELP) == set(FIELDS)
    assert all(text.endswith(".") for text in HELP.values())


@pytest.mark.parametrize("name", recipes.names())
def test_what_a_form_shows_is_read_back(name: str) -> None:
    config = recipes.read(recipes.find(name)).stages[-1]
    told = config.model_dump()
    for key, field in FIELDS.items():
        if key == "net":
            continue
        value: Any = told
        for part in key.split("."):
            value = value[part]
        back = field.parse(field.written(value))
        assert (tuple(back) if isinstance(back, list) else back) == value, key


def test_limits_are_those_of_the_declaration() -> None:
    assert (FIELDS["lora.rank"].low, FIELDS["lora.rank"].high) == (1, 1024)
    assert (FIELDS["optimizer.lr"].above, FIELDS["optimizer.lr"].high) == (0, 10)
    assert FIELDS["precision"].choices == ("fp32", "bf16", "fp16")
    assert (FIELDS["data.side"].kind, FIELDS["data.side"].optional) == ("whole", True)
    assert FIELDS["data.side"].low == 16


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("steps", "many"),
        ("steps", "1.5"),
        ("steps", ""),
        ("optimizer.lr", "0,5"),
        ("validation.timesteps", "100, x"),
        ("lora.ranks", "attn2.to_k"),
        ("preview.prompts", "x" * 5000),
    ],
)
def test_what_cannot_be_read_is_a_sentence(key: str, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        FIELDS[key].parse(text)
    assert caught.value.field == key
