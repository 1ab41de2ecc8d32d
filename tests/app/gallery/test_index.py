"""The index of the gallery: what it finds, and that only the files are the truth."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, PngImagePlugin

from app.gallery import metadata
from app.gallery import query as gallery_query
from app.gallery.index import GalleryIndex, IndexedPicture
from app.gallery.pictures import Gallery
from app.gallery.stars import FILE
from pipelines.errors import BusyError, RequestError, SaveError, StudioError
from pipelines.picture_record import Picture, PictureRecord
from pipelines.request import GenerationRequest, from_mapping

BASE = {
    "model": "nano",
    "sampler": "dpm-solver++",
    "steps": 14,
    "guidance": 4.5,
    "width": 128,
    "height": 128,
    "seed": 1,
}


def request(prompt: str, **values: object) -> GenerationRequest:
    return from_mapping({**BASE, "prompt": prompt, **values})


def put(outputs: Path, name: str, prompt: str, **values: object) -> Path:
    """A picture of another day, as the studio would have written it."""
    file = outputs / name
    file.parent.mkdir(parents=True, exist_ok=True)
    chunks = metadata.chunks(PictureRecord(request=request(prompt, **values), weights="abc"))
    Image.new("RGB", (8, 8), "teal").save(file, pnginfo=chunks)
    return file


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def index(outputs: Path, tmp_path: Path) -> GalleryIndex:
    return GalleryIndex(outputs, tmp_path / "cache" / "gallery.db")


def prompts(index: GalleryIndex, query: str = "") -> list[str]:
    return [e.request.prompt if e.request else "" for e in index.search(query).entries]


def test_an_empty_workspace_has_an_empty_gallery(index: GalleryIndex, outputs: Path) -> None:
    assert index.sync()
    assert index.search().total == 0
    assert not outputs.exists(), "looking makes nothing"


def test_pictures_come_and_go_with_their_files(index: GalleryIndex, outputs: Path) -> None:
    gallery = Gallery(outputs)
    picture = Picture(image=Image.new("RGB", (8, 8)), request=request("a cat"), seconds=1)
    new = gallery.add(picture)
    old = put(outputs, "2024-02-29/235959-7-abcdef.png", "a dog", seed=7)
    assert index.sync()
    newest, oldest = index.search().entries
    assert (newest.name, newest.path) == (new.name, new.path)
    assert newest.request == request("a cat")
    assert newest.size == new.path.stat().st_size
    assert oldest.created == "2024-02-29 23:59:59"
    assert oldest.weights == "abc"
    old.unlink()
    old.parent.rmdir()
    gallery.remove(new.name)
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    assert index.sync()
    assert prompts(index) == ["a fox"]


def test_a_change_within_one_tick_of_the_clock_is_seen(
    index: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    folder = outputs / "2025-01-01"
    now = time.time_ns()
    os.utime(folder, ns=(now, now))
    index.sync()
    put(outputs, "2025-01-01/000001-1-000000.png", "an owl")
    os.utime(folder, ns=(now, now))
    index.sync()
    assert index.search().total == 2


def test_a_folder_that_did_not_change_is_not_read_again(
    index: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    put(outputs, "2025-01-02/000000-1-000000.png", "an owl")
    for day in ("2025-01-01", "2025-01-02"):
        os.utime(outputs / day, (1_700_000_000, 1_700_000_000))
    index.sync()
    read: list[str] = []
    scandir = os.scandir

    def watched(path: Path) -> object:
        read.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    put(outputs, "2025-01-02/000001-1-000000.png", "an elk")
    index.sync()
    assert read == ["outputs", "2025-01-02"]
    assert prompts(index) == ["an elk", "an owl", "a fox"]


def test_reading_stops_when_its_time_is_over_and_goes_on(
    index: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.index._BATCH", 2)
    for i in range(7):
        put(outputs, f"2025-01-0{1 + i // 4}/00000{i}-1-000000.png", f"cat {i}")
    counts: list[int] = []
    # A little is read in any case, or a slow disk would never be read at all.
    assert not index.sync(seconds=0, count=counts.append)
    assert counts == [2]
    assert prompts(index) == ["cat 6", "cat 5"]
    assert index.sync(count=counts.append)
    # What is left of the last day, then the four of the first.
    assert counts == [2, 1, 3, 5]
    assert prompts(index)[0] == "cat 6"


def test_what_is_no_picture_of_the_studio_is_left_alone(
    index: GalleryIndex, outputs: Path, tmp_path: Path
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    day = outputs / "2025-01-01"
    (day / "holiday.png").write_bytes(b"x")
    (day / "000000-1-00000g.png").write_bytes(b"x")
    (day / "000001-1-000000.png").symlink_to(day / "000000-1-000000.png")
    (day / "000002-1-000000.png").mkdir()
    (outputs / "inputs").mkdir()
    (outputs / "2025-01-02").write_bytes(b"a file")
    index.sync()
    assert [e.name for e in index.search().entries] == ["2025-01-01/000000-1-000000.png"]


def test_a_picture_without_a_recipe_is_shown_with_the_reason(
    index: GalleryIndex, outputs: Path
) -> None:
    file = outputs / "2025-01-01/000000-1-000000.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(file)
    (file.parent / "000001-1-000000.png").write_bytes(b"\x89PNG broken")
    put(outputs, "2025-01-01/000002-1-000000.png", "a fox")
    index.sync()
    found = index.search().entries
    assert [e.request is None for e in found] == [False, True, True]
    assert "not a PNG picture" in found[1].problem
    assert "holds no recipe" in found[2].problem
    assert index.search("-cat").total == 3
    assert index.search("fox").total == 1


SEARCHES = {
    "": "elk owl fox",
    "ca": "",
    "cat": "",
    "red": "owl fox",
    "RED": "owl fox",
    "red fox": "fox",
    '"a red"': "owl fox",
    '"red a"': "",
    "-owl": "elk fox",
    "blurry": "elk",
    "forêt": "elk",
    "foret": "elk",
    "for": "elk",
    "rest": "",
    "anime": "owl",
    "model:NANO": "elk owl fox",
    "model:other": "",
    "-model:nano": "",
    "style:Anime": "owl",
    "sampler:lcm steps:4": "elk",
    "lora:ink": "owl",
    "lora:INK -lora:gold": "",
    "lora:in": "",
    "lora:in_": "",
    "-lora:ink": "elk fox",
    "size:160x96": "owl",
    "seed:18446744073709551615": "owl",
    "guidance:4.5": "owl fox",
    "date:2025": "elk owl fox",
    "date:2025-01-02": "owl",
    "before:2025-01-03 after:2025-01-02": "owl",
    "-date:2025-01-02": "elk fox",
    "雪": "elk",
    "雪山": "elk",
    "🦌": "elk",
    "%": "",
    "_": "",
    "foo:bar": "",
    "lens:35mm": "fox",
    "-": "elk owl fox",
    '"': "elk owl fox",
    "* OR NEAR( ^": "",
    "prompt:red": "",
    "'); DROP TABLE pictures; --": "",
}


@pytest.fixture
def three(index: GalleryIndex, outputs: Path) -> GalleryIndex:
    put(outputs, "2025-01-01/000000-1-000000.png", "a red fox, lens:35mm")
    put(
        outputs,
        "2025-01-02/000000-1-000000.png",
        "a red owl",
        style="Anime",
        width=160,
        height=96,
        seed=2**64 - 1,
        loras="ink:0.5, gold",
    )
    put(
        outputs,
        "2025-01-03/000000-1-000000.png",
        "an elk 🦌 in the forêt 美しい雪山",
        negative="blurry",
        sampler="lcm",
        steps=4,
        guidance=0,
    )
    index.sync()
    return index


@pytest.mark.parametrize("query", SEARCHES)
def test_searches(three: GalleryIndex, query: str) -> None:
    found = three.search(query)
    animals = [next(a for a in ("elk", "owl", "fox") if a in p) for p in prompts(three, query)]
    assert " ".join(animals) == SEARCHES[query]
    assert found.total == len(animals)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("date:yesterday", "“date:yesterday” is not a date. Write date:2026-11-27"),
        ("before:2025-1", "is not a date"),
        ("steps:many", "“steps:many” wants a number"),
        ("seed:-1", "wants a number"),
        ("steps:\u0661", "wants a number"),
        ("size:large", "large"),
        ("starred:perhaps", "neither yes nor no"),
        ("x" * 501, "more than 500 characters"),
        ("a " * 41, "more than 40 words"),
    ],
)
def test_a_search_that_cannot_be_is_a_sentence(three: GalleryIndex, query: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        three.search(query)


def test_a_page_of_a_search_and_only_some_names(three: GalleryIndex) -> None:
    found = three.search("", limit=1, offset=1)
    assert found.total == 3
    assert [e.name for e in found.entries] == ["2025-01-02/000000-1-000000.png"]
    names = ["2025-01-01/000000-1-000000.png", "2025-01-03/000000-1-000000.png"]
    assert [e.name for e in three.find(names)] == names
    assert three.search("red", only=names).total == 1
    assert three.search(only=[]).total == 0
    with pytest.raises(RequestError, match="no picture called “no”"):
        three.find(["no"])


def test_stars_are_kept_beside_the_pictures(
    three: GalleryIndex, outputs: Path, tmp_path: Path
) -> None:
    name = "2025-01-02/000000-1-000000.png"
    three.star(name, on=True)
    assert [e.name for e in three.search("starred:yes").entries] == [name]
    assert three.search("-starred:yes").total == three.search("starred:no").total == 2
    # Another index, as after the cache was deleted.
    other = GalleryIndex(outputs, tmp_path / "other.db")
    other.sync()
    assert other.find([name])[0].starred
    other.star(name, on=False)
    assert three.search("starred:yes").total == 0


def test_a_damaged_list_of_stars_is_kept_aside(three: GalleryIndex, outputs: Path) -> None:
    (outputs / FILE).write_text("[" * 100_000)
    assert three.search("starred:yes").total == 0
    three.star("2025-01-02/000000-1-000000.png", on=True)
    assert three.search("starred:yes").total == 1
    (aside,) = outputs.glob(f"{FILE}.damaged-*")
    assert aside.read_text() == "[" * 100_000
    (outputs / FILE).write_text(json.dumps({"no": "list"}))
    assert three.search("starred:yes").total == 0


@pytest.mark.parametrize("damage", ["no database", "cut", "other form"])
def test_a_damaged_index_is_made_anew(
    three: GalleryIndex, outputs: Path, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "cache" / "gallery.db"
    if damage == "no database":
        file.write_bytes(b"this is no database, but long enough to be asked " * 200)
    elif damage == "cut":
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) // 2))
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("DROP TABLE pictures")
            connection.execute("CREATE TABLE pictures (other TEXT)")
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    fresh = GalleryIndex(outputs, file)
    fresh.sync()
    assert fresh.search("red").total == 2
    assert fresh.rebuild() == 3


def test_an_index_of_the_version_before_is_made_anew(outputs: Path, tmp_path: Path) -> None:
    """It kept the request and the weights in columns of their own."""
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    file = tmp_path / "gallery.db"
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE pictures (id INTEGER PRIMARY KEY, name TEXT, day TEXT, bytes INTEGER,"
            " prompt TEXT, weights TEXT, recipe TEXT, problem TEXT, mtime_ns INTEGER)"
        )
        connection.execute("CREATE TABLE days (day TEXT PRIMARY KEY, mtime_ns INTEGER)")
        stat = (outputs / "2025-01-01").stat()
        connection.execute("INSERT INTO days VALUES ('2025-01-01', ?)", (stat.st_mtime_ns,))
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    index = GalleryIndex(outputs, file)
    assert index.sync()
    (entry,) = index.search("fox").entries
    assert (entry.weights, entry.request) == ("abc", request("a fox"))


def test_an_index_that_cannot_be_written_lies_in_memory(outputs: Path, tmp_path: Path) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    (tmp_path / "cache").write_bytes(b"a file where a folder should be")
    (tmp_path / "gallery.db").mkdir()
    for database in (tmp_path / "cache" / "gallery.db", tmp_path / "gallery.db"):
        index = GalleryIndex(outputs, database)
        assert index.sync()
        assert prompts(index, "fox") == ["a fox"]
        assert index.rebuild() == 1
    assert (tmp_path / "cache").is_file()
    assert list((tmp_path / "gallery.db").iterdir()) == []


def test_a_rebuild_reads_files_that_changed_under_their_names(
    three: GalleryIndex, outputs: Path
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a blue whale")
    three.sync()
    assert three.rebuild() == 3
    assert prompts(three, "whale") == ["a blue whale"]
    assert prompts(three, "fox") == []


def _sync(outputs: Path, database: Path) -> None:
    GalleryIndex(outputs, database).sync()


def test_threads_and_processes_take_in_each_picture_once(outputs: Path, tmp_path: Path) -> None:
    for i in range(40):
        put(outputs, f"2025-01-01/0000{i:02}-1-000000.png", f"cat {i}")
    database = tmp_path / "gallery.db"
    index = GalleryIndex(outputs, database)
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_sync, args=(outputs, database))
    process.start()
    threads = [threading.Thread(target=index.sync) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.join(60)
    assert process.exitcode == 0
    names = [entry.name for entry in index.search().entries]
    assert len(names) == len(set(names)) == 40
    assert index.search("cat").total == 40


def test_every_field_is_named(three: GalleryIndex) -> None:
    assert set(gallery_query.TERMS) == {
        *("model", "sampler", "style", "lora", "size", "seed", "steps", "guidance"),
        *("date", "before", "after", "starred"),
    }


def test_a_recipe_in_the_index_is_checked_like_any_other(
    three: GalleryIndex, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "cache" / "gallery.db") as connection:
        connection.execute("UPDATE pictures SET record = '{\"prompt\": 1}'")
    connection.close()
    found: tuple[IndexedPicture, ...] = three.search().entries
    assert all(e.request is None and "rebuild it" in e.problem for e in found)


def test_a_recipe_with_text_that_no_file_can_hold_keeps_nobody_out(
    index: GalleryIndex, outputs: Path
) -> None:
    file = put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    put(outputs, "2025-01-01/000001-1-000000.png", "an owl")
    recipe = {"version": 1, "request": {**BASE, "prompt": "a fox", "model": "\ud800"}}
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(metadata.CHUNK, json.dumps(recipe))
    Image.new("RGB", (8, 8)).save(file, pnginfo=chunks)
    index.sync()
    assert index.search().total == 2
    assert prompts(index, "owl") == ["an owl"]


def test_a_folder_that_goes_while_it_is_looked_at_takes_no_other_with_it(
    index: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    put(outputs, "2025-01-02/000000-1-000000.png", "an owl")
    index.sync()
    scandir = os.scandir

    class Going:
        """The list of a folder, of which one entry is gone when it is asked."""

        def __init__(self, path: Path) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> Iterator[object]:
            return map(self._perhaps, self._entries)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def _perhaps(self, entry: os.DirEntry[str]) -> object:
            if entry.name != "2025-01-02":
                return entry
            return SimpleNamespace(name=entry.name, is_dir=entry.is_dir, stat=self._gone)

        def _gone(self) -> object:
            raise FileNotFoundError

    monkeypatch.setattr(os, "scandir", Going)
    index.sync()
    monkeypatch.undo()
    assert prompts(index) == ["a fox"]


@pytest.mark.parametrize("what", ["all", "a day"])
def test_a_folder_that_cannot_be_listed_for_a_moment_forgets_nothing(
    index: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    index.sync()
    scandir = os.scandir

    def refused(path: Path) -> object:
        if what == "all" or Path(path) != outputs:
            raise PermissionError
        return scandir(path)

    put(outputs, "2025-01-01/000001-1-000000.png", "an owl")
    monkeypatch.setattr(os, "scandir", refused)
    index.sync()
    assert prompts(index) == ["a fox"]
    monkeypatch.undo()
    index.sync()
    assert prompts(index) == ["an owl", "a fox"]


def test_a_file_that_was_half_copied_is_read_again(index: GalleryIndex, outputs: Path) -> None:
    whole = put(outputs, "2025-01-01/000000-1-000000.png", "a fox").read_bytes()
    file = outputs / "2025-01-01/000001-1-000000.png"
    file.write_bytes(whole[:20])
    os.utime(outputs / "2025-01-01", (1_700_000_000, 1_700_000_000))
    index.sync()
    assert index.search("fox").total == 1
    file.write_bytes(whole)
    os.utime(outputs / "2025-01-01", (1_700_000_000, 1_700_000_000))
    index.sync()
    assert index.search("fox").total == 2
    assert all(entry.request for entry in index.search().entries)


@pytest.mark.parametrize(
    "damage",
    ["DROP TABLE days", "DROP TABLE pictures_fts", "UPDATE pictures SET prompt = x'ff'"],
)
def test_an_index_that_lacks_something_is_made_anew(
    three: GalleryIndex, outputs: Path, tmp_path: Path, damage: str
) -> None:
    with sqlite3.connect(tmp_path / "cache" / "gallery.db") as connection:
        connection.execute(damage)
    connection.close()
    three.sync()
    assert three.rebuild() == 3
    assert three.search("red").total == 2


def test_processes_that_write_wait_for_each_other(outputs: Path, tmp_path: Path) -> None:
    """One that reads first and then writes is refused at once by SQLite."""
    for i in range(300):
        put(outputs, f"2025-01-01/000{i // 100}{i % 100:02}-1-000000.png", f"cat {i}")
    database = tmp_path / "gallery.db"
    indexes = [GalleryIndex(outputs, database) for _ in range(3)]
    faults: list[BaseException] = []

    def rebuild(index: GalleryIndex) -> None:
        try:
            for _ in range(3):
                index.sync()
        except StudioError as error:
            faults.append(error)

    threads = [threading.Thread(target=rebuild, args=(index,)) for index in indexes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert indexes[0].search().total == 300


def test_a_locked_index_is_not_waited_for_longer_than_asked(
    three: GalleryIndex, outputs: Path, tmp_path: Path
) -> None:
    put(outputs, "2025-01-04/000000-1-000000.png", "an ape")
    holder = sqlite3.connect(tmp_path / "cache" / "gallery.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(BusyError, match="in use by another program"):
        three.sync(seconds=0.1)
    assert time.monotonic() - began < 5
    holder.close()
    three.sync()
    assert three.search("ape").total == 1


def test_times_of_the_future_are_not_read_again_and_again(
    index: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    later = time.time() + 10**6
    os.utime(outputs / "2025-01-01", (later, later))
    index.sync()
    listed: list[str] = []
    scandir = os.scandir

    def watched(path: Path) -> object:
        listed.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    index.sync()
    assert listed == ["outputs"]


def test_what_is_gone_is_told(outputs: Path, tmp_path: Path) -> None:
    gone: list[str] = []
    index = GalleryIndex(outputs, tmp_path / "gallery.db", gone.extend)
    file = put(outputs, "2025-01-01/000000-1-000000.png", "a fox")
    index.sync()
    assert gone == []
    file.unlink()
    index.sync()
    assert gone == ["2025-01-01/000000-1-000000.png"]


def test_a_linked_day_is_left_alone(index: GalleryIndex, outputs: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "2025-01-01/000000-1-000000.png", "a fox")
    outputs.mkdir()
    (outputs / "2025-01-01").symlink_to(tmp_path / "elsewhere" / "2025-01-01")
    index.sync()
    assert index.search().total == 0


def test_stars_that_cannot_be_read_for_a_moment_are_not_thrown_away(
    three: GalleryIndex, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "2025-01-01/000000-1-000000.png", "2025-01-02/000000-1-000000.png"
    three.star(first, on=True)
    other = GalleryIndex(outputs, outputs.parent / "cache" / "gallery.db")

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        assert other.search("starred:yes").total == 0
        with pytest.raises(SaveError):
            other.star(second, on=True)
    other.star(second, on=True)
    assert other.search("starred:yes").total == 2
    assert not list(outputs.glob("*.damaged*"))


def test_letters_are_found_however_their_accents_are_written(
    index: GalleryIndex, outputs: Path
) -> None:
    put(outputs, "2025-01-01/000000-1-000000.png", unicodedata.normalize("NFD", "美しいが山 café"))
    index.sync()
    for query in ("が", unicodedata.normalize("NFD", "が"), "café", "cafe"):
        assert index.search(query).total == 1, query
