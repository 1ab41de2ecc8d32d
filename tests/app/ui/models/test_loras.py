"""LoRAs in the page: what is offered, kept and said, and who removes them."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.models.lora_export_jobs import LoraExportJob
from app.ui import choices
from app.ui.create import fields
from app.ui.guards import access
from app.ui.models import lora_cards
from app.ui.routes import routes
from lora_manager import algebra, files, forms
from lora_manager.library import LoraLibrary
from pipelines.errors import BusyError, ModelError
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio
from tests.app.ui.models.test_models_tab import Page
from tests.small_loras import NANO, lora


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[FakeStudio]:
    lora(tmp_path / "loras" / "ink.safetensors", wide=NANO)
    lora(tmp_path / "loras" / "gold.safetensors", seed=1, wide=NANO)
    with FakeStudio(tmp_path, steps=2, pace=0) as fake:
        yield fake


def test_what_is_offered(studio: FakeStudio) -> None:
    library = studio.catalog.loras
    markup = choices.lora_rows(library, "lost:0.5", 0)
    assert [f'data-lora="{name}"' in markup for name in ("gold", "ink", "lost")] == [True] * 3
    assert markup.count("Not here any more.") == 1
    assert "does not fit" not in markup
    assert choices.lora_rows(library, "", 1152).count("does not fit this one") == 2
    assert "does not fit" not in choices.lora_rows(library, "", NANO)
    assert choices.lora_rows(LoraLibrary(Path("/nonexistent")), "", 48) == ""
    hostile = choices.lora_rows(library, '"><script>alert(1)</script>', 48)
    assert "<script>" not in hostile


def test_the_form_keeps_those_that_are_there(studio: FakeStudio) -> None:
    kept = fields.restored({"loras": "ink:0.5, lost, gold"}, studio)
    assert kept["loras"] == "ink:0.5, gold"
    for strange in (7, None, "ink:much", "x" * 5000, {"ink": 1}):
        assert fields.restored({"loras": strange}, studio)["loras"] == ""
    values = fields.first(studio) | {"prompt": "x", "loras": "ink:0.5"}
    request = studio.request(fields.request_values(values))
    assert [(use.name, use.weight) for use in request.loras] == [("ink", 0.5)]
    assert fields.from_request(request)["loras"] == "ink:0.5"


def test_a_lora_that_distills_takes_the_warning_away(studio: FakeStudio, tmp_path: Path) -> None:
    values = fields.first(studio) | {"sampler": "lcm"}
    assert "not one of them" in fields.sampler_note(values, studio)
    studio.catalog.loras.use({"lcm-lora-1024": tmp_path / "loras" / "ink.safetensors"})
    values["loras"] = "lcm-lora-1024"
    assert "not one of them" not in fields.sampler_note(values, studio)


def test_a_lora_that_distills_brings_its_sampler(studio: FakeStudio, tmp_path: Path) -> None:
    studio.catalog.loras.use({"lcm-lora-1024": tmp_path / "loras" / "ink.safetensors"})
    page = Page(studio)

    def chosen(loras: str, **values: object) -> dict[str, object]:
        form = fields.first(studio) | {"loras": loras} | values
        return page.call("relora", *(form[name] for name in fields.FIELDS))

    told = chosen("lcm-lora-1024")
    assert told["sampler"]["value"] == "lcm"  # type: ignore[index]
    assert told["steps"]["value"] == 4  # type: ignore[index]
    for loras in ("ink", "", "lcm-lora-1024:-1", "a:b:c"):
        assert "value" not in chosen(loras).get("sampler", {})  # type: ignore[operator]
    assert "value" not in chosen("lcm-lora-1024", sampler="lcm").get("sampler", {})  # type: ignore[operator]


def test_the_models_tab_lists_and_removes_them(studio: FakeStudio, tmp_path: Path) -> None:
    page = Page(studio)
    shelf = str(page.open()["lora-shelf"])
    assert "rank 4" in shelf
    name = f"{lora_cards.ASKED}ink"
    page.press("ask-remove", name)
    assert f"Delete “ink” from {tmp_path / 'loras'}?" in page.shown["lora-shelf"]
    page.press("keep", name)
    assert "There is no way back." not in page.shown["lora-shelf"]
    page.press("remove", name)
    assert "“ink” is removed" in page.shown["shelf"]
    assert [card.name for card in studio.catalog.loras.cards()] == ["gold"]
    page.press("remove", name)
    assert "There is no LoRA called “ink”" in page.shown["shelf"]


def test_a_damaged_one_is_told_and_can_be_removed(studio: FakeStudio, tmp_path: Path) -> None:
    broken = tmp_path / "loras" / "broken.safetensors"
    broken.write_bytes(b"<script>" * 20)
    page = Page(studio)
    shelf = str(page.open()["lora-shelf"])
    assert "The LoRA “broken” cannot be used" in shelf
    page.press("ask-remove", f"{lora_cards.ASKED}broken")
    page.press("remove", f"{lora_cards.ASKED}broken")
    assert not broken.exists()
    assert "cannot be used" not in page.shown["lora-shelf"]
    broken.write_bytes(b"x" * 100)
    assert "broken" not in str(Page(studio).open(ELSEWHERE)["lora-shelf"])


def test_visitors_remove_nothing(studio: FakeStudio) -> None:
    assert access.may_administer(HERE)
    page = Page(studio)
    shelf = str(page.open(ELSEWHERE)["lora-shelf"])
    assert "rank 4" in shelf
    assert f'data-name="{lora_cards.ASKED}' not in shelf
    assert str(studio.settings.loras) not in shelf
    page.press("remove", f"{lora_cards.ASKED}ink", ELSEWHERE)
    assert len(studio.catalog.loras.cards()) == 2


def test_what_a_job_paints_with_stays(studio: FakeStudio) -> None:
    with studio.runner.held():
        job = studio.submit(studio.request({"prompt": "x", "loras": "ink"}), "m" * 20)
        with pytest.raises(ModelError, match="no LoRA called"):
            studio.remove_lora("lost")
        with pytest.raises(BusyError, match="is being painted with the LoRA “ink”"):
            studio.remove_lora("ink")
    studio.wait(job.id, "m" * 20, 20)
    assert studio.remove_lora("ink") > 0


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_folders_that_cannot_be_listed_are_told(tmp_path: Path) -> None:
    for name in ("models", "loras"):
        (tmp_path / name).symlink_to(name)
    with FakeStudio(tmp_path, steps=2, pace=0) as studio:
        opened = Page(studio).open()
        shelf = str(opened["shelf"]) + str(opened["lora-shelf"])
        assert "PixArt nano" in shelf
    for what, name in (("models", "models"), ("LoRAs", "loras")):
        told = f"The {what} in {tmp_path / name} cannot be listed (links in it lead in circles)."
        assert told in shelf


def settled(studio: FakeStudio) -> LoraExportJob:
    """The last export, once it has ended."""
    end = time.monotonic() + 60
    while (job := studio.lora_exports.job) is None or job.active:
        assert time.monotonic() < end
        time.sleep(0.02)
    return job


@pytest.mark.usefixtures("warm_children")
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_lora_is_exported_and_fetched(form: str, studio: FakeStudio, tmp_path: Path) -> None:
    page = Page(studio)
    page.open()
    name = f"{lora_cards.ASKED}ink"
    page.press("ask-export", name)
    shelf = page.shown["lora-shelf"]
    assert [f'data-do="export-{one}"' in shelf for one in forms.FORMS] == [True] * 5
    assert "For which program?" in shelf
    page.press(f"export-{form}", name)
    job = settled(studio)
    assert job.file is not None
    page.press("keep", name)
    shown = page.shown["lora-shelf"]
    assert f'href="studio/loras/{job.token}" download="{job.file.name}"' in shown
    assert job.file.name == {"kohya": "ink-kohya.safetensors", "peft": "ink-peft.zip"}[form]
    with TestClient(Starlette(routes=routes(studio))) as web:
        answer = web.get(f"/studio/loras/{job.token}")
        assert answer.content == job.file.read_bytes()
        assert "attachment" in answer.headers["content-disposition"]
        assert web.get("/studio/loras/0123").status_code == 404
    if form == "peft":
        with zipfile.ZipFile(job.file) as archive:
            archive.extractall(tmp_path / "out")
    else:
        shutil.copy(job.file, tmp_path)
    written = tmp_path / ("out/ink-peft" if form == "peft" else job.file.name)
    kept = files.read(studio.catalog.loras.find("ink").file)
    found = algebra.compared(kept, files.read(written))
    assert (found.only, found.misfits) == (((), ()), ())
    assert found.total.difference < 1e-5
    page.press("close-export", name)
    assert "download=" not in page.shown["lora-shelf"]
    assert not job.file.parent.exists()


@pytest.mark.usefixtures("warm_children")
def test_an_export_that_fails_says_why(studio: FakeStudio) -> None:
    page = Page(studio)
    page.open()
    name = f"{lora_cards.ASKED}ink"
    page.press("export-onnx", name)
    assert "There is no form of LoRA files called “onnx”" in page.shown["shelf"]
    page.press("export-kohya", f"{lora_cards.ASKED}../ink")
    assert "is no name of a LoRA" in page.shown["shelf"]
    assert studio.lora_exports.job is None
    file = studio.catalog.loras.find("ink").file
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\xff" * 4)
    page.press("export-kohya", name)
    job = settled(studio)
    assert job.file is None
    page.press("keep", name)
    assert "not finite" in page.shown["lora-shelf"]
    page.press("close-export", name)
    assert "not finite" not in page.shown["lora-shelf"]


def test_visitors_export_nothing(studio: FakeStudio) -> None:
    page = Page(studio)
    page.open(ELSEWHERE)
    page.press("export-kohya", f"{lora_cards.ASKED}ink", ELSEWHERE)
    assert studio.lora_exports.job is None
    assert 'data-do="ask-export"' not in page.shown["lora-shelf"]
