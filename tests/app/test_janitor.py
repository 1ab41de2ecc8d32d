"""What is gathered goes in time, and nothing that a picture needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from app import janitor
from app.gallery import metadata
from app.gallery.index import GalleryIndex
from app.janitor import DAY, HOUR, Janitor, Kept, old
from app.settings import Settings
from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.picture_record import PictureRecord
from pipelines.request import complete

NOW = 2_000_000_000.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workspace=tmp_path)


@pytest.fixture
def swept(settings: Settings) -> Janitor:
    index = GalleryIndex(settings.outputs, settings.index, lambda names: None)
    return Janitor(settings, index, uploads=settings.uploads)


def aged(file: Path, seconds: float) -> Path:
    os.utime(file, (NOW - seconds, NOW - seconds))
    return file


def start(settings: Settings, shade: int, seconds: float) -> Path:
    """A picture to start from, last used so many seconds ago."""
    source = settings.workspace / "source.png"
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(source)
    return aged(settings.inputs / pictures.keep(source, settings.inputs), seconds)


def painted(settings: Settings, init: Path | None, name: str = "000000-1-abcdef.png") -> Path:
    values = {"prompt": "a cat", "seed": 1, "init": init.name if init else None}
    request = complete({k: v for k, v in values.items() if v is not None}, Catalog())
    file = settings.outputs / "2026-01-01" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(file, pnginfo=metadata.chunks(PictureRecord(request=request)))
    return file


def test_what_is_too_old_or_too_much_is_chosen_the_least_used_first() -> None:
    files = [Kept(file=Path(str(n)), size=10, used=float(n)) for n in (5, 1, 3, 2, 4)]
    assert [one.used for one in old(files, 6, seconds=3, most=1000)] == [1, 2]
    assert [one.used for one in old(files, 6, seconds=99, most=25)] == [1, 2, 3]
    assert old(files, 6, seconds=99, most=50) == []
    assert old([], 6, seconds=0, most=0) == []


def test_uploads_go_after_an_hour(settings: Settings, swept: Janitor) -> None:
    for name, age in (("old", HOUR + 1), ("new", HOUR - 1)):
        folder = settings.uploads / name
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"x")
        aged(folder / "a.png", age)
    stray = settings.uploads / "tmp123"
    stray.write_bytes(b"half")
    aged(stray, HOUR + 1)
    swept.sweep(NOW)
    assert [one.name for one in settings.uploads.iterdir()] == ["new"]


def test_what_a_picture_needs_stays_for_ever(settings: Settings, swept: Janitor) -> None:
    needed, gone = start(settings, 1, 400 * DAY), start(settings, 2, 8 * DAY)
    recent = start(settings, 3, 6 * DAY)
    picture = painted(settings, needed)
    painted(settings, None, "000001-1-abcdef.png")
    swept.sweep(NOW)
    assert (needed.exists(), gone.exists(), recent.exists()) == (True, False, True)
    picture.unlink()
    swept.sweep(NOW)
    assert not needed.exists()


def test_what_a_job_waits_with_stays_however_long_it_waits(settings: Settings) -> None:
    asked, gone = start(settings, 1, 30 * DAY), start(settings, 2, 30 * DAY)
    index = GalleryIndex(settings.outputs, settings.index, lambda names: None)
    Janitor(settings, index, uploads=settings.uploads, starts=lambda: {asked.name}).sweep(NOW)
    assert (asked.exists(), gone.exists()) == (True, False)


def test_too_many_pictures_to_start_from_go_sooner(
    settings: Settings, swept: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [start(settings, n, n * HOUR) for n in range(6)]
    monkeypatch.setattr(janitor, "INPUT_BYTES", kept[0].stat().st_size * 2)
    swept.sweep(NOW)
    # One that was used within the hour may be what a job waits with.
    assert [file.exists() for file in kept] == [True, True, False, False, False, False]


def test_other_files_and_links_stay(settings: Settings, swept: Janitor, tmp_path: Path) -> None:
    start(settings, 1, 8 * DAY)
    mine = settings.inputs / "mine.png"
    mine.write_bytes(b"x")
    aged(mine, 900 * DAY)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(b"x")
    aged(outside / "a.png", 900 * DAY)
    settings.uploads.mkdir(parents=True)
    (settings.uploads / "link").symlink_to(outside)
    swept.sweep(NOW)
    assert [file.name for file in settings.inputs.iterdir()] == ["mine.png"]
    assert (outside / "a.png").exists()


def test_using_a_picture_keeps_it(settings: Settings) -> None:
    file = start(settings, 1, 0)
    os.utime(file, (1, 1))
    pictures.find(file.name, settings.inputs)
    assert file.stat().st_mtime > 10**9
    os.utime(file, (1, 1))
    Image.new("RGB", (8, 8), (1, 0, 0)).save(settings.workspace / "source.png")
    pictures.keep(settings.workspace / "source.png", settings.inputs)
    assert file.stat().st_mtime > 10**9


def test_thumbnails_have_a_limit(
    settings: Settings, swept: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.thumbs / "2026-01-01"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.webp").write_bytes(bytes(100))
        aged(folder / f"{number}.webp", 5 - number)
    monkeypatch.setattr(janitor, "THUMB_BYTES", 250)
    swept.sweep(NOW)
    assert sorted(file.name for file in folder.iterdir()) == ["3.webp", "4.webp"]


def test_an_index_that_cannot_be_read_costs_nothing(
    settings: Settings, swept: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.errors import SaveError

    def fails(*_: object) -> bool:
        raise SaveError("The disk is read-only.")

    file = start(settings, 1, 8 * DAY)
    monkeypatch.setattr(GalleryIndex, "sync", fails)
    swept.sweep(NOW)
    assert file.exists()


def test_an_empty_workspace_is_no_fault(swept: Janitor) -> None:
    swept.sweep()
