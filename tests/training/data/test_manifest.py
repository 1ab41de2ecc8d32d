"""The list of pictures: written and read back, and refused when it was tampered with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import RequestError, SaveError
from training.data import manifest
from training.data.manifest import Manifest, Problem, Sample

ONE = Sample(
    id="0123456789abcdef",
    path='in/"><img src=x onerror=alert(1)>.png',
    width=30,
    height=20,
    captions=("a cat\nwith a line", "\u2028 é 猫 <b>"),
    label="cat",
    notes=("16-bit", "control-characters"),
)
TWO = Sample(id="f" * 16, path="-rf.png", width=1, height=1)
BAD = Problem(path="..\\x.png", code="outside", sentence="It is outside.", rejected=True)


def made(tmp_path: Path) -> Manifest:
    return Manifest(root=tmp_path.resolve(), samples=(ONE, TWO), problems=(BAD,))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made(tmp_path).write(tmp_path / "m.jsonl")
    assert manifest.read(tmp_path / "m.jsonl") == made(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="cannot be written"):
        made(tmp_path).write(tmp_path / "none" / "m.jsonl")
    with pytest.raises(RequestError, match="cannot be read"):
        manifest.read(tmp_path / "none" / "m.jsonl")


def test_the_digest_follows_content_and_not_names_or_order(tmp_path: Path) -> None:
    first = made(tmp_path)
    moved = replace(ONE, path="elsewhere.png", notes=())
    assert Manifest(root=Path("/"), samples=(TWO, moved)).digest == first.digest
    for other in (
        replace(ONE, captions=("a dog",)),
        replace(ONE, captions=ONE.captions[::-1]),
        replace(ONE, label=None),
        replace(ONE, id="0" * 16),
    ):
        assert replace(first, samples=(other, TWO)).digest != first.digest
    assert replace(first, samples=(ONE,)).digest != first.digest


CHANGES = {
    "up": ("path", "../x.png"),
    "up, as Windows writes it": ("path", "a\\..\\..\\x.png"),
    "absolute": ("path", "/etc/passwd"),
    "drive": ("path", "C:x.png"),
    "NUL": ("path", "a\0.png"),
    "no path": ("path", ""),
    "number for a path": ("path", 5),
    "id": ("id", "../../../../etc/x"),
    "the other's id": ("id", "f" * 16),
    "the other's path": ("path", "-rf.png"),
    "no width": ("width", 0),
    "text for a width": ("width", "30"),
    "true for a width": ("width", True),
    "infinite": ("height", float("inf")),
    "text for captions": ("captions", "a cat"),
    "number in captions": ("captions", [5]),
    "label": ("label", 5),
    "notes": ("notes", ["<script>"]),
    "unknown": ("more", 1),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_tampered_manifest_is_refused(case: str, tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    made(tmp_path).write(file)
    lines = file.read_text().splitlines()
    key, value = CHANGES[case]
    lines[1] = json.dumps({**json.loads(lines[1]), key: value})
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(RequestError, match="no list of pictures") as caught:
        manifest.read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lines", [0, 1, 2, 3])
def test_a_manifest_without_its_end_is_refused(lines: int, tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    made(tmp_path).write(file)
    text = file.read_bytes()
    file.write_bytes(b"".join(text.splitlines(keepends=True)[:lines]))
    with pytest.raises(RequestError, match="no list of pictures"):
        manifest.read(file)
    file.write_bytes(text + text.splitlines(keepends=True)[-1])
    with pytest.raises(RequestError, match="more lines"):
        manifest.read(file)


@pytest.mark.parametrize(
    "header",
    [
        {"format": "pixart-studio manifest 2", "root": "/", "samples": 0, "problems": 0},
        {"format": manifest.FORMAT, "root": "relative", "samples": 0, "problems": 0},
        {"format": manifest.FORMAT, "root": "/", "samples": -1, "problems": 0},
    ],
)
def test_other_headers_are_refused(header: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps(header))
    with pytest.raises(RequestError, match="no list of pictures"):
        manifest.read(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, 700), st.binary(max_size=8))
def test_damage_is_read_or_told(tmp_path: Path, at: int, noise: bytes) -> None:
    file = tmp_path / "m.jsonl"
    made(tmp_path).write(file)
    data = file.read_bytes()
    file.write_bytes(data[:at] + noise + data[at + len(noise) :])
    try:
        read = manifest.read(file)
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        assert all(manifest.is_inside(sample.path) for sample in read.samples)


def test_a_sample_is_only_found_inside_the_folder(tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (root / "-rf.png").write_bytes(b"x")
    whole = Manifest(root=root, samples=(TWO,))
    assert whole.file(TWO) == root / "-rf.png"
    (root / "-rf.png").unlink()
    with pytest.raises(RequestError, match="not in"):
        whole.file(TWO)
    (root / "-rf.png").symlink_to("../secret.png")
    with pytest.raises(RequestError, match="not in"):
        whole.file(TWO)
    with pytest.raises(RequestError, match="not in"):
        whole.file(replace(TWO, path="../secret.png"))


def test_a_ring_of_links_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert manifest.refusal(tmp_path.resolve(), "a.png") == "missing"
