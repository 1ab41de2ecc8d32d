"""One quickly trained judge for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.training.evaluation import sprites
from training.evaluation.judge import Judge, train
from training.scenes.objects import SceneObject

COUNT = 8


@pytest.fixture(scope="session")
def things() -> tuple[SceneObject, ...]:
    return sprites.things(COUNT)


@pytest.fixture(scope="session")
def judge(things: tuple[SceneObject, ...]) -> Judge:
    trained = train(things, lambda step: None, lambda: False, views=5, checks=2)
    assert trained is not None
    return trained
