"""The verb `gallery`, from what is typed to what is printed and written."""

from __future__ import annotations

import json
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from app.gallery.index import GalleryIndex
from tests.app.gallery.test_index import put

Run = Callable[..., tuple[int, list[str], list[str]]]
FOX, OWL = "2025-01-01/000000-1-000000.png", "2025-01-02/000000-2-000000.png"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    put(tmp_path / "outputs", FOX, "a red fox")
    put(tmp_path / "outputs", OWL, "a red owl\non a branch" + ", detailed" * 20, seed=2**64 - 1)
    return tmp_path


@pytest.fixture
def gallery(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    before = signal.getsignal(signal.SIGINT)

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        """(exit code, lines on stdout, lines on stderr)"""
        code = main(["gallery", *arguments, "--workspace", str(workspace)])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()

    yield run
    signal.signal(signal.SIGINT, before)


def test_list_is_a_line_for_each_picture(gallery: Run, workspace: Path) -> None:
    GalleryIndex(workspace / "outputs", workspace / "cache" / "gallery.db").star(FOX, on=True)
    code, out, said = gallery("list")
    assert code == 0
    assert out[0].startswith(f"  {OWL}  128x128  nano  a red owl on a branch, detailed")
    assert out[0].endswith("…")
    assert out[1] == f"* {FOX}  128x128  nano  a red fox"
    assert said == ["2 pictures."]
    code, out, said = gallery("list", "--limit", "1")
    assert len(out) == 1
    assert said == ["2 pictures; 1 are shown, --limit 0 shows all."]


def test_json_has_every_setting(gallery: Run, workspace: Path) -> None:
    (workspace / "outputs" / "2025-01-02" / "000001-3-000000.png").write_bytes(b"broken")
    code, out, said = gallery("list", "--json")
    assert (code, said) == (0, [])
    broken, owl, fox = map(json.loads, out)
    assert broken["problem"].endswith("is not a PNG picture that can be read.")
    assert fox["path"] == str(workspace / "outputs" / FOX)
    assert owl["seed"] == 2**64 - 1
    assert owl["created"] == "2025-01-02 00:00:00"
    assert set(owl) == {
        *("name", "path", "created", "bytes", "starred", "weights", "prompt", "negative"),
        *("style", "model", "sampler", "steps", "guidance", "width", "height", "seed"),
        "loras",
    }


def test_search_and_rebuild(gallery: Run, workspace: Path) -> None:
    assert [line.split()[0] for line in gallery("search", "red -owl")[1]] == [FOX]
    put(workspace / "outputs", FOX, "a blue whale")
    assert gallery("search", "whale")[1] == []
    assert gallery("rebuild")[1] == ["2 pictures in the index."]
    assert len(gallery("search", "whale", "--json")[1]) == 1
    assert json.loads(gallery("rebuild", "--json")[1][0]) == {"pictures": 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "date:yesterday"], "is not a date"),
        (["search", "-owl"], "Put -- before a text that begins with a dash."),
        (["search"], "Missing argument"),
        (["list", "--limit", "-1"], "is not a number of pictures"),
        (["list", "--limit", "many"], "“many” is not a number of pictures"),
        (["export"], "Missing option '--out'"),
        (["export", "--out", "x.zip", "--format", "gif"], "There is no format called “gif”"),
        (["export", "--out", "x.zip", "--search", "whale"], "nothing to export"),
        (["export", "--out", "x.zip", "--search", "owl", "--ids", OWL], "not both"),
        (["export", "--out", "x.zip", "--ids", "a.png"], "no picture called “a.png”"),
        (["export", "--out", "x.jpg"], "x.jpg"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    gallery: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, lines = gallery(*arguments)
    assert (code, out) == (2, [])
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "x.zip").exists()


def test_a_query_that_begins_with_a_dash(gallery: Run, workspace: Path) -> None:
    code = main(["gallery", "search", "--workspace", str(workspace), "--", "-owl"])
    assert code == 0


def test_export_takes_a_search_or_names_or_paths(gallery: Run, workspace: Path) -> None:
    target = workspace / "new" / "owls.zip"
    code, out, said = gallery("export", "--search", "owl", "--out", str(target))
    assert (code, said) == (0, [])
    assert out[0].startswith("1 picture, ")
    assert out[0].endswith(str(target))
    with zipfile.ZipFile(target) as archive:
        assert archive.read(OWL) == (workspace / "outputs" / OWL).read_bytes()
        assert FOX not in archive.namelist()
    code, out, _ = gallery("export", "--search", "owl", "--out", str(target))
    assert code == 2, "an existing file is never replaced"

    both = f"{OWL},{workspace / 'outputs' / FOX}"
    folder = workspace / "set"
    code, out, _ = gallery(
        "export", "--ids", both, "--out", str(folder), "--format", "dataset", "--json"
    )
    assert code == 0
    told = json.loads(out[0])
    assert (told["path"], told["pictures"]) == (str(folder), 2)
    assert len((folder / "metadata.jsonl").read_text("utf-8").splitlines()) == 2


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signal for one process alone")
def test_ctrl_c_stops_an_export(
    gallery: Run, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.gallery.exports import export

    write = export.export

    def slowly(*arguments: Any, should_stop: Callable[[], bool], **more: Any) -> Any:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        while not should_stop():
            pass
        return write(*arguments, should_stop=should_stop, **more)

    monkeypatch.setattr(export, "export", slowly)
    code, out, said = gallery("export", "--out", str(workspace / "all.zip"))
    assert (code, out, said) == (130, [], ["Stopped."])
    assert not (workspace / "all.zip").exists()


def test_nothing_in_a_recipe_reaches_the_terminal_as_a_command(
    gallery: Run, workspace: Path
) -> None:
    put(workspace / "outputs", FOX, "a \u202efox", model="\x1b[31mred\x1b]0;own\x07\nline")
    gallery("rebuild")
    code, out, _ = gallery("list")
    assert code == 0
    assert len(out) == 2
    assert all(line.isprintable() for line in out)
