"""What is different on a Hugging Face Space."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app import hosting
from app.settings import workspace_path
from app.ui.guards.origins import Authority, Names
from pipelines.catalog import Catalog
from pipelines.errors import RequestError
from pipelines.request import GenerationRequest, complete
from pipelines.request_values import MAX_COUNT


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPACE_ID", "SPACE_HOST", "SPACES_ZERO_GPU", "PIXART_STUDIO_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/studio")
    monkeypatch.setenv("SPACE_HOST", "me-studio.hf.space,paint.example")


def request(**values: object) -> GenerationRequest:
    return complete({"prompt": "a red apple", **values}, Catalog())


def test_at_home_nothing_is_less() -> None:
    assert hosting.default_host() == "127.0.0.1"
    assert hosting.most_pictures() == MAX_COUNT
    hosting.check(request(count=MAX_COUNT, steps=200))


@pytest.mark.usefixtures("space")
def test_a_visitor_gets_a_share() -> None:
    assert hosting.default_host() == "0.0.0.0"
    assert hosting.most_pictures() == hosting.MOST_PICTURES
    hosting.check(request(count=hosting.MOST_PICTURES, steps=hosting.MOST_STEPS))
    with pytest.raises(RequestError, match="at most 4 pictures, not 5") as told:
        hosting.check(request(count=5))
    assert told.value.field == "count"
    with pytest.raises(RequestError, match="at most 100 steps, not 101") as told:
        hosting.check(request(steps=101))
    assert told.value.field == "steps"


@pytest.mark.usefixtures("space")
def test_the_workspace_lies_where_a_restart_does_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hosting, "STORAGE", tmp_path / "data")
    assert workspace_path() == tmp_path / "workspace"
    (tmp_path / "data").mkdir()
    assert workspace_path() == tmp_path / "data" / "pixart-studio"
    assert workspace_path(str(tmp_path / "mine")) == tmp_path / "mine"
    monkeypatch.setenv("PIXART_STUDIO_WORKSPACE", str(tmp_path / "other"))
    assert workspace_path() == tmp_path / "other"
    monkeypatch.delenv("PIXART_STUDIO_WORKSPACE")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert workspace_path() == tmp_path / "workspace"


def test_at_home_the_storage_of_spaces_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hosting, "STORAGE", tmp_path)
    assert workspace_path() == tmp_path / "workspace"


@pytest.mark.usefixtures("space")
def test_a_space_that_listens_to_all_still_knows_its_names() -> None:
    names = Names.of("0.0.0.0")
    for host in ("me-studio.hf.space", "paint.example", "any.hf.space", "127.0.0.1", "10.1.2.3"):
        assert names.knows(Authority(host=host, port=None), 7860), host
    for host in ("evil.example", "evilhf.space", "hf.space.evil.example"):
        assert not names.knows(Authority(host=host, port=None), 7860), host


def test_elsewhere_the_token_guards_an_open_host() -> None:
    assert Names.of("0.0.0.0").knows(Authority(host="studio.lan", port=80), 7860)
