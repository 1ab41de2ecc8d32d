"""The verb `models`, and the whole way: a model is published, downloaded and paints."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from app.cli.main import main
from pipelines.catalog import Catalog, downloaded
from pipelines.errors import ModelError, UnknownNameError
from pipelines.models import hub_rows
from pipelines.progress import plain_size
from tests.fake_hub import FakeHub
from tests.hub.conftest import ALPHA, BIG, COMMIT, Shelf, parts

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def shelf(workspace: Path) -> Shelf:
    return Shelf(workspace)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_every_row_is_a_possible_model() -> None:
    rows = hub_rows.known()
    assert set(rows) == {
        *("alpha-1024", "alpha-512", "alpha-256", "alpha-sam-256", "alpha-256-coco"),
        *("lcm-1024", "lcm-lora-1024", "dmd-512", "controlnet-hed-512", "controlnet-hed-1024"),
        *(f"sigma-{name}" for name in ("256", "512", "1024", "2k")),
    }
    for row in rows.values():
        assert row.licence
        assert row.base is None or row.base in rows
        if row.kind in ("model", "original"):
            places = {source.part: Path(source.part) for source in row.parts}
            spec = downloaded(row, places)
            assert set(places) == {
                *("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
            }
            assert (spec.tokens == 300) == (spec.family == "sigma")
            assert spec.default_size in spec.shapes
    encoders = {s.key for row in rows.values() for s in row.parts if s.part == "text_encoder"}
    assert len(encoders) == 1


def test_a_model_that_is_not_here_is_told_from_one_that_does_not_exist() -> None:
    catalog = Catalog()
    assert [model.id for model in catalog] == ["nano"]
    with pytest.raises(ModelError) as caught:
        catalog.find("alpha-1024")
    assert "launch.py models download alpha-1024 (about 21.8 GB)" in str(caught.value)
    with pytest.raises(UnknownNameError, match="alpha-1024"):
        catalog.find("alpha-1023")


def test_list_says_what_is_here_and_what_can_be_had(
    hub: FakeHub, shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list", "--json"]) == 0
    assert [json.loads(line)["id"] for line in lines(capsys)] == ["nano"]
    assert main(["models", "list"]) == 0
    assert "14 more can be downloaded" in lines(capsys)[-1]
    shelf.get()
    assert main(["models", "list", "--all", "--json"]) == 0
    rows = {row["id"]: row for row in map(json.loads, lines(capsys))}
    assert rows["alpha-1024"]["state"] == "downloaded"
    assert rows["alpha-512"]["state"] == "known"
    # Everything but its transformer is here.
    assert rows["alpha-512"]["bytes_left"] < rows["alpha-512"]["bytes"] / 5
    shared = {part["part"]: part["shared_with"] for part in rows["alpha-512"]["parts"]}
    assert "alpha-1024" in shared["text_encoder"]
    assert shared["transformer"] == []
    assert main(["models", "list", "--all"]) == 0
    text = "\n".join(lines(capsys))
    assert (
        "here already: T5-XXL text encoder, T5 tokenizer, Stable Diffusion VAE, noise schedule"
        in text
    )
    (shelf.folder() / BIG).unlink()
    assert main(["models", "list"]) == 0
    assert "cannot be used" in "\n".join(lines(capsys))


def test_download_says_bytes_and_licence_and_asks(
    hub: FakeHub,
    shelf: Shelf,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["models", "download", "alpha-1024"]) == 2
    shown = capsys.readouterr()
    assert "--yes" in shown.err
    assert "openrail++" in shown.out
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    assert f"To download: {plan.left:,} bytes" in shown.out
    answer = io.StringIO("n\n")
    monkeypatch.setattr(answer, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", answer)
    assert main(["models", "download", "alpha-1024"]) == 0
    assert "Nothing was downloaded" in capsys.readouterr().err
    assert not hub.requests(BIG)
    assert main(["models", "download", "alpha-1024", "--yes", "--json"]) == 0
    events = [json.loads(line) for line in lines(capsys)]
    assert [events[0]["event"], events[-1]["event"]] == ["plan", "done"]
    assert events[0]["bytes_left"] == plan.left
    assert main(["models", "download", "alpha-1024", "--check"]) == 0
    assert "To download: 0 bytes" in capsys.readouterr().out
    assert main(["models", "remove", "alpha-1024", "--yes", "--json"]) == 0
    assert json.loads(lines(capsys)[-1])["bytes_freed"] == plan.total
    assert main(["models", "remove", "alpha-1024", "--yes"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["download", "alpha-1023", "--yes"], "Did you mean “alpha-1024”?"),
        (["download", "nano", "--yes"], "not one of the released"),
        (["download", "../../etc", "--yes"], "There is no released model"),
        (["remove", "sigma-2k", "--yes"], "nothing to remove"),
        (["download"], "Missing argument"),
    ],
)
def test_a_wrong_name_is_one_sentence(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["models", *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert len(shown.strip().splitlines()) == 1


def test_own_copy_leaves_what_others_have(
    hub: FakeHub, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "cache" / f"models--{ALPHA.replace('/', '--')}" / "snapshots" / COMMIT
    for name, data in parts().items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    assert main(["models", "download", "alpha-1024", "--yes", "--own-copy"]) == 0
    assert hub.requests(BIG)
    assert main(["models", "remove", "alpha-1024", "--yes"]) == 0
    assert main(["models", "download", "alpha-1024", "--yes"]) == 0
    assert "used where it lies" in capsys.readouterr().out
    assert len(hub.requests(BIG)) == 1


@pytest.mark.parametrize(
    ("size", "exact", "words"),
    [
        (0, True, "0 bytes"),
        (999, True, "999 bytes"),
        (1000, True, "1.0 kB"),
        (999_499, True, "999 kB"),
        (999_600, True, "1.0 MB"),
        (334_643_268, True, "335 MB"),
        (21_800_000_000, False, "about 21.8 GB"),
        (10**15, True, "1000 TB"),
    ],
)
def test_sizes_are_said_as_people_do(size: int, exact: bool, words: str) -> None:
    assert plain_size(size, exact=exact) == words
