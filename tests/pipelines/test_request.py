"""Limits and defaults of a request, as every door of the studio gets them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import sizes
from pipelines.catalog import Catalog, ModelSpec
from pipelines.denoising import samplers
from pipelines.errors import RequestError, StudioError, UnknownNameError
from pipelines.models import hub_rows
from pipelines.request import GenerationRequest, complete, from_mapping
from pipelines.request_values import MAX_COUNT, MAX_PROMPT, MAX_SEED
from pipelines.text import styles

CATALOG = Catalog()


def test_defaults_come_from_model_and_sampler() -> None:
    request = complete({"prompt": "a red apple"}, CATALOG)
    model = CATALOG.default
    assert (request.model, request.sampler) == (model.id, "dpm-solver++")
    assert (request.steps, request.guidance) == (20, 4.5)
    assert sizes.Size(request.width, request.height) == model.default_size
    assert 0 <= request.seed < 2**32
    for row in samplers.SAMPLERS.values():
        request = complete({"prompt": "x", "sampler": row.id}, CATALOG)
        assert (request.steps, request.guidance) == (row.steps, row.guidance)


def test_a_prompt_is_cleaned_as_the_captions_of_the_training_were() -> None:
    trained: ModelSpec = CATALOG.default.model_copy(update={"cleaning": "authors"})
    assert not complete({"prompt": "x"}, CATALOG).clean_caption
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CATALOG, "_rows", {trained.id: trained})
        request = complete({"prompt": "x"}, CATALOG)
        assert request.cleaning == "authors"
        assert complete({"prompt": "x", "clean_caption": False}, CATALOG).cleaning == "lower"
    # What an earlier studio painted with the same model, it painted without.
    recipe = request.recipe()
    assert from_mapping(recipe) == request
    del recipe["clean_caption"]
    assert from_mapping(recipe).cleaning == "lower"
    assert "clean_caption" not in complete({"prompt": "x"}, CATALOG).recipe()


def test_the_released_models_say_how_they_were_trained() -> None:
    ways = {
        row.id: row.row.get("cleaning", "lower")
        for row in hub_rows.known().values()
        if row.kind in ("model", "original")
    }
    assert {id for id, way in ways.items() if way == "authors"} == {
        id for id in ways if not id.startswith("sigma")
    }


def test_new_seeds_differ() -> None:
    assert len({complete({"prompt": "x", "seed": ""}, CATALOG).seed for _ in range(8)}) > 6


BAD = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": 7}),
    ("prompt", {"prompt": "x" * 1_000_000}),
    ("prompt", {"prompt": "\x00\x07\x1b\x7f"}),
    ("prompt", {"prompt": " \n\t​‍﻿"}),
    ("negative", {"negative": "x" * (MAX_PROMPT + 1)}),
    ("size", {"size": "0"}),
    ("size", {"size": "0x0"}),
    ("size", {"size": "99999x64"}),
    ("size", {"size": "100x128"}),
    ("size", {"size": "-128x128"}),
    ("size", {"size": "128x128x128"}),
    ("size", {"width": 99999, "height": 64}),
    ("size", {"width": "a", "height": 64}),
    ("steps", {"steps": 0}),
    ("steps", {"steps": 10**6}),
    ("steps", {"steps": 2.5}),
    ("steps", {"steps": "2.5"}),
    ("steps", {"steps": [1]}),
    ("steps", {"steps": 1}),
    ("steps", {"steps": 1, "sampler": "sa-solver"}),
    ("steps", {"steps": 51, "sampler": "lcm"}),
    ("steps", {"steps": 2, "sampler": "dmd"}),
    ("guidance", {"guidance": "nan"}),
    ("guidance", {"guidance": math.nan}),
    ("guidance", {"guidance": math.inf}),
    ("guidance", {"guidance": -1}),
    ("guidance", {"guidance": 1e9}),
    ("guidance", {"guidance": 4.5, "sampler": "lcm"}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 2**64}),
    ("seed", {"seed": "abc"}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": "9" * 5000}),
    ("seed", {"seed": MAX_SEED, "count": 2}),
    ("count", {"count": 0}),
    ("count", {"count": 10**6}),
    ("model", {"model": "../../etc/passwd"}),
    ("sampler", {"sampler": "__class__"}),
    ("style", {"style": "Cinematik"}),
    ("init", {"init": "../../../etc/passwd"}),
    ("init", {"init": "http://127.0.0.1/x.png"}),
    ("sampler", {"sampler": "dmd", "init": "0123456789abcdef.png"}),
    ("strength", {"strength": 0}),
    ("original_size", {"original_size": "big"}),
    ("original_size", {"original_size": "8x2048"}),
    ("original_size", {"original_size": "99999x2048"}),
    ("eta", {"eta": 1.01}),
    ("predictor_order", {"predictor_order": 5}),
    ("wrong", {"wrong": 1}),
]


@pytest.mark.parametrize(("field", "values"), BAD)
def test_bad_values_are_one_sentence_at_the_field(field: str, values: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        complete({"prompt": "x", **values}, CATALOG)
    assert caught.value.field == field
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize(
    ("field", "given_name", "nearest"),
    [
        ("model", "nanno", "nano"),
        ("sampler", "dpm", "dpm-solver++"),
        ("sampler", "eulr", "euler"),
        ("style", "cinematik", "Cinematic"),
    ],
)
def test_unknown_names_say_the_nearest(field: str, given_name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean") as caught:
        complete({"prompt": "x", field: given_name}, CATALOG)
    assert f"“{nearest}”" in str(caught.value)


def test_control_characters_become_spaces_and_the_rest_stays() -> None:
    request = complete({"prompt": " a\x00b\ud800c\n é中 "}, CATALOG)
    assert request.prompt == "a b c\n é中"
    json.dumps(request.model_dump(mode="json"), ensure_ascii=False).encode("utf-8")


def test_braces_in_a_prompt_are_text() -> None:
    style = styles.find("cinematic")
    assert style.apply("{prompt} {0} %s", "")[0].count("{prompt} {0} %s") == 1
    for each in styles.all_styles().values():
        assert each.prompt.count("{prompt}") == 1


def test_largest_values_are_allowed() -> None:
    request = complete(
        {"prompt": "x", "seed": MAX_SEED - MAX_COUNT + 1, "count": MAX_COUNT}, CATALOG
    )
    assert request.single(MAX_COUNT - 1).seed == MAX_SEED


@given(
    st.dictionaries(
        st.sampled_from([*GenerationRequest.model_fields, "size"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=50)
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
)
def test_anything_is_a_request_or_a_sentence(values: dict[str, object]) -> None:
    try:
        request = complete(values, CATALOG)
    except StudioError as error:
        assert "\n" not in str(error)
    else:
        assert from_mapping(json.loads(json.dumps(request.model_dump(mode="json")))) == request


def test_bins_equal_the_trained_ones_of_diffusers() -> None:
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as stock

    for name in ("256", "512", "1024"):
        trained = getattr(stock, f"ASPECT_RATIO_{name}_BIN").values()
        expected = [sizes.Size(int(width), int(height)) for height, width in trained]
        assert list(sizes.bins(name)) == expected
        for size in expected:
            sizes.check(size)


@given(st.text(max_size=60))
def test_any_text_is_a_size_or_a_sentence(text: str) -> None:
    try:
        sizes.check(sizes.parse(text))
    except RequestError as error:
        assert error.field == "size"
