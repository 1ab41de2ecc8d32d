"""A model that is published as a .pth only: downloaded, converted, painted, repaired, removed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.cli.main import main
from pipelines.catalog import Catalog
from pipelines.errors import DownloadError, ModelError, WorkerError
from pipelines.models import conversion, hub_rows
from pipelines.models.convert import NULL_CAPTION_FILE
from pipelines.models.original_layout import NULL_CAPTION
from pipelines.processes.child import Child
from pipelines.progress import Stage
from tests import tiny
from tests.fake_hub import FakeHub
from tests.hub.conftest import Shelf, convert_for_ever
from tests.hub.published import COCO, PTH, put_original

OWN = hub_rows.known()[COCO].parts[0]
MADE = Path(PTH).stem
WEIGHTS = f"{MADE}/transformer/diffusion_pytorch_model.safetensors"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shelf(workspace: Path) -> Shelf:
    return Shelf(workspace)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the null caption, as released checkpoints are."""
    folder = tiny.build(tmp_path_factory.mktemp("model") / "tiny", seed=8)
    save_file({NULL_CAPTION: torch.randn(120, 32)}, folder / NULL_CAPTION_FILE)
    return folder


@pytest.fixture
def checkpoint(hub: FakeHub, model: Path, tmp_path: Path) -> bytes:
    """The published file; `hub` holds the rest of the model, too."""
    return put_original(hub, Path(shutil.copytree(model, tmp_path / "tiny")))


def folder(shelf: Shelf) -> Path:
    return shelf.folder(OWN.repo, OWN.revision)


def there(shelf: Shelf) -> set[str]:
    return set(shelf.files(OWN.repo, OWN.revision))


CONVERTED = {
    *("download.json", WEIGHTS, f"{MADE}/transformer/config.json", f"{MADE}/{NULL_CAPTION_FILE}"),
}


def state(shelf: Shelf) -> str:
    return next(row.state for row in shelf.store.rows() if row.id == COCO)


def test_it_paints_what_its_weights_paint_in_diffusers_layout(
    hub: FakeHub,
    shelf: Shelf,
    checkpoint: bytes,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "download", COCO, "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"{PTH} is then converted to diffusers' layout and deleted" in said
    assert f"the disk needs {len(checkpoint) / 1000:.0f} kB more" in said
    assert said.endswith(f"Paint with it: launch.py generate PROMPT --model {COCO}\n")
    assert there(shelf) == CONVERTED
    assert len(hub.requests(PTH)) == 1
    assert not hub.requests("other.pth")
    kept = load_file(folder(shelf) / MADE / NULL_CAPTION_FILE)[NULL_CAPTION]
    assert torch.equal(kept, load_file(model / NULL_CAPTION_FILE)[NULL_CAPTION])
    spec = Catalog(user_models=shelf.settings.models).find(COCO)
    assert (spec.tokens, spec.bins) == (120, "256-square")
    shutil.copytree(model, shelf.settings.models / "tiny")
    pictures = []
    for name in (COCO, "tiny"):
        words = ["generate", "a red apple", "--model", name, "--size", "64x64", "--seed", "5"]
        assert main([*words, "--steps", "2"]) == 0, capsys.readouterr().err
        with Image.open(capsys.readouterr().out.strip()) as picture:
            pictures.append(np.asarray(picture))
    assert pictures[0].std() > 5
    assert np.array_equal(pictures[0], pictures[1])


def test_bytes_stages_and_the_removal_are_told_to_programs(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "download", COCO, "--yes", "--json"]) == 0
    plan, *events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert plan["bytes_to_convert"] == len(checkpoint)
    assert plan["bytes_left"] == plan["bytes"] > len(checkpoint)
    assert {e["stage"] for e in events if e["event"] == "progress"} <= {
        *("downloading", "converting", "checking"),
    }
    assert events[-1] == {**events[-1], "event": "done", "model": COCO, "kind": "original"}
    kept = sum(file.stat().st_size for file in shelf.root.rglob("*") if file.is_file())
    assert main(["models", "remove", COCO, "--yes", "--json"]) == 0
    freed = json.loads(capsys.readouterr().out)["bytes_freed"]
    assert freed <= kept
    assert freed >= kept - 10_000
    assert not list(shelf.root.glob("PixArt-alpha--*"))
    assert state(shelf) == "known"


def test_its_progress_is_a_stage_of_its_own(hub: FakeHub, shelf: Shelf, checkpoint: bytes) -> None:
    assert shelf.get(COCO)
    converting = [r for r in shelf.readings if r.stage is Stage.CONVERTING]
    assert {(r.file, r.total) for r in converting} == {(PTH, len(checkpoint))}
    assert [r.done for r in converting] == sorted(r.done for r in converting)
    stages = [r.stage for r in shelf.readings]
    assert Stage.DOWNLOADING not in stages[stages.index(Stage.CONVERTING) :]


