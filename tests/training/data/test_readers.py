"""Pictures and captions as they lie on people's disks, the hostile ones too."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import RequestError
from training.data import tables
from training.data.manifest import Problem
from training.data.readers import DataLayout, DataSource, find, read
from training.data.tables import CaptionError, TableLine, Written


def lay(root: Path, files: dict[str, str | bytes]) -> Path:
    """Makes `files` below `root`."""
    for name, data in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def told(source: DataSource) -> dict[str, Written]:
    return {entry.path: read(source.root, entry) for entry in source.entries}


def captions(source: DataSource) -> dict[str, tuple[str, ...]]:
    return {path: written.captions for path, written in told(source).items()}


def codes(source: DataSource) -> list[tuple[str, str]]:
    return [(problem.path, problem.code) for problem in source.problems]


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_captions_beside_pictures_in_any_depth(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "b.PNG": b"",
            "b.txt": "a boat\r\n\n  two boats \na boat\n",
            "a/x.jpg": b"",
            "a/x.json": json.dumps({"prompt": "an axe", "captions": ["one axe", "an axe"]}),
            "a/y.webp": b"",
            "a/y.txt": "from text",
            "a/y.json": '{"caption": "from json"}',
            "a/deep/er/z.jpeg": b"",
            "kohya.png": b"",
            "kohya.caption": "of kohya",
            "word.png": b"",
            "word.json": '"only a text"',
            ".hidden/h.png": b"",
            "._b.png": b"",
            "notes.md": "",
        },
    )
    source = find(root)
    assert source.layout is DataLayout.FOLDER
    assert captions(source) == {
        "a/deep/er/z.jpeg": (),
        "a/x.jpg": ("an axe", "one axe"),
        "a/y.webp": ("from text",),
        "b.PNG": ("a boat", "two boats"),
        "kohya.png": ("of kohya",),
        "word.png": ("only a text",),
    }
    assert list(told(source)) == sorted(told(source))
    assert source.problems == ()


@pytest.mark.parametrize("table", ["metadata.jsonl", "captions.jsonl"])
def test_a_table_of_lines(table: str, tmp_path: Path) -> None:
    rows = lines(
        {"file_name": "a.png", "text": "first", "label": 3},
        {"file_name": "./a.png", "captions": ["second", "first"]},
        {"file_name": "sub\\b.png", "caption": "windows"},
        {"file_name": str(tmp_path / "c.png"), "text": "absolute but inside"},
    )
    files: dict[str, str | bytes] = {f"{n}.png": b"" for n in ("a", "sub/b", "c", "d", "e")}
    root = lay(tmp_path, {**files, table: "\ufeff" + rows, "d.txt": "beside"})
    source = find(root)
    assert source.layout is DataLayout.TABLE
    assert captions(source) == {
        "a.png": ("first", "second"),
        "c.png": ("absolute but inside",),
        "d.png": ("beside",),
        "e.png": (),
        "sub/b.png": ("windows",),
    }
    assert told(source)["a.png"].label == "3"
    assert source.problems == ()


def test_a_table_names_pictures_beside_it(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "train/metadata.jsonl": lines({"file_name": "a.png", "text": "train"}),
            "test/metadata.csv": 'File_Name,text,label\n"a.png","x, ""y""\nz",cat\n',
            "train/a.png": b"",
            "test/a.png": b"",
        },
    )
    assert captions(find(root)) == {"test/a.png": ('x, "y"\nz',), "train/a.png": ("train",)}
    assert told(find(root))["test/a.png"].label == "cat"


BROKEN_LINES = {
    '{"file_name": "a.png", "text": "torn': "broken",
    "[1, 2]": "broken",
    '"a.png"': "broken",
    '{"text": "of nothing"}': "broken",
    '{"file_name": 5, "text": "x"}': "broken",
    '{"file_name": "a.png", "text": ["x", 5]}': "broken",
    '{"file_name": "a.png", "text": {"x": 1}}': "broken",
    '{"file_name": "a.png", "label": [1]}': "broken",
    "[" * 100_000: "broken",
    '{"file_name": "a.png", "label": ' + "9" * 5000 + "}": "broken",
    json.dumps({"file_name": "a.png", "text": "x" * 1_500_000}): "caption-too-large",
    json.dumps({"file_name": "a.png", "text": "x" * 2_500_000}): "caption-too-large",
    json.dumps({"file_name": "../a.png", "text": "x"}): "outside",
    json.dumps({"file_name": "/etc/passwd", "text": "x"}): "outside",
    json.dumps({"file_name": "C:\\a.png", "text": "x"}): "outside",
    json.dumps({"file_name": "none.png", "text": "x"}): "missing",
    json.dumps({"file_name": "a\0.png", "text": "x"}): "outside",
    json.dumps({"file_name": "n" * 5000, "text": "x"}): "missing",
    '{"file_name": "\\ud800.png", "text": "x"}': "missing",
}


@pytest.mark.parametrize("line", BROKEN_LINES, ids=range(len(BROKEN_LINES)))
def test_a_broken_line_is_told_by_its_number_and_the_others_are_used(
    line: str, tmp_path: Path
) -> None:
    good = lines({"file_name": "a.png", "text": "good"})
    last = json.dumps({"file_name": "b.png", "text": "last"})
    table = f"{good}\n{line}\n{last}"
    root = lay(tmp_path / "root", {"a.png": b"", "b.png": b"", "metadata.jsonl": table})
    source = find(root)
    assert codes(source) == [("metadata.jsonl", BROKEN_LINES[line])]
    assert "ine 3" in source.problems[0].sentence
    assert len(source.problems[0].sentence) < 300
    assert captions(source) == {"a.png": ("good",), "b.png": ("last",)}


def test_a_line_that_is_no_text_is_told(tmp_path: Path) -> None:
    good = lines({"file_name": "a.png", "text": "good"}).encode()
    root = lay(tmp_path, {"a.png": b"", "metadata.jsonl": b'{"text": "\xe9"}\n' + good})
    assert codes(find(root)) == [("metadata.jsonl", "encoding")]
    assert captions(find(root)) == {"a.png": ("good",)}
    lay(tmp_path, {"metadata.jsonl": ("\ufeff" + good.decode()).encode("utf-16-le")})
    assert captions(find(root)) == {"a.png": ("good",)}


def test_a_broken_csv_is_told(tmp_path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([["file_name", "text"], ["a.png", "=cmd()"], ["a.png"], ["b.png", "\0b"]])
    root = lay(tmp_path, {"a.png": b"", "b.png": b"", "metadata.csv": buffer.getvalue()})
    source = find(root)
    assert codes(source) == [("metadata.csv", "broken")]
    assert "Line 3" in source.problems[0].sentence
    assert captions(source) == {"a.png": ("=cmd()",), "b.png": ("b",)}
    lay(tmp_path, {"metadata.csv": 'file_name,text\na.png,x\nb.png,"' + "y\n" * 70_000})
    assert captions(find(root)) == {"a.png": ("x",), "b.png": ()}
    assert codes(find(root))[0] == ("metadata.csv", "broken")


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = lay(tmp_path, {"cat/a.png": b"", "cat/b.png": b"", "train/dog/a.png": b""})
    source = find(root)
    assert source.layout is DataLayout.CLASSES
    labels = {path: written.label for path, written in told(source).items()}
    assert labels == {"cat/a.png": "cat", "cat/b.png": "cat", "train/dog/a.png": "dog"}
    lay(tmp_path, {"loose.png": b""})
    assert find(root).layout is DataLayout.FOLDER
    assert find(root, DataLayout.CLASSES).layout is DataLayout.CLASSES


LISTED = [{"file_name": "a.png", "text": "x"}, {"file": "s/b.png", "text": "y"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.jsonl", lines({"image": "a.png", "text": "x"}, {"path": "s/b.png", "prompt": "y"})),
        ("list.json", json.dumps(LISTED)),
        ("list.json", json.dumps({"images": LISTED})),
        ("list.json", json.dumps({"a.png": "x", "s/b.png": {"caption": "y"}})),
        ("list.csv", "file_name,text\na.png,x\ns/b.png,y\n"),
    ],
)
def test_a_list_is_a_source_of_its_own(name: str, text: str, tmp_path: Path) -> None:
    root = lay(tmp_path, {"a.png": b"", "s/b.png": b"", "not listed.png": b"", name: text})
    source = find(root / name)
    assert source.layout is DataLayout.LIST
    assert source.root == root.resolve()
    assert captions(source) == {"a.png": ("x",), "s/b.png": ("y",)}


@pytest.mark.parametrize("text", ["", "5", "{", "[" * 100_000, b"\xff\xfe\xff", b"\xe9"])
def test_a_list_that_is_none_is_a_sentence(text: str | bytes, tmp_path: Path) -> None:
    root = lay(tmp_path, {"list.json": text})
    with pytest.raises(RequestError, match=r"list\.json") as caught:
        find(root / "list.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "images"),
    [
        ("InternData/partition/data_info.json", "InternData/InternImgs"),
        ("InternData/partition_filter/part0.json", "InternData/InternImgs"),
        ("partition/data_info.json", "InternImgs"),
        ("InternData/data_info.json", "InternImgs"),
    ],
)
def test_intern_data(listed: str, images: str, tmp_path: Path) -> None:
    entry = {"path": "d/0.png", "prompt": "short", "height": 4, "width": 2, "ratio": 2.0}
    second = {**entry, "path": "1.png", "sharegpt4v": "a long one"}
    outside = {**entry, "path": "../../../x.png"}
    root = lay(
        tmp_path,
        {
            listed: json.dumps([entry, second, outside]),
            f"{images}/d/0.png": b"",
            f"{images}/1.png": b"",
            f"{images}/unlisted.png": b"",
        },
    )
    source = find(root)
    assert source.layout is DataLayout.INTERN
    assert captions(source) == {
        f"{images}/1.png": ("short", "a long one"),
        f"{images}/d/0.png": ("short",),
    }
    assert codes(source) == [(listed, "outside")]


@pytest.mark.parametrize("base", ["", "SA1B/"])
def test_sam(base: str, tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            f"{base}images/sa_1.jpg": b"",
            f"{base}images/sa_2.jpg": b"",
            f"{base}images/sa_3.jpg": b"",
            f"{base}captions/sa_1.txt": "one",
            f"{base}captions/sa_2.txt": "two",
        },
    )
    assert find(root).layout is DataLayout.SAM
    one, two, three = (f"{base}images/sa_{i}.jpg" for i in (1, 2, 3))
    assert captions(find(root)) == {one: ("one",), two: ("two",), three: ()}
    lay(
        root,
        {f"{base}partition/part0.txt": "sa_1\n\nsa_9\n", f"{base}partition/part1.txt": "sa_3.jpg"},
    )
    assert captions(find(root)) == {one: ("one",), three: ()}
    assert codes(find(root)) == [("sa_9", "missing")]


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"secret/a.png": b"", "secret/a.txt": "a secret"})
    root = lay(tmp_path / "root", {"b.png": b"", "b/c.png": b""})
    (root / "a.png").symlink_to(tmp_path / "secret/a.png")
    (root / "b.txt").symlink_to(tmp_path / "secret/a.txt")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "again").symlink_to(root / "b")
    (root / "inside.png").symlink_to("b.png")
    (root / "gone.png").symlink_to("nothing.png")
    (root / "README").symlink_to("/etc/passwd")
    source = find(root)
    assert list(told(source)) == ["b.png", "b/c.png", "inside.png"]
    assert sorted(codes(source)) == [
        ("a.png", "outside"),
        ("b.txt", "outside"),
        ("folder", "outside"),
        ("gone.png", "missing"),
    ]
    assert all(written.captions == () for written in told(source).values())


def test_a_caption_file_that_becomes_a_link_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"secret.txt": "a secret"})
    root = lay(tmp_path / "root", {"b.png": b"", "b.txt": "b"})
    source = find(root)
    (root / "b.txt").unlink()
    (root / "b.txt").symlink_to("../secret.txt")
    with pytest.raises(CaptionError, match="outside") as caught:
        read(source.root, source.entries[0])
    assert caught.value.code == "outside"


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    lay(tmp_path, {"a.gif": b"", "b.SVG": b"", "c.tiff": b"", "d.png": b""})
    source = find(tmp_path)
    assert sorted(codes(source)) == [
        ("a.gif", "unsupported"),
        ("b.SVG", "unsupported"),
        ("c.tiff", "unsupported"),
        ("pipe.png", "unreadable"),
    ]
    assert list(told(source)) == ["d.png"]


STRANGE = [
    '"><img src=x onerror=alert(1)>.png',
    "-rf.png",
    "$(id).png",
    "\u202egnp.exe.png",
    "é" * 125 + "a.png",
    "new\nline.png",
    "cafe\u0301.png",
    "CON.png",
    "trailing .png",
    "🐈.png",
]


def test_strange_names_are_names(tmp_path: Path) -> None:
    assert len(STRANGE[4].encode()) == 255
    root = lay(tmp_path, {name: b"" for name in STRANGE} | {"$(id).txt": "a cat"})
    assert list(told(find(root))) == sorted(STRANGE)
    assert captions(find(root))["$(id).png"] == ("a cat",)


def test_names_that_are_unsafe_elsewhere_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"up\\..\\..\\x.png": b"", "C:evil.png": b"", "good.png": b""})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"")
    source = find(tmp_path)
    assert list(told(source)) == ["good.png"]
    assert [code for _, code in codes(source)] == ["name"] * 3
    json.dumps([codes(source)], ensure_ascii=False).encode()


def test_folders_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay(tmp_path, {"a.png": b"", "closed/b.png": b""}).resolve()
    scan = os.scandir

    def refuse(folder: Path, closed: str) -> object:
        if str(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr("os.scandir", lambda folder: refuse(folder, f"{root}/closed"))
    assert codes(find(root)) == [("closed", "unreadable")]
    assert list(told(find(root))) == ["a.png"]
    monkeypatch.setattr("os.scandir", lambda folder: refuse(folder, str(root)))
    with pytest.raises(RequestError, match="cannot be read"):
        find(root)


def test_nothing_to_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no picture in"):
        find(tmp_path)
    lay(tmp_path, {"a.zip": b"", "b.png": b"", "notes.md": ""})
    for name in ("none", "b.png", "a\0b", "notes.md"):
        with pytest.raises(RequestError, match="neither a folder nor a list"):
            find(tmp_path / name)
    with pytest.raises(RequestError, match="Unpack the archive first"):
        find(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\xef\xbb\xbfwith a mark", ("with a mark",)),
        ("\ufeffwide é".encode("utf-16-le"), ("wide é",)),
        ("\ufeffwide é".encode("utf-16-be"), ("wide é",)),
        (b"old\rlines\r\nof text", ("old", "lines", "of text")),
        ("one\u2028line\x85".encode(), ("one\u2028line",)),
        (b"<script>alert(1)</script> & <b>", ("<script>alert(1)</script> & <b>",)),
        (b" \n\t\n", ()),
        (b"", ()),
    ],
)
def test_texts(data: bytes, found: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert tables.from_file(tmp_path / "a.txt").captions == found


def test_control_characters_are_left_out_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\0 c\x1bat\t!")
    assert tables.from_file(tmp_path / "a.txt") == Written(
        captions=("a cat\t!",), notes=("control-characters",)
    )
    assert tables.from_value({"text": "x\ud800y"}).captions == ("xy",)


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.txt", b"x" * 1_000_001, "caption-too-large"),
        ("a.txt", b"".join(b"%d\n" % i for i in range(2000)), "caption-too-large"),
        ("a.txt", "café".encode("latin-1"), "encoding"),
        ("a.txt", b"\xff\xfea", "encoding"),
        ("a.json", b"{", "broken"),
        ("a.json", b"[" * 100_000, "broken"),
        ("a.json", b"[]", "broken"),
        ("a.json", b'{"caption": 5}', "broken"),
    ],
)
def test_captions_that_cannot_be_used(name: str, data: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CaptionError) as caught:
        tables.from_file(tmp_path / name)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.just("a.png") | st.integers(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["file_name", "text", "captions", "label", "images"]) | st.text(), inner
        )
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(ANYTHING, st.sampled_from(["t.json", "t.jsonl", "t.csv", "t.txt"]), st.binary(max_size=5))
def test_any_text_is_rows_or_told(tmp_path: Path, value: object, name: str, noise: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(noise + json.dumps(value).encode())
    try:
        if name == "t.txt":
            found: list[object] = list(tables.from_file(file).captions)
        else:
            found = list(tables.rows(file, name))
            assert all(isinstance(row, TableLine | Problem) for row in found)
    except (RequestError, CaptionError) as error:
        assert "\n" not in str(error)
