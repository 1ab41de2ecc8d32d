"""A subject is learned by two processes that share the pictures, as a launcher starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_manager import files
from pipelines.catalog import Catalog
from tests import tiny, warm
from tests.training import small
from training import whole
from training.methods.lora import RESULT
from training.recipes import resolve

pytestmark = pytest.mark.slow


def learn(home: str, run: str, steps: str, prior: str) -> None:
    """One of the processes. What it publishes is its only line of output."""
    torch.set_num_threads(1)
    place = Path(home)
    values = {
        "title": "Disc",
        "publish": {"id": run, "title": run},
        "stage": [
            small.stage(
                "one",
                "dreambooth",
                steps=int(steps),
                batch=1,
                base={"model": "tiny"},
                data={"source": ".", "held_out": 0.0},
                subject={"word": "sks", "kind": "disc", "prior": prior, "pictures": 2},
                lora={"rank": 2},
                ema={"decay": 0.0},
                objective={"variational": 0.0},
                validation={"every": 0},
            )
        ],
    }
    done = whole.train(
        resolve(values, name="one"),
        root=place / "runs" / run,
        data=place / "photos",
        models=place / "models",
        loras=place / "loras",
        catalog=Catalog(user_models=place / "models"),
        report=lambda config: lambda progress: None,
        should_stop=lambda: False,
        tell=lambda sentence: None,
    )
    print(done.made, flush=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tiny.build(tmp_path / "models" / "tiny")
    (small.pictures(tmp_path / "photos", count=4) / "metadata.jsonl").unlink()
    return tmp_path


def together(home: Path, run: str, steps: int, prior: str = "base") -> list[str]:
    """What each of two processes printed."""
    started = [
        warm.Started(learn, str(home), run, str(steps), prior, **place) for place in warm.places(2)
    ]
    said = [process.stdout.read().strip() for process in started]
    codes = [process.wait(240) for process in started]
    assert codes == [0, 0], [process.stderr for process in started]
    return said


def test_two_processes_learn_one_lora_and_go_on_to_the_bit(home: Path) -> None:
    whole_run = together(home, "whole", 4)
    assert whole_run == [str(home / "loras" / "whole.safetensors"), "None"]
    together(home, "cut", 2)
    together(home, "cut", 4)
    one, other = (
        files.read(home / "runs" / name / "01-one" / "result" / RESULT) for name in ("whole", "cut")
    )
    assert any(pair.up.any() for pair in one.pairs.values())
    for path, pair in one.pairs.items():
        assert torch.equal(pair.up, other.pairs[path].up), path
        assert torch.equal(pair.down, other.pairs[path].down), path
    lines = (home / "runs" / "cut" / "01-one" / "events.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["world"] for event in events if event["event"] == "start"] == [2, 2]
    assert [event["step"] for event in events if event["event"] == "resume"] == [2]


def test_the_first_one_paints_the_pictures_of_the_kind_for_both(home: Path) -> None:
    together(home, "kind", 2, "pictures")
    kept = list((home / "runs" / "kind" / "cache" / "features").glob("kind-*"))
    assert len(kept) == 1