def test_nothing_is_done_twice(hub: FakeHub, shelf: Shelf, checkpoint: bytes) -> None:
    assert shelf.get(COCO)
    before, asked = (folder(shelf) / WEIGHTS).stat(), len(hub.asked)
    plan = shelf.store.plan(COCO)
    assert plan is not None
    assert (plan.left, plan.spare) == (0, 0)
    assert shelf.get(COCO)
    assert (folder(shelf) / WEIGHTS).stat() == before
    assert len(hub.asked) == asked
    row = next(row for row in shelf.store.rows() if row.id == COCO)
    assert (row.state, row.left) == ("downloaded", 0)
    assert row.arrived == sum((folder(shelf) / n).stat().st_size for n in CONVERTED if "/" in n)


def test_a_plan_that_somebody_else_has_carried_out_meanwhile(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes
) -> None:
    early = shelf.store.plan(COCO)
    assert early is not None
    assert shelf.get(COCO)
    assert shelf.store.download(early)
    assert there(shelf) == CONVERTED
    assert len(hub.requests(PTH)) == 1


# --- interruptions ----------------------------------------------------------------------------


def stopped(shelf: Shelf) -> None:
    """A download that was stopped while it converted."""
    plan = shelf.store.plan(COCO)
    assert plan is not None
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "convert", convert_for_ever)
        done = shelf.store.download(
            plan,
            report=lambda r: seen.append(r) if r.stage is Stage.CONVERTING else None,
            should_stop=lambda: bool(seen),
        )
    assert done is False


def test_a_stop_is_obeyed_and_the_conversion_is_done_again(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes
) -> None:
    stopped(shelf)
    assert there(shelf) == {"download.json", PTH}
    assert state(shelf) == "known"
    again = shelf.store.plan(COCO)
    assert again is not None
    assert (again.left, again.spare) == (0, len(checkpoint))
    assert shelf.store.download(again)
    assert there(shelf) == CONVERTED
    assert len(hub.requests(PTH)) == 1


_HELD = """
from pipelines.models import conversion
from tests.hub.conftest import convert_for_ever
conversion.convert = convert_for_ever
"""
_CHILD = """
import sys
from app.cli.main import main
code = main(["models", "download", "alpha-256-coco", "--yes", "--json"])
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
sys.exit(code)
"""


def child(shelf: Shelf, *, held: bool) -> subprocess.Popen[str]:
    """A command that downloads and converts; where it is held, the conversion never ends."""
    return subprocess.Popen(
        [sys.executable, "-c", _HELD * held + _CHILD],
        cwd=ROOT,
        env={**os.environ, "PIXART_STUDIO_WORKSPACE": str(shelf.settings.workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "Ctrl+C at once", "Ctrl+C", "let be"])
def test_another_process_takes_up_what_one_has_left(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes, how: str
) -> None:
    process = child(shelf, held=how != "let be")
    if how == "let be":
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        # The process that downloads, as the page, never loads torch.
        assert out.splitlines()[-1] == "[]"
        assert there(shelf) == CONVERTED
        return
    end = time.monotonic() + 300
    while not (folder(shelf) / PTH).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.02 if how == "Ctrl+C at once" else 0.3)
    if how == "killed":
        process.kill()
    else:
        # As a terminal does: every process of the group hears it.
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    if how != "killed":
        assert process.returncode == 130
        said = ["What has arrived is kept; the same command goes on from there.", "Stopped."]
        assert errors.splitlines() == said
        assert there(shelf) == {"download.json", PTH}
    assert shelf.get(COCO)
    assert there(shelf) == CONVERTED
    assert len(hub.requests(PTH)) == 1


def leftovers(shelf: Shelf) -> None:
    """As after a power cut, just before the record was written and at other bad moments."""
    for name in (MADE, f".{MADE}.0123abcd.part", f".{MADE}.0123abcd.old"):
        (folder(shelf) / name / "transformer").mkdir(parents=True)
        (folder(shelf) / name / "transformer" / "config.json").write_bytes(b"x" * 5000)


