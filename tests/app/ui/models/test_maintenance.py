"""The Models tab beyond downloads: the report, encoded prompts, imports, giving up one's own."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app import doctor
from app.models import import_process
from app.models.import_jobs import ImportJob
from app.models.rows import ImportOptions
from app.painting.worker import EngineState
from app.settings import Settings
from app.ui.models import import_form, maintenance
from pipelines.errors import ModelError, RequestError, StudioError
from pipelines.progress import Progress, ShouldStop, Stage
from pipelines.progress import Report as Tell
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio
from tests.app.ui.models.test_models_tab import Page, card, tick
from tests.tiny import NANO

FORM = {"path": "", "title": "", "id": "", "parts": "", "files": "copy"}


def own_model(studio: FakeStudio, name: str) -> Path:
    """A model of the user's whose big parts are those of the model that ships."""
    folder = studio.settings.models / name
    folder.mkdir(parents=True)
    row = (
        f'title = "The {name}"\nsummary = "Paints."\nlicence = "none"\ntokens = 24\nbins = "128"\n'
        'size = "64x64"\nmax_side = 256\n\n[places]\n'
    )
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    row += "".join(f'{part} = "{(NANO / part).as_posix()}"\n' for part in parts)
    (folder / "model.toml").write_text(row, "utf-8")
    return folder


class FakeImport:
    """Makes a row, when it may."""

    def __init__(self, studio: FakeStudio) -> None:
        self.studio = studio
        self.go = threading.Event()
        self.go.set()
        self.seen: list[tuple[Path, ImportOptions]] = []
        self.fault: StudioError | None = None
        self.name = "cat"

    def __call__(
        self,
        source: Path,
        wanted: ImportOptions,
        settings: Settings,
        *,
        report: Tell,
        should_stop: ShouldStop,
    ) -> str | None:
        self.seen.append((source, wanted))
        report(Progress(stage=Stage.TENSORS, done=30, total=120))
        while not self.go.wait(0.01):
            if should_stop():
                return None
        if self.fault is not None:
            raise self.fault
        return own_model(self.studio, self.name).name


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    with FakeStudio(tmp_path / "workspace", steps=2, pace=0.01) as fake:
        yield fake


@pytest.fixture
def page(studio: FakeStudio) -> Page:
    return Page(studio)


@pytest.fixture
def importing(studio: FakeStudio, monkeypatch: pytest.MonkeyPatch) -> FakeImport:
    fake = FakeImport(studio)
    monkeypatch.setattr(import_process, "run", fake)
    return fake


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "net.pth").touch()
    return tmp_path / "net.pth"


def send(page: Page, request: Any = HERE, **values: Any) -> dict[str, Any]:
    return page.call("start_import", page.visit, "nano", request, *(FORM | values).values())


def settle(page: Page) -> str:
    """What is said of the import after it has ended."""
    until(lambda: (job := page.studio.imports.job) is None or not job.active)
    page.call("tick_models", page.visit, "nano", HERE)
    return str(page.shown["imported"])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


