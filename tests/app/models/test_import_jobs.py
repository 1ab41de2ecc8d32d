"""Imports of the page: followed, stopped, and never without an end."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.jobs import imports
from app.jobs.queue import JobQueue
from app.models import import_process
from app.models.import_jobs import ImportJob, ImportJobs
from app.models.rows import ImportOptions
from app.settings import Settings
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.errors import (
    BusyError,
    ModelError,
    RequestError,
    StudioError,
    WorkerError,
)
from pipelines.processes.inside import ParentPipe
from pipelines.progress import Progress, Report, ShouldStop, Stage
from tests import original, tiny
from tests.lora_manager import made
from tests.small_loras import lora

pytestmark = pytest.mark.usefixtures("warm_children")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workspace=tmp_path / "workspace")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A .pth of the original code that takes the rest from a small model of the workspace."""
    tiny.build(tmp_path / "workspace" / "models" / "tiny")
    state = original.state(width=48, layers=2, captions=32)
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


WANTED = ImportOptions(text="tiny", vae="tiny", head_dim=24, title="My net")


def run(
    file: Path, settings: Settings, should_stop: ShouldStop = lambda: False
) -> tuple[str | None, list[Progress]]:
    told: list[Progress] = []
    made = import_process.run(file, WANTED, settings, report=told.append, should_stop=should_stop)
    return made, told


def names(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.models.iterdir())


@pytest.mark.timeout(120)
def test_a_process_of_its_own_imports(settings: Settings, file: Path) -> None:
    made, told = run(file, settings)
    assert made == "net"
    assert {progress.stage for progress in told} == {Stage.TENSORS}
    assert told[-1].done == told[-1].total > 0
    spec = Catalog(user_models=settings.models).find("net")
    assert spec.title == "My net"
    assert spec.part("vae") == settings.models.resolve() / "tiny" / "vae"


@pytest.mark.timeout(120)
def test_a_bad_file_is_the_sentence_of_the_command_line(settings: Settings, file: Path) -> None:
    file.write_bytes(b"not weights")
    with pytest.raises(StudioError) as failure:
        run(file, settings)
    assert "Traceback" not in str(failure.value)
    with pytest.raises(RequestError) as missing:
        import_process.run(
            settings.models / "tiny" / "transformer",
            ImportOptions(id="other"),
            settings,
            report=lambda _: None,
            should_stop=lambda: False,
        )
    assert missing.value.field == "vae"
    assert names(settings) == ["tiny"]


@pytest.mark.timeout(120)
def test_a_stop_leaves_nothing(settings: Settings, file: Path) -> None:
    made, _ = run(file, settings, should_stop=lambda: True)
    assert made is None
    assert names(settings) == ["tiny"]


def kill(when: Callable[[], object]) -> ShouldStop:
    """Kills the import once `when()` is true, as the system does where memory is short."""

    def killing() -> bool:
        if when():
            for child in multiprocessing.active_children():
                if child.name == "pixart-import":
                    child.kill()
        return False

    return killing


real_work = import_process.work


def work_without_end(pipe: ParentPipe, workspace: str, *arguments: Any) -> str:
    """The import itself, which stays where it is as soon as it has told of what it writes."""
    tell, models = pipe.tell, Settings(workspace=Path(workspace)).models

    def telling(event: str, **values: Any) -> None:
        tell(event, **values)
        while len(list(models.iterdir())) > 2:
            time.sleep(0.01)

    pipe.tell = telling  # type: ignore[method-assign]
    return real_work(pipe, workspace, *arguments)