@pytest.mark.parametrize("then", ["go on", "remove"])
def test_what_a_power_cut_leaves_is_swept_away(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes, then: str
) -> None:
    stopped(shelf)
    leftovers(shelf)
    if then == "go on":
        assert shelf.get(COCO)
        assert there(shelf) == CONVERTED
        # The last thing that is done; a cut may keep it from happening.
        (folder(shelf) / PTH).write_bytes(checkpoint)
        assert shelf.get(COCO)
        assert there(shelf) == CONVERTED
        (folder(shelf) / PTH).write_bytes(checkpoint)
    freed = shelf.store.remove(COCO)
    assert freed > len(checkpoint)
    assert not folder(shelf).exists()


# --- damage and refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["a bit", "gone", "no record"])
def test_damage_is_found_and_mended(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes, fault: str
) -> None:
    assert shelf.get(COCO)
    good = shelf.files(OWN.repo, OWN.revision)
    file = folder(shelf) / WEIGHTS
    data = bytearray(file.read_bytes())
    if fault == "a bit":
        data[-1] ^= 1
        file.write_bytes(data)
    elif fault == "gone":
        file.unlink()
    else:
        (folder(shelf) / "download.json").unlink()
    if fault == "gone":
        with pytest.raises(ModelError, match=f"Repair it with: launch.py models download {COCO}"):
            Catalog(user_models=shelf.settings.models).find(COCO)
        assert state(shelf) == "broken"
    assert main(["models", "download", COCO, "--yes", "--check"]) == 0
    assert len(hub.requests(PTH)) == 2
    repaired = shelf.files(OWN.repo, OWN.revision)
    assert {n: d for n, d in repaired.items() if "/" in n} == {
        n: d for n, d in good.items() if "/" in n
    }
    assert Catalog(user_models=shelf.settings.models).find(COCO)
    # And sound files are left as they are.
    assert main(["models", "download", COCO, "--check"]) == 0
    assert len(hub.requests(PTH)) == 2


def test_one_that_an_earlier_studio_has_downloaded_is_converted(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes
) -> None:
    assert shelf.get(COCO)
    record = shelf.root / "installed" / f"{COCO}.json"
    values = json.loads(record.read_text("utf-8"))
    values["places"]["transformer"] = str(folder(shelf).relative_to(shelf.root) / PTH)
    record.write_text(json.dumps(values), "utf-8")
    (folder(shelf) / PTH).write_bytes(checkpoint)
    catalog = Catalog(user_models=shelf.settings.models)
    with pytest.raises(ModelError, match="still in the original format"):
        catalog.find(COCO)
    assert state(shelf) == "broken"
    assert shelf.get(COCO)
    catalog.reload()
    assert catalog.find(COCO).part("transformer") == folder(shelf) / MADE / "transformer"


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def hostile(mark: Path) -> bytes:
    file = mark.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"state_dict": Runs(mark)}, protocol=2))
    return file.read_bytes()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("code", "asks for “posix.system”"),
        ("no checkpoint", "damaged or not a checkpoint"),
        ("text", "not a sound safetensors file"),
    ],
)
def test_a_file_that_cannot_be_converted_is_one_sentence(
    hub: FakeHub,
    shelf: Shelf,
    checkpoint: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    words: str,
) -> None:
    data = {
        "code": hostile(tmp_path / "mark"),
        "no checkpoint": b"PK\x03\x04" * 500,
        "text": b"<html>" * 500,
    }
    hub.put(OWN.repo, OWN.revision, {PTH: data[kind]})
    assert main(["models", "download", COCO, "--yes"]) == 2
    *before, said = capsys.readouterr().err.splitlines()
    assert words in said
    # On a slow machine its progress is told now and then.
    assert all(line.startswith("Converting to") for line in before)
    assert not (tmp_path / "mark").exists()
    assert there(shelf) == {"download.json", PTH}
    assert state(shelf) == "known"
    with pytest.raises(ModelError, match="not on this computer"):
        Catalog(user_models=shelf.settings.models).find(COCO)
    assert shelf.store.remove(COCO) > 0
    assert not folder(shelf).exists()


def test_the_disk_is_counted_before(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = shelf.store.plan(COCO)
    assert plan is not None
    free = plan.left + len(checkpoint) // 2 + 64_000_000
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - free, free))
    with pytest.raises(DownloadError, match="to be fetched and converted"):
        shelf.store.download(plan)
    assert not hub.requests(PTH)


def test_a_child_that_dies_is_one_sentence(
    hub: FakeHub, shelf: Shelf, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = Child.follow

    def killed(child: Child, *arguments: Any) -> Any:
        child.kill()
        return followed(child, *arguments)

    monkeypatch.setattr(Child, "follow", killed)
    with pytest.raises(WorkerError, match="killed by SIGKILL, perhaps out of memory"):
        shelf.get(COCO)
    monkeypatch.undo()
    assert there(shelf) == {"download.json", PTH}
    assert shelf.get(COCO)