class Report(HTMLParser):
    """The text that the Copy button takes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text = dict(attrs).get("data-text") or self.text


# the report


def test_the_report_is_that_of_the_command_line(page: Page, studio: FakeStudio) -> None:
    assert 'data-do="examine"' in page.open()["care"]
    shown = page.press("examine")["care"]
    lines = Report(shown).text.splitlines()
    machine = studio.engine().machine
    found = list(doctor.examine(studio.settings, lambda: machine))
    assert [line.split(":")[0] for line in lines] == [f.line().split(":")[0] for f in found]
    assert lines[0] == "  studio: 0.1.0"
    assert "nano" in shown
    assert 'data-do="copy"' in shown
    assert "report" not in page.press("close-report")["care"]


def test_nobody_is_named(
    page: Page, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = studio.settings.models / "odd"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text("title =", "utf-8")
    shown = page.press("examine")["care"]
    assert "odd" in shown
    assert "~/workspace" in shown
    assert str(tmp_path) not in shown


def test_a_lost_painter_is_a_fault_of_the_report(page: Page, studio: FakeStudio) -> None:
    said = "The painting process ended unexpectedly (killed by SIGKILL)."
    studio.runner.state = EngineState(phase="lost", message=said)
    shown = page.press("examine")["care"]
    assert "1 fault and 1 warning" in shown
    assert f"X painting process: {said}" in Report(shown).text
    assert "! device: not known" in Report(shown).text


def test_visitors_get_no_report_and_clear_nothing(page: Page, studio: FakeStudio) -> None:
    studio.settings.prompts.mkdir(parents=True)
    (studio.settings.prompts / "x.safetensors").write_bytes(b"x")
    opened = page.open(ELSEWHERE)
    # Hidden is how the form is drawn.
    assert opened.get("care", "") == opened.get("imported", "") == ""
    assert opened["import"]["visible"] == "hidden"
    for do in ("examine", "clear-prompts", "stop-import", "dismiss-import"):
        page.press(do, request=ELSEWHERE)
        assert page.shown.get("care", "") == ""
        assert "on the computer that the studio runs on" in page.shown["shelf"]
    assert studio.prompt_bytes() == 1
    assert not page.visit.report


def test_what_was_found_is_no_markup() -> None:
    finding = doctor.Finding(name="<b>", state="fault", fact='<script>"')
    html = maintenance.care(0, [finding], "<i>")
    assert "<b><b>" not in html
    assert "<script>" not in html
    assert "<i>" not in html
    assert Report(html).text == 'X <b>: <script>"'


# encoded prompts


def test_encoded_prompts_are_told_and_cleared(page: Page, studio: FakeStudio) -> None:
    assert "Encoded prompts: 0 bytes of 256 MB" in page.open()["care"]
    assert 'data-do="clear-prompts" disabled' in page.shown["care"]
    studio.settings.prompts.mkdir(parents=True)
    (studio.settings.prompts / "x.safetensors").write_bytes(bytes(12_000_000))
    told = page.call("tick_models", page.visit, "nano", HERE)
    assert "Encoded prompts: 12.0 MB of 256 MB" in told["care"]
    cleared = page.press("clear-prompts")["care"]
    assert "Encoded prompts: 0 bytes of 256 MB" in cleared
    assert "12.0 MB are free" in cleared
    assert studio.prompt_bytes() == 0


# imports


def test_an_import_comes_into_the_list_and_into_create(
    page: Page, studio: FakeStudio, importing: FakeImport, file: Path
) -> None:
    page.call("open", page.browser, "owner-0123456789abcdef", None)
    assert page.open()["import"]["visible"] is True
    importing.go.clear()
    running = send(page, path=f" {file} ", id=" cat ", title="A cat", parts="nano")
    assert running["Timer"].value == 0.5
    until(lambda: (job := studio.imports.job) is not None and job.total == 120)
    told = page.call("tick_models", page.visit, "nano", HERE)
    shown = str(told.get("imported", running.get("imported")))
    assert "Importing net.pth" in shown
    assert "Converting the transformer, 30 of 120 tensors" in shown
    assert 'aria-valuenow="25"' in shown
    importing.go.set()
    done = settle(page)
    assert "“The cat” is here." in done
    assert 'data-do="use" data-name="cat"' in done
    assert "Yours" in card(page.shown["shelf"], "cat")
    assert 'value="cat"' in page.shown["import-parts"]["markup"]
    assert page.shown["import-path"] == page.shown["import-id"] == ""
    assert page.call("tick_models", page.visit, "nano", HERE).keys() <= {"hardware"}
    assert 'value="cat"' in tick(page)["model"]["markup"]
    assert page.press("use", "cat")["model"]["value"] == "cat"
    (seen,) = importing.seen
    assert seen == (file, ImportOptions(id="cat", title="A cat", text="nano", vae="nano"))


def test_stop_and_the_note_on_it(page: Page, importing: FakeImport, file: Path) -> None:
    importing.go.clear()
    send(page, path=str(file))
    page.press("stop-import")
    assert "Nothing of net.pth was left behind" in settle(page)
    page.press("dismiss-import")
    assert page.shown["imported"] == ""


def test_a_second_import_waits_its_turn(page: Page, importing: FakeImport, file: Path) -> None:
    importing.go.clear()
    send(page, path=str(file))
    assert "one model at a time" in send(page, path=str(file))["imported"]
    importing.go.set()
    settle(page)


def test_files_that_stay_where_they_are(page: Page, importing: FakeImport, file: Path) -> None:
    send(page, path=str(file.parent), files="in-place")
    settle(page)
    assert importing.seen[0][1] == ImportOptions(in_place=True)


def test_a_failure_keeps_the_form(page: Page, importing: FakeImport, file: Path) -> None:
    importing.fault = RequestError("text", "net.pth has no text encoder.", "Name one with --text.")
    page.open()
    send(page, path=str(file))
    said = settle(page)
    assert "net.pth was not imported. net.pth has no text encoder." in said
    assert "Choose a model to take T5 and VAE from." in said
    assert "--text" not in said
    assert "import-path" not in page.shown


@pytest.mark.parametrize(
    ("error", "way"),
    [
        (RequestError("id", "Taken.", "Give another name with --id."), "Give another id."),
        (RequestError("id", "Not possible.", "Use up to 80 letters."), "Use up to 80 letters."),
        (RequestError("in_place", "No.", "Leave --in-place out."), "Have it copied."),
        (RequestError("in_place", "It keeps."), ""),
        (RequestError("head_dim", "Hidden.", "Give --head-dim, as 64."), "with --head-dim."),
        (ModelError("Not this VAE.", "Name the right one by --vae."), "Choose another model"),
        (ModelError("It is broken."), ""),
    ],
)
def test_the_way_out_is_one_that_the_page_has(error: StudioError, way: str) -> None:
    said = import_form.sentence(error)
    assert said.startswith(error.message)
    assert way in said
    assert bool(way) == (said != error.message)


def test_hostile_values_are_a_sentence(page: Page, importing: FakeImport, file: Path) -> None:
    values: list[Any] = [None, 7, {}, ["x"], "x" * 2000, "\x00", "", "/no/such/file"]
    for value in values:
        for name in FORM:
            importing.seen.clear()
            send(page, **{"path": str(file), name: value})
            said = settle(page)
            bad = name == "path" or not isinstance(value, str) or len(value) > 1000
            assert ("was not imported" in said) >= bad
            assert bool(importing.seen) != bad
            if importing.seen and name != "files":
                given = vars(importing.seen[0][1])
                assert {type(given[key]) for key in ("id", "title", "text")} <= {str, type(None)}
            shutil.rmtree(page.studio.settings.models, ignore_errors=True)


def test_visitors_import_nothing(page: Page, importing: FakeImport, file: Path) -> None:
    for request in (ELSEWHERE, None, SimpleNamespace(client=None, headers={})):
        told = send(page, request, path=str(file))
        assert importing.seen == []
        if "shelf" in told:
            assert "on the computer that the studio runs on" in told["shelf"]
    importing.go.clear()
    send(page, path=str(file))
    visitor = Page(page.studio)
    assert "net.pth" not in str(visitor.open(ELSEWHERE))
    visitor.press("stop-import", request=ELSEWHERE)
    job = page.studio.imports.job
    assert job is not None
    assert job.phase == "running"
    importing.go.set()
    settle(page)


def test_names_of_files_are_no_markup() -> None:
    bad = "<script>.pth"
    for state in (
        ImportJob(source=bad),
        ImportJob(source=bad, phase="stopped"),
        ImportJob(source=bad, phase="done", model=bad),
        ImportJob(source=bad, phase="failed", error=StudioError(bad)),
        ImportJob(source=bad, stage="copy", done=1, total=2),
    ):
        assert "<script>" not in import_form.job(state, bad, usable=True)


# giving up one's own


def test_ones_own_model_is_removed_after_a_question(page: Page, studio: FakeStudio) -> None:
    folder = own_model(studio, "dog")
    shelf = page.open()["shelf"]
    assert 'data-do="ask-remove"' in card(shelf, "dog")
    assert 'data-do="ask-remove"' not in card(shelf, "nano")
    asked = card(page.press("ask-remove", "dog")["shelf"], "dog")
    assert f"Delete the folder {folder}" in asked
    assert "no way back" in asked
    page.press("keep", "dog")
    assert folder.exists()
    page.press("ask-remove", "dog")
    assert "are free again" in page.press("remove", "dog")["shelf"]
    assert not folder.exists()
    assert 'data-model="dog"' not in page.shown["shelf"]
    gone = tick(page, model="dog")
    assert gone["model"]["value"] == "nano"
    assert "dog" not in gone["model"]["markup"]


def test_what_ships_stays(page: Page) -> None:
    page.open()
    for name in ("nano", "../models", "", "None"):
        page.press("remove", name)
        assert 'data-model="nano"' in page.shown["shelf"]
    assert (NANO / "transformer").is_dir()


def test_visitors_remove_nothing(page: Page, studio: FakeStudio) -> None:
    folder = own_model(studio, "dog")
    shelf = page.open(ELSEWHERE)["shelf"]
    assert 'data-do="ask-remove"' not in shelf
    page.press("remove", "dog", request=ELSEWHERE)
    assert folder.exists()


def test_a_model_that_paints_is_not_removed(page: Page, studio: FakeStudio) -> None:
    folder = own_model(studio, "dog")
    studio.models_changed()
    request = studio.request({"prompt": "a dog", "model": "dog"})
    with studio.runner.held():
        job = studio.submit(request, "owner")
        assert "Stop it first" in page.press("remove", "dog")["shelf"]
        assert folder.exists()
    studio.wait(job.id, "owner", 20)
    page.press("remove", "dog")
    assert not folder.exists()


# samples


def test_the_card_of_the_model_that_ships_shows_what_it_paints(
    page: Page, studio: FakeStudio
) -> None:
    own_model(studio, "dog")
    shelf = page.open(ELSEWHERE)["shelf"]
    shown = card(shelf, "nano")
    for prompt in studio.model("nano").examples:
        assert f'role="img" aria-label="{prompt}"' in shown
    assert "studio/samples/nano?v=" in shown
    assert "samples" not in card(shelf, "dog")
