"""What the folder of a run tells: curves, samples, checkpoints, and nothing of what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.training import run_list
from app.training.run_list import MOST_POINTS, Point, RunList, smoothed
from pipelines.errors import RequestError
from training import recipes


def config() -> bytes:
    recipe = recipes.read(recipes.find("dreambooth"), ["subject.kind=dog"])
    return recipe.stages[0].model_dump_json().encode()


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "my-dog" / "01-dreambooth"
    for part in ("checkpoints/step-00000000", "checkpoints/step-00000100", "previews"):
        (folder / part).mkdir(parents=True)
    (folder / "config.json").write_bytes(config())
    (folder / "previews" / "step-00000100.png").write_bytes(b"x")
    (folder / "previews" / "step-1.png.part").write_bytes(b"x")
    return folder


def write(stage: Path, *events: Any, torn: str = "") -> None:
    with open(stage / "events.jsonl", "a", encoding="utf-8") as stream:
        for event in events:
            stream.write((event if isinstance(event, str) else json.dumps(event)) + "\n")
        stream.write(torn)


def step(number: int, loss: Any) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "loss": loss,
        "pictures_per_second": 2.5,
        "seconds_left": 30,
    }


def test_a_log_is_read_on_from_where_it_was(stage: Path, tmp_path: Path) -> None:
    runs = RunList(tmp_path)
    write(stage, step(20, 0.5), torn='{"event": "step", "st')
    (first,) = runs.get("my-dog").stages
    assert (first.step, first.losses) == (20, (Point(step=20, loss=0.5),))
    with open(stage / "events.jsonl", "a", encoding="utf-8") as stream:
        stream.write('ep": 40, "loss": 0.25}\n')
    write(stage, {"event": "validation", "step": 40, "loss": 0.3})
    (then,) = runs.get("my-dog").stages
    assert [(p.step, p.loss) for p in then.losses] == [(20, 0.5), (40, 0.25)]
    assert then.validation == (Point(step=40, loss=0.3),)
    assert (then.samples, then.checkpoints, then.steps) == ((100,), (0, 100), 800)
    assert not then.finished
    assert runs.names() == ["my-dog"]


def test_what_was_undone_leaves_the_curve(stage: Path, tmp_path: Path) -> None:
    write(stage, *(step(n, 0.5) for n in (20, 40, 60)), {"event": "resume", "step": 40})
    (facts,) = RunList(tmp_path).get("my-dog").stages
    assert (facts.step, [p.step for p in facts.losses]) == (40, [20, 40])
    assert "It goes on behind update 40." in facts.log


def test_a_long_curve_is_kept_short(stage: Path, tmp_path: Path) -> None:
    write(stage, *(step(n, n) for n in range(1, 5001)))
    (facts,) = RunList(tmp_path).get("my-dog").stages
    assert MOST_POINTS <= len(facts.losses) <= 2 * MOST_POINTS
    assert facts.losses[-1].step == 5000
    assert list(facts.losses) == sorted(facts.losses, key=lambda point: point.step)


@pytest.mark.parametrize(
    "event",
    [
        "[]",
        "null",
        "{" * 50,
        {"event": ["step"]},
        {"event": "step", "step": "x", "loss": "NaN"},
        {"event": "step", "step": 3, "loss": None, "pictures_per_second": "fast"},
        {"event": "resume"},
        {"event": "skipped", "step": {}},
        {"event": "memory", "peak": "much"},
        {"event": "failed", "sentence": {"a": 1}},
    ],
)
def test_a_log_that_anybody_wrote_breaks_nothing(stage: Path, tmp_path: Path, event: Any) -> None:
    write(stage, event, step(20, 0.5))
    (facts,) = RunList(tmp_path).get("my-dog").stages
    assert facts.losses == (Point(step=20, loss=0.5),)


def test_a_run_of_the_command_line_has_no_order(stage: Path, tmp_path: Path) -> None:
    assert RunList(tmp_path).get("my-dog").order is None
    (tmp_path / "my-dog" / run_list.ORDER).write_text('{"name": "../x"}', "utf-8")
    assert RunList(tmp_path).get("my-dog").order is None


@pytest.mark.parametrize("name", ["..", "../my-dog", "", "a/b", "my dog", "x" * 90])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError):
        RunList(tmp_path / "runs").get(name)
    with pytest.raises(RequestError):
        RunList(tmp_path / "runs").sheet(name, "01-x", 1)
    with pytest.raises(RequestError):
        RunList(tmp_path / "runs").sheet("run", name, 1)


def test_a_link_is_no_sheet(stage: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    (stage / "previews" / "step-00000200.png").symlink_to(secret)
    runs = RunList(tmp_path)
    assert runs.sheet("my-dog", "01-dreambooth", 100).read_bytes() == b"x"
    with pytest.raises(RequestError):
        runs.sheet("my-dog", "01-dreambooth", 200)


def test_the_smoothed_curve_begins_where_the_raw_one_does() -> None:
    points = tuple(Point(step=n, loss=v) for n, v in enumerate((1.0, 0.0, 0.0)))
    curve = [round(point.loss, 3) for point in smoothed(points)]
    assert curve == [1.0, 0.474, 0.299]
