"""A training from its stages to its result, and when nothing is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from tests import tiny
from tests.training import small
from training import whole
from training.recipes import resolve
from training.whole import Trained

Train = Callable[..., Trained]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Two updates of a LoRA called "mine", or of another recipe."""
    tiny.build(tmp_path / "models" / "tiny")
    small.pictures(tmp_path / "data" / "pictures", count=4)
    own: dict[str, Any] = {
        "base": {"model": "tiny"},
        "data": {"held_out": 0.0},
        "ema": {"decay": 0.0},
        "objective": {"variational": 0.0},
        "validation": {"every": 0},
        "steps": 2,
        "batch": 2,
        "lora": {"rank": 2},
    }
    stage = small.stage("one", "lora", **own)

    def go(*, publish: str | None = "mine", stop: bool = False, **more: Any) -> Trained:
        values: dict[str, Any] = {"title": "One", "stage": [stage]}
        if publish is not None:
            values["publish"] = {"id": publish, "title": publish}
        return whole.train(
            resolve(values, name="one"),
            root=tmp_path / "run",
            data=tmp_path / "data",
            models=tmp_path / "models",
            loras=tmp_path / "loras",
            catalog=Catalog(user_models=tmp_path / "models"),
            report=lambda config: lambda progress: None,
            should_stop=lambda: stop,
            tell=lambda sentence: None,
            **more,
        )

    return go


def test_a_result_is_published_once_the_last_stage_is_finished(
    train: Train, tmp_path: Path
) -> None:
    stopped = train(stop=True)
    assert (stopped.is_stopped, stopped.made) == (True, None)
    assert not (tmp_path / "loras").exists()
    done = train()
    assert (done.is_stopped, done.made) == (False, tmp_path / "loras" / "mine.safetensors")
    assert LoraLibrary(tmp_path / "loras").find("mine").title == "mine"


@pytest.mark.parametrize("way", ["no name", "one stage", "second process"])
def test_what_is_not_asked_for_is_not_published(
    way: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "second process":
        monkeypatch.setattr(whole, "is_first_process", lambda: False)
    given: dict[str, dict[str, Any]] = {
        "no name": {"publish": None},
        "one stage": {"only": "one"},
    }
    done = train(**given.get(way, {}))
    assert (done.end.reason, done.made) == ("finished", None)
    assert not (tmp_path / "loras").exists()
