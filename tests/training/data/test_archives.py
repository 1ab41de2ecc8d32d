"""Archives made to write elsewhere, to fill the disk or to confuse."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import RequestError, SaveError
from training.data import archives, readers
from training.data.archives import unpack


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def pack(file: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members:
            opened.writestr(name, data, zipfile.ZIP_DEFLATED)
    return file


def files(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def special(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


def test_pictures_captions_and_tables_are_unpacked(tmp_path: Path) -> None:
    names = ["a.png", "a.txt", "s/b.JPG", "s/b.json", "metadata.csv", "captions.jsonl", "-rf.webp"]
    members = [(name, png()) for name in names]
    junk = [(n, b"x") for n in ("__MACOSX/a.png", ".DS_Store", "s/._b.jpg", "s/Thumbs.db", "d/")]
    archive = pack(tmp_path / "a.zip", *members, *junk)
    assert unpack(archive, tmp_path / "new" / "out") == ()
    assert files(tmp_path / "new" / "out") == sorted(names)
    assert (tmp_path / "new" / "out" / "a.png").read_bytes() == png()
    assert readers.find(tmp_path / "new" / "out").entries
    assert files(tmp_path / "new") == sorted(f"out/{name}" for name in names)


BAD: dict[str, tuple[str | zipfile.ZipInfo, str]] = {
    "up": ("../evil.png", "outside"),
    "up to keys": ("../../.ssh/authorized_keys", "outside"),
    "up in the middle": ("a/../../evil.png", "outside"),
    "up on Windows": ("..\\..\\evil.png", "outside"),
    "absolute": ("/tmp/evil.png", "outside"),
    "drive": ("C:evil.png", "outside"),
    "share": ("\\\\host\\share\\evil.png", "outside"),
    "link": (special("link.png", stat.S_IFLNK | 0o777), "special"),
    "device": (special("device.png", stat.S_IFCHR | 0o666), "special"),
    "pipe": (special("pipe.png", stat.S_IFIFO | 0o666), "special"),
    "archive": ("inner.zip", "nested"),
    "other archive": ("inner.tar.gz", "nested"),
    "program": ("run.sh", "left-out"),
    "python": ("conftest.py", "left-out"),
    "page": ("x.html", "left-out"),
    "reserved": ("CON.png", "name"),
    "reserved folder": ("aux/x.png", "name"),
    "stream": ("a.png:x.png", "name"),
    "trailing dot": ("folder./x.png", "name"),
    "line": ("a\nb.png", "name"),
    "case": ("GOOD.PNG", "same-name"),
    "twin": ("cafe\u0301.png", "same-name"),
    "long": ("x" * 300 + ".png", "name"),
    "file for a folder": ("good.png/x.png", "name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_members_are_left_out_and_told(case: str, tmp_path: Path) -> None:
    name, code = BAD[case]
    archive = pack(tmp_path / "a.zip", ("good.png", png()), ("caf\xe9.png", png()), (name, b"evil"))
    home = tmp_path / "deep" / "er"
    problems = unpack(archive, home / "out")
    assert [problem.code for problem in problems] == [code]
    assert "\n" not in problems[0].sentence
    assert problems[0].rejected
    assert files(home) == ["out/caf\xe9.png", "out/good.png"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.zip", "deep"]
    assert not any(f.is_symlink() for f in home.rglob("*"))


def test_the_same_name_twice_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive = pack(tmp_path / "a.zip", ("a.png", b"first"), ("a.png", b"second"))
    assert [problem.code for problem in unpack(archive, tmp_path / "out")] == ["same-name"]
    assert (tmp_path / "out" / "a.png").read_bytes() == b"first"


def test_a_bomb_is_left_out(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("good.png", png()), ("bomb.png", bytes(30_000_000)))
    assert [problem.code for problem in unpack(archive, tmp_path / "out")] == ["bomb"]
    assert files(tmp_path / "out") == ["good.png"]


def test_sizes_that_lie_do_not_write_more(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("good.png", png()), ("liar.png", b"x" * 100_000))
    data = archive.read_bytes().replace((100_000).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    archive.write_bytes(data)
    assert [problem.code for problem in unpack(archive, tmp_path / "out")] == ["unreadable"]
    assert files(tmp_path / "out") == ["good.png"]


def test_too_many_bytes_are_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tmp_path / "a.zip", ("a.png", png()), ("b.png", png()))
    with pytest.raises(RequestError, match="would need"):
        unpack(archive, tmp_path / "out", max_bytes=2 * len(png()) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(RequestError, match="would need"):
        unpack(archive, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["a.zip"]


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    archive = pack(tmp_path / "a.zip", *((f"{i}.png", b"") for i in range(3)))
    assert unpack(archive, tmp_path / "three") == ()
    pack(archive, *((f"{i}.png", b"") for i in range(4)))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(RequestError, match="more than 3 files"):
        unpack(archive, tmp_path / "out")


def test_a_large_archive_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    archive = pack(tmp_path / "a.zip", *((f"{i}.png", b"") for i in range(5)))
    assert b"PK\x06\x06" in archive.read_bytes()
    assert unpack(archive, tmp_path / "five") == ()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 4)
    with pytest.raises(RequestError, match="more than 4 files"):
        unpack(archive, tmp_path / "out")


def _encrypted(data: bytes) -> bytes:
    at = data.index(b"PK\x01\x02") + 8
    return data[:at] + b"\x01" + data[at + 1 :]


def _other_packing(data: bytes) -> bytes:
    at = data.index(b"PK\x01\x02") + 10
    return data[:at] + b"\x63" + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "code"), [(_encrypted, "encrypted"), (_other_packing, "unreadable")]
)
def test_members_that_cannot_be_unpacked_are_told(
    change: Callable[[bytes], bytes], code: str, tmp_path: Path
) -> None:
    archive = pack(tmp_path / "a.zip", ("a.png", png()), ("b.png", png()))
    archive.write_bytes(change(archive.read_bytes()))
    assert [problem.code for problem in unpack(archive, tmp_path / "out")] == [code]
    assert files(tmp_path / "out") == ["b.png"]


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"x" * 100, b"PK\x05\x06", b"PK\x05\x06" + b"\xff" * 18]
)
def test_what_is_no_archive_is_a_sentence(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(RequestError, match=r"a\.zip"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(RequestError, match="cannot be read"):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    pack(tmp_path / "a.zip")
    with pytest.raises(RequestError, match="no picture"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["a.zip"]


def test_the_folder_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tmp_path / "a.zip", ("a.png", png()), ("b.png", png()))
    stops = iter([False, True])
    unpack(archive, tmp_path / "out", should_stop=lambda: next(stops))
    assert [f.name for f in tmp_path.iterdir()] == ["a.zip"]
    monkeypatch.setattr(archives, "_CHUNK", 1)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", _full)
    with pytest.raises(SaveError, match="No space left"):
        unpack(archive, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["a.zip"]
    (tmp_path / "out").mkdir()
    with pytest.raises(RequestError, match="there already"):
        unpack(archive, tmp_path / "out")


def _full(*_: object) -> bytes:
    raise OSError(28, "No space left on device")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damage_is_unpacked_or_told(tmp_path: Path, at: int, noise: bytes) -> None:
    home = tmp_path / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    archive = pack(home / "a.zip", ("a.png", png()), ("s/b.txt", b"a text\n" * 20))
    data = archive.read_bytes()
    archive.write_bytes(data[:at] + noise + data[at + len(noise) :])
    try:
        unpack(archive, home / "out")
    except (RequestError, SaveError) as error:
        assert "\n" not in str(error)
    assert {f.name for f in home.iterdir()} <= {"a.zip", "out"}
    assert [f.name for f in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("harm", ["bit", "cut", "lost"])
def test_what_was_unpacked_and_is_damaged_since_is_unpacked_again(
    tmp_path: Path, harm: str
) -> None:
    archive = pack(tmp_path / "a.zip", ("a.png", png()), ("b.txt", b"a red square"))
    into, _ = archives.kept(archive, tmp_path / "cache")
    before = (into / "a.png").stat()
    again, _ = archives.kept(archive, tmp_path / "cache")
    assert (again / "a.png").stat().st_mtime_ns == before.st_mtime_ns, "not unpacked twice"
    data = bytearray(png())
    data[-20] ^= 1
    if harm == "lost":
        (into / "a.png").unlink()
    else:
        (into / "a.png").write_bytes(data if harm == "bit" else data[:-20])
    again, problems = archives.kept(archive, tmp_path / "cache")
    assert (again, problems) == (into, ())
    assert (into / "a.png").read_bytes() == png()


def test_a_member_that_was_left_out_is_not_looked_for_for_ever(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a.png", png()), ("b.txt", b"a red square" * 50))
    data = archive.read_bytes()
    place = data.index(b"b.txt") + len("b.txt") + 4
    archive.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    into, problems = archives.kept(archive, tmp_path / "cache")
    assert [problem.code for problem in problems] == ["unreadable"]
    time = into.stat().st_mtime_ns
    assert archives.kept(archive, tmp_path / "cache") == (into, ())
    assert into.stat().st_mtime_ns == time
