"""The endpoint `generate` takes every field, with the limits and the sentences of the form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.ui.api import EARLIER
from app.ui.create import fields
from pipelines.errors import StudioError
from pipelines.request import FIELDS
from tests import tiny
from tests.app.ui.fake_studio import FakeStudio, served
from tests.small_loras import NANO, lora

LOST = "0123456789abcdef.png"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> FakeStudio:
    workspace = tmp_path_factory.mktemp("api-fields")
    lora(workspace / "loras" / "ink.safetensors", wide=NANO)
    lora(workspace / "loras" / "narrow.safetensors")
    tiny.build(workspace / "models" / "told", micro_conditions=True)
    return FakeStudio(workspace, steps=2, pace=0.001)


@pytest.fixture(scope="module")
def client(studio: FakeStudio) -> Iterator[Client]:
    with served(studio) as address:
        yield Client(address, verbose=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.new("RGB", (96, 64), "teal").save(file)
    return file


# One value for each field that is not its default; together they make a request.
GIVEN: dict[str, Any] = {
    "prompt": "a cat",
    "negative": "a dog",
    "model": "nano",
    "sampler": "sa-solver",
    "steps": 7,
    "guidance": 3.5,
    "size": "96x160",
    "seed": "18446744073709551614",
    "count": 2,
    "style": "Cinematic",
    "strength": 0.35,
    "predictor_order": 3,
    "corrector_order": 1,
    "eta": 0.25,
    "tau_at_start": True,
    "loras": "ink:0.5",
    "clean_caption": True,
    "approximate": True,
}


def test_every_field_can_be_given(client: Client, studio: FakeStudio, photo: Path) -> None:
    told = set(FIELDS) - set(GIVEN)
    assert told == {"init", "original_size"}
    painted = client.predict(**GIVEN, init=handle_file(photo), api_name="/generate")
    assert len(painted) == 2
    # As the form would have it.
    start = studio.keep_start(photo).name
    form = fields.first(studio) | GIVEN | {"init": start, "new_seed": False}
    wanted = studio.request(fields.request_values(form))
    for index, picture in enumerate(painted):
        expected = json.loads(wanted.single(index).model_dump_json(exclude={"count"}))
        answer = {name: picture[name] for name in expected}
        assert answer == expected | {"seed": str(wanted.seed + index)}
    assert painted[0]["loras"] == [{"name": "ink", "weight": 0.5}]
    assert painted[0]["init"] == start


def test_weights_far_from_1_are_confirmed(client: Client) -> None:
    given = {"model": "nano", "loras": "ink:3"}
    for sure in ({}, {"confirm": False}, {"confirm": None}):
        with pytest.raises(AppError, match=r"ink:3 is beyond -2 to 2, .* with confirm=true"):
            client.predict("a cat", **given, **sure, api_name="/generate")
    (painted,) = client.predict("a cat", **given, confirm=True, api_name="/generate")
    assert painted["loras"] == [{"name": "ink", "weight": 3.0}]
    (usual,) = client.predict("a cat", model="nano", loras="ink:2", api_name="/generate")
    assert usual["loras"] == [{"name": "ink", "weight": 2.0}]
    # By raw HTTP it has its place behind the fields of now; no other value is a yes.
    data = ["a cat", "", "nano", *[None] * 13, "ink:3", *[None] * 3]
    assert call(client, [*data, True]).startswith("event: complete")
    for value in (1, "true", [True]):
        assert call(client, [*data, value]).startswith("event: error"), value


def test_a_kept_picture_is_named_as_the_recipe_names_it(
    client: Client, studio: FakeStudio, photo: Path
) -> None:
    name = studio.keep_start(photo).name
    (painted,) = client.predict("a cat", init=name, strength=0.4, api_name="/generate")
    assert (painted["init"], painted["strength"]) == (name, 0.4)


def test_an_original_size_is_for_models_that_are_told_one(client: Client) -> None:
    given = {"model": "told", "size": "64x64", "original_size": "2048x1024"}
    (painted,) = client.predict("a cat", **given, api_name="/generate")
    assert painted["original_size"] == "2048x1024"


@pytest.mark.parametrize(
    "wrong",
    [
        {"loras": "lost"},
        {"loras": "narrow"},
        {"loras": "ink:99"},
        {"original_size": "2048x1024"},
        {"original_size": "big"},
        {"init": LOST},
        {"init": "../../etc/passwd"},
        {"init": LOST, "sampler": "dmd"},
        {"sampler": "sa-solver", "eta": 2},
        {"sampler": "sa-solver", "predictor_order": 9},
        {"clean_caption": "perhaps"},
        {"approximate": 7},
    ],
    ids=str,
)
def test_wrong_values_are_answered_as_in_the_form(
    client: Client, studio: FakeStudio, wrong: dict[str, Any]
) -> None:
    with pytest.raises(StudioError) as form:
        values = fields.first(studio) | {"prompt": "a cat", "model": "nano"} | wrong
        if values["init"]:
            studio.find_start(values["init"])
        studio.request(fields.request_values(values))
    with pytest.raises(AppError) as caught:
        client.predict("a cat", model="nano", **wrong, api_name="/generate")
    assert str(form.value) in str(caught.value)


def test_the_strength_of_a_start_has_limits(client: Client, photo: Path) -> None:
    with pytest.raises(AppError, match="The strength must be a number from just above 0 to 1"):
        client.predict("a cat", init=handle_file(photo), strength=0, api_name="/generate")


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ({"path": "/etc/hostname"}, "to start from was not uploaded"),
        ({"path": "/etc/hostname", "meta": {}}, "to start from was not uploaded"),
        ({"path": "../../../etc/hostname"}, "to start from was not uploaded"),
        ({"path": "a\0b"}, "to start from was not uploaded"),
        ({"path": 7}, "to start from was not uploaded"),
        ({}, "to start from was not uploaded"),
        ({"url": "http://127.0.0.1:1/x.png"}, "to start from was not uploaded"),
        ([LOST], "is not there any more"),
        (7, "is not there any more"),
        ({"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}, "would not send"),
    ],
    ids=str,
)
def test_a_file_of_the_machine_is_no_start(
    client: Client, studio: FakeStudio, start: Any, sentence: str
) -> None:
    before = set(studio.settings.inputs.glob("*"))
    # By raw HTTP: gradio's client would upload the file from here.
    data = ["a cat", "", "", "", None, None, "", "", 1, "None", start]
    said = call(client, data)
    assert said.startswith("event: error")
    assert sentence in said
    assert "Traceback" not in said
    assert set(studio.settings.inputs.glob("*")) == before


def call(client: Client, data: list[Any]) -> str:
    with httpx.Client(base_url=client.src, timeout=30) as http:
        posted = http.post("gradio_api/call/generate", json={"data": data})
        event = posted.json()["event_id"]
        return http.get(f"gradio_api/call/generate/{event}").text


def test_programs_of_earlier_versions_go_on(client: Client) -> None:
    """Ten values in the order of always, by gradio's client and by raw HTTP."""
    data = ["a cat", "", "", "", None, None, "96x160", "5", 1, "None"]
    assert len(data) == EARLIER
    (painted,) = client.predict(*data, api_name="/generate")
    assert (painted["seed"], painted["width"], painted["height"]) == ("5", 96, 160)
    assert (painted["loras"], painted["init"]) == ([], None)
    said = call(client, data)
    assert said.startswith("event: complete")
    assert json.loads(said.partition("data: ")[2])[0][0]["seed"] == "5"
    assert "takes 21 values and got 9" in call(client, data[:9])


def test_null_is_the_default_of_every_field(client: Client) -> None:
    said = call(client, ["a cat", *[None] * (len(FIELDS) - 1)])
    assert said.startswith("event: complete")
