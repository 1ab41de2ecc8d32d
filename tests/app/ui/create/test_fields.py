"""The way from the form to the request and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.ui import choices
from app.ui.create import fields
from app.ui.create.fields import FIELDS
from pipelines import sizes
from pipelines.catalog import Catalog
from pipelines.denoising import samplers
from pipelines.errors import StudioError
from pipelines.request import GenerationRequest
from tests import tiny
from tests.app.ui.fake_studio import FakeStudio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeStudio]:
    fake = FakeStudio(tmp_path_factory.mktemp("fields"))
    yield fake
    fake.close()


def test_every_field_of_a_request_is_in_the_form() -> None:
    assert set(FIELDS) - {"new_seed", "size"} == set(GenerationRequest.model_fields) - {
        "width",
        "height",
    }


@pytest.mark.parametrize("sampler", sorted(samplers.SAMPLERS))
def test_a_request_survives_the_form(studio: FakeStudio, sampler: str) -> None:
    values: dict[str, Any] = {
        "prompt": "a cat",
        "negative": "dog",
        "sampler": sampler,
        "seed": str(2**64 - 1),
    }
    if samplers.SAMPLERS[sampler].orders:
        values |= {"predictor_order": 3, "corrector_order": 1, "eta": 0.3}
    request = studio.request(values)
    again = studio.request(fields.request_values(fields.from_request(request)))
    assert again == request


def test_the_first_form_needs_only_a_prompt(studio: FakeStudio) -> None:
    form = fields.first(studio)
    with pytest.raises(StudioError):
        studio.request(fields.request_values(form))
    assert studio.request(fields.request_values(form | {"prompt": "a cat"})).count == 1


def test_a_new_seed_each_time_ignores_the_one_that_is_shown(studio: FakeStudio) -> None:
    form = fields.first(studio) | {"prompt": "x", "seed": "5"}
    seeds = {studio.request(fields.request_values(form)).seed for _ in range(4)}
    assert len(seeds) == 4
    form["new_seed"] = False
    assert studio.request(fields.request_values(form)).seed == 5


def test_hidden_fields_are_not_sent(studio: FakeStudio) -> None:
    form = fields.first(studio) | {"prompt": "x", "eta": 0.1, "strength": 0.2}
    values = fields.request_values(form)
    assert "eta" not in values
    assert "strength" not in values


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(field=st.sampled_from(sorted(FIELDS)), value=json)
def test_whatever_is_sent_is_a_request_or_a_sentence(
    studio: FakeStudio, field: str, value: Any
) -> None:
    form = fields.first(studio) | {"prompt": "x", field: value}
    try:
        studio.request(fields.request_values(form))
    except StudioError as error:
        assert str(error)
    fields.limits(form)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kept=st.dictionaries(st.sampled_from(sorted(FIELDS)), json) | json)
def test_storage_of_the_browser_is_not_trusted(studio: FakeStudio, kept: Any) -> None:
    form = fields.restored(kept, studio)
    assert set(form) == set(FIELDS)
    assert form["sampler"] in samplers.SAMPLERS
    studio.model(form["model"])


def test_what_was_typed_is_restored(studio: FakeStudio) -> None:
    kept = fields.first(studio) | {"prompt": "a dog", "seed": "nonsense", "steps": 33}
    assert fields.restored(kept, studio) == kept


def test_only_models_with_size_conditions_are_told_an_original_size(tmp_path: Path) -> None:
    studio = FakeStudio(tmp_path)
    tiny.build(studio.settings.models / "tiny")
    tiny.build(studio.settings.models / "tiny-1024", micro_conditions=True)
    studio.catalog.reload()
    kept = fields.first(studio) | {"original_size": "2048x1024", "size": "64x64", "prompt": "x"}
    plain = fields.restored(kept | {"model": "tiny"}, studio)
    assert plain["original_size"] == ""
    with pytest.raises(StudioError, match="size conditions"):
        studio.request({"prompt": "x", "model": "tiny", "original_size": "2048x1024"})
    again = fields.restored(kept | {"model": "tiny-1024"}, studio)
    request = studio.request(fields.request_values(again))
    assert request.told_size == (1024, 2048)
    assert fields.from_request(request)["original_size"] == "2048x1024"
    assert fields.for_model({"model": "tiny"}, studio)["original_size"] == ""
    assert not fields.knows_sizes({"model": "none such"}, studio)
    studio.close()


def test_a_start_picture_that_is_gone_is_not_restored(studio: FakeStudio) -> None:
    assert fields.restored({"init": "0123456789abcdef.png"}, studio)["init"] == ""


def test_guidance_off_says_why() -> None:
    assert "LCM" in fields.guidance_off({"sampler": "lcm", "guidance": 0})
    assert "1 or less" in fields.guidance_off({"sampler": "euler", "guidance": 1})
    assert fields.guidance_off({"sampler": "euler", "guidance": 1.1}) == ""


def test_a_distilled_sampler_warns_on_other_models(studio: FakeStudio) -> None:
    note = fields.sampler_note({"sampler": "lcm", "model": "nano"}, studio)
    assert "distilled" in note
    assert "PixArt nano is not one of them" in note


@pytest.mark.parametrize("row", samplers.SAMPLERS.values(), ids=lambda row: row.id)
def test_sliders_follow_the_sampler(row: samplers.Sampler) -> None:
    allowed = fields.limits({"sampler": row.id, "guidance": row.guidance})
    assert allowed["steps"]["minimum"] == row.min_steps
    assert allowed["steps"]["maximum"] >= row.max_steps
    assert allowed["steps"]["minimum"] < allowed["steps"]["maximum"]
    assert (allowed["eta"]["visible"] is True) == row.orders


def test_all_shapes_can_be_picked_and_few_come_first() -> None:
    table = sizes.bins("512")
    html = choices.shapes(table, "512x512", 1024)
    front, more = html.split("More shapes")
    assert all(f'value="{size}"' in html for size in table)
    assert front.count('type="radio"') == 9
    assert '<details class="more-shapes">' in front
    assert '<details class="more-shapes" open>' in choices.shapes(table, "1024x256", 1024)
    assert more.count('type="radio"') == len(table) - 9


def test_any_size_can_be_typed_and_is_kept(studio: FakeStudio) -> None:
    html = choices.shapes(sizes.bins("128"), "128x192", 256)
    assert re.search(r'min="64" max="256" step="16" value="128".*value="192"', html)
    kept = fields.first(studio) | {"size": "128x192"}
    assert fields.restored(kept, studio)["size"] == "128x192"
    for wrong in ("100x128", "16x16", "99999x128", "x", 7, None):
        assert fields.restored(kept | {"size": wrong}, studio)["size"] == "128x128"


def test_a_single_shape_is_explained() -> None:
    assert "The one shape" in choices.shapes(sizes.bins("128"), "128x128", 256)


def test_a_shape_from_an_old_recipe_can_be_painted_again() -> None:
    assert 'value="128x192"' in choices.shapes(sizes.bins("128"), "128x192", 256)
    assert "<b" not in choices.shapes((), "<b>x1", 256)


def test_every_sampler_and_style_is_in_its_select(studio: FakeStudio, tmp_path: Path) -> None:
    html = choices.sampler_select("")
    assert all(f'value="{name}"' in html for name in samplers.SAMPLERS)
    assert html.index("optgroup") > html.index('value="dmd"')
    assert "Apache-2.0" in choices.model_select(studio.catalog, studio.catalog.default)


def test_a_model_row_that_cannot_be_read_is_said_at_the_picker(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "<b>mine"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text("= = =", "utf-8")
    catalog = Catalog(user_models=tmp_path / "models")
    html = choices.model_select(catalog, catalog.default)
    assert "Not every model can be used; the Models tab says why." in html
    assert "mine" not in html


def test_numbers_that_no_request_may_have_do_not_come_back(studio: FakeStudio) -> None:
    kept = fields.first(studio) | {"count": 99, "steps": 100_000, "guidance": -5, "strength": 0.4}
    back = fields.restored(kept, studio)
    first = fields.first(studio)
    assert {n: back[n] for n in ("count", "steps", "guidance")} == {
        n: first[n] for n in ("count", "steps", "guidance")
    }
    assert back["strength"] == 0.4
    assert fields.restored(kept | {"steps": 500}, studio)["steps"] == first["steps"]
    slow = fields.restored(kept | {"sampler": "iddpm", "steps": 500}, studio)
    assert slow["steps"] == 500


def test_a_number_that_no_float_holds_is_no_number() -> None:
    for value in (10**400, -(10**400), float("inf"), float("nan"), True, "1", None):
        assert not fields._is_number(value)
    assert fields._is_number(0)
    assert fields._is_number(4.5)