@pytest.mark.timeout(120)
def test_a_process_that_is_killed_is_said_and_leaves_nothing(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_process, "work", work_without_end)
    # Of somebody else, who may be at work.
    (settings.models / ".net.1-0123abcd.part").mkdir()
    with pytest.raises(WorkerError, match="killed by SIGKILL, perhaps out of memory"):
        run(file, settings, should_stop=kill(lambda: len(names(settings)) > 2))
    assert names(settings) == [".net.1-0123abcd.part", "tiny"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", [False, True])
def test_an_end_that_comes_when_the_model_is_there_is_no_failure(
    settings: Settings, file: Path, killed: bool
) -> None:
    def there() -> bool:
        return (settings.models / "net").is_dir()

    made, _ = run(file, settings, should_stop=kill(there) if killed else there)
    assert made == "net"
    assert names(settings) == ["net", "tiny"]


def test_an_import_ends_though_the_list_cannot_be_read(
    settings: Settings, source: Path, face: Face
) -> None:
    def broken() -> None:
        raise OSError("the disk is gone")

    fake = Fake()
    fake.go.set()
    jobs = face(settings, fake, broken)
    jobs.start(str(source), ImportOptions())
    assert ended(jobs).phase == "done"


class Fake:
    """An import whose steps the test decides."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[tuple[Path, ImportOptions]] = []
        self.fault: Exception | None = None

    def __call__(
        self,
        source: Path,
        wanted: ImportOptions,
        settings: Settings,
        *,
        report: Report,
        should_stop: ShouldStop,
    ) -> str | None:
        self.seen.append((source, wanted))
        report(Progress(stage=Stage.COPYING, done=10, total=20))
        while not self.go.wait(0.01):
            if should_stop():
                return None
        if self.fault is not None:
            raise self.fault
        return "net"


@pytest.fixture
def face(monkeypatch: pytest.MonkeyPatch) -> Iterator[Face]:
    """Imports over a queue of their own."""
    queues: list[JobQueue] = []

    def make(
        settings: Settings, fake: Fake, changed: Callable[[], None] = lambda: None
    ) -> ImportJobs:
        monkeypatch.setattr(import_process, "run", fake)
        kinds = [imports.kind(settings, changed)]
        queues.append(JobQueue(SimpleNamespace(paint=None), kinds=kinds))
        return ImportJobs(queues[-1])

    yield make
    for queue in queues:
        queue.close()


Face = Callable[..., ImportJobs]


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def ended(jobs: ImportJobs) -> ImportJob:
    until(lambda: jobs.job is not None and not jobs.job.active)
    assert jobs.job is not None
    return jobs.job


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "my net.pth").touch()
    return tmp_path / "my net.pth"


def test_one_at_a_time_and_followed(settings: Settings, source: Path, face: Face) -> None:
    fake, changed = Fake(), []
    made: list[ImportJobs] = []
    jobs = face(settings, fake, lambda: changed.append(made[0].job))
    made.append(jobs)
    assert jobs.job is None
    # As it is pasted from a file manager.
    jobs.start(f' "{source}" ', ImportOptions(id="net"))
    until(lambda: jobs.job is not None and jobs.job.stage == "copy")
    assert jobs.job == ImportJob(source="my net.pth", stage="copy", done=10, total=20)
    with pytest.raises(BusyError, match="being imported"):
        jobs.start(str(source), ImportOptions())
    jobs.dismiss()
    assert jobs.job is not None
    fake.go.set()
    assert ended(jobs).model == "net"
    assert fake.seen == [(source, ImportOptions(id="net"))]
    assert [job.phase for job in changed] == ["running"], "the list is new before the end is said"
    jobs.dismiss()
    assert jobs.job is None


def test_a_stop_ends_it(settings: Settings, source: Path, face: Face) -> None:
    jobs = face(settings, Fake())
    jobs.stop()
    jobs.start(str(source), ImportOptions())
    jobs.stop()
    assert ended(jobs).phase == "stopped"
    jobs.start(str(source), ImportOptions())
    jobs.stop()
    assert ended(jobs).phase == "stopped"


@pytest.mark.parametrize("fault", [ModelError("It is broken."), ValueError("ours")])
def test_every_failure_has_a_sentence(
    settings: Settings, source: Path, fault: Exception, face: Face
) -> None:
    fake = Fake()
    fake.fault = fault
    fake.go.set()
    jobs = face(settings, fake)
    jobs.start(str(source), ImportOptions())
    job = ended(jobs)
    assert job.phase == "failed"
    assert str(fault) in str(job.error)


@pytest.mark.parametrize("path", ["", "  ", '""', "/no/such/file", "\x00", "x" * 5000])
def test_a_path_that_is_none_is_said_at_once(settings: Settings, path: str, face: Face) -> None:
    jobs = face(settings, Fake())
    with pytest.raises(RequestError) as failure:
        jobs.start(path, ImportOptions())
    assert failure.value.field == "path"
    assert len(str(failure.value)) < 300
    assert jobs.job is None


def test_a_lora_goes_to_the_loras(settings: Settings, tmp_path: Path) -> None:
    file = lora(tmp_path / "ink.safetensors")
    wanted = ImportOptions(title="Ink", id="my-ink", licence="CC0")
    made = import_process.run(
        file, wanted, settings, report=lambda _: None, should_stop=lambda: False
    )
    assert made == "my-ink"
    (card,) = LoraLibrary(settings.loras).cards()
    assert (card.name, card.title, card.licence) == ("my-ink", "Ink", "CC0")
    assert names(settings) == []
    with pytest.raises(StudioError, match="There is a LoRA called “my-ink”"):
        import_process.run(file, wanted, settings, report=lambda _: None, should_stop=lambda: False)


@pytest.mark.parametrize("form", ["a folder of PEFT", "a pickle"])
def test_a_lora_is_named_after_its_folder(settings: Settings, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "my dog"
    folder.mkdir()
    write = made.f3 if form == "a folder of PEFT" else made.f3_bin
    write(made.reference(), folder)
    source = folder if form == "a folder of PEFT" else folder / "adapter_model.bin"
    name = import_process.run(
        source, ImportOptions(), settings, report=lambda _: None, should_stop=lambda: False
    )
    assert name == "my-dog"
    assert [card.name for card in LoraLibrary(settings.loras).cards()] == ["my-dog"]


def test_a_lora_beside_a_model_does_not_take_its_place(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "whole")
    lora(folder / "pytorch_lora_weights.safetensors")
    name = import_process.run(
        folder, ImportOptions(), settings, report=lambda _: None, should_stop=lambda: False
    )
    assert name is not None
    assert names(settings) == [name]
    assert LoraLibrary(settings.loras).cards() == []
