"""What the check of the pictures finds, and that it leaves them as they are."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import pictures
from pipelines.errors import RequestError
from training.data import lint, manifest, readers
from training.data.likeness import Likenesses, fingerprint
from training.data.lint import MEANINGS, PictureRules, as_text, scan, table
from training.data.manifest import Manifest, Problem

EASY = PictureRules(min_side=8)


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def smooth(seed: int) -> Image.Image:
    return noise(seed, 9, 8).resize((90, 80), Image.Resampling.NEAREST)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def codes(found: Manifest) -> dict[str, list[tuple[str, bool]]]:
    named: dict[str, list[tuple[str, bool]]] = {}
    for problem in found.problems:
        assert "\n" not in problem.sentence
        assert problem.code in MEANINGS
        named.setdefault(problem.path, []).append((problem.code, problem.rejected))
    return named


def names(found: Manifest) -> list[str]:
    return [sample.path for sample in found.samples]


def with_alpha(picture: Image.Image) -> Image.Image:
    picture.putalpha(100)
    return picture


def film(kind: str) -> bytes:
    frames = [noise(90), noise(91)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a secret place"
    return encoded(noise(1, 40, 20), "JPEG", exif=exif)


def deep_colour() -> bytes:
    """A PNG of 16 bits per channel in colour, which Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = b"".join(b"\0" + random.Random(row).randbytes(16 * 6) for row in range(16))
    head = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_good_picture_is_a_sample(tmp_path: Path) -> None:
    data = encoded(noise(1))
    put(tmp_path / "in/a.png", data)
    put(tmp_path / "in/a.txt", b"a\0 cat\nof noise")
    found = scan(tmp_path, PictureRules(min_side=20, captions_required=True))
    (sample,) = found.samples
    assert sample.id == hashlib.sha256(data).hexdigest()[:16]
    assert (sample.path, sample.width, sample.height) == ("in/a.png", 24, 20)
    assert sample.captions == ("a cat", "of noise")
    assert sample.notes == ("control-characters",)
    assert found.problems == ()
    assert found.root == tmp_path.resolve()
    assert found.complete


HANDLED = {
    "rotated": rotated,
    "cmyk": lambda: encoded(noise(2).convert("CMYK"), "JPEG"),
    "alpha": lambda: encoded(with_alpha(noise(3))),
    "16-bit": lambda: encoded(
        Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 99)
    ),
    "16-bit in colour": deep_colour,
}


@pytest.mark.parametrize("case", HANDLED)
def test_oddities_are_handled_and_noted(case: str, tmp_path: Path) -> None:
    put(tmp_path / "cat/a.png", HANDLED[case]())
    found = scan(tmp_path, EASY)
    (sample,) = found.samples
    assert sample.notes == (case.split()[0],)
    assert sample.label == "cat"
    assert found.problems == ()
    if case == "rotated":
        assert (sample.width, sample.height) == (20, 40)
    (line,) = table(found)
    assert (line.code, line.count, line.action) == (case.split()[0], 1, "handled")


REJECTED = {
    "empty": b"",
    "unreadable": b"<html>",
    "unreadable, but a start": b"\x89PNG\r\n\x1a\n" + b"IEND",
    "truncated": encoded(noise(1))[:600],
    "truncated JPEG": encoded(noise(1), "JPEG")[:600],
    "truncated WebP": encoded(noise(1), "WEBP")[:100],
    "unsupported": encoded(noise(1), "GIF"),
    "unsupported TIFF": encoded(noise(1), "TIFF"),
    "unsupported BMP": encoded(noise(1), "BMP"),
    "unsupported drawing": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "unsupported film": b"\0\0\0\x18ftypheic" + bytes(20),
    "too-small": encoded(noise(1, 7, 20)),
    "extreme-ratio": encoded(noise(1, 8, 400)),
}


@pytest.mark.parametrize("case", REJECTED)
def test_bad_pictures_are_rejected_and_the_others_are_used(case: str, tmp_path: Path) -> None:
    put(tmp_path / "d/bad.png", REJECTED[case])
    put(tmp_path / "d/good.png", encoded(noise(7)))
    found = scan(tmp_path, EASY)
    code = case.replace(",", " ").split()[0]
    assert codes(found) == {"d/bad.png": [(code, True)]}
    assert names(found) == ["d/good.png"]
    assert (tmp_path / "d/bad.png").read_bytes() == REJECTED[case]


def test_limits_of_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "d/a.png", encoded(noise(1, 40, 40)))
    put(tmp_path / "d/b.png", encoded(noise(1, 10, 10)))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1599)
    assert codes(scan(tmp_path, EASY)) == {"d/a.png": [("too-many-pixels", True)]}
    monkeypatch.setattr(lint, "MAX_BYTES", 1000)
    assert codes(scan(tmp_path, EASY)) == {"d/a.png": [("too-large", True)]}
    assert PictureRules().max_ratio == 4.0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_a_film_the_first_frame_is_used(kind: str, tmp_path: Path) -> None:
    put(tmp_path / "d/film.png", film(kind))
    put(tmp_path / "d/frame.png", encoded(noise(90)))
    found = scan(tmp_path, EASY)
    assert codes(found)["d/film.png"] == [("animated", False)]
    # Its pixels are those of the first frame, so the second file is a duplicate.
    assert codes(found)["d/frame.png"] == [("duplicate", True)]
    assert found.samples[0].notes == ()


def test_a_photo_with_its_depth_map_is_no_film(tmp_path: Path) -> None:
    data = encoded(noise(1), "MPO", save_all=True, append_images=[noise(2)])
    put(tmp_path / "d/phone.jpg", data)
    found = scan(tmp_path, EASY)
    assert (names(found), found.samples[0].notes, codes(found)) == (["d/phone.jpg"], (), {})


def test_the_same_picture_is_used_once(tmp_path: Path) -> None:
    first = encoded(noise(1))
    put(tmp_path / "d/1.png", first)
    put(tmp_path / "d/2 same bytes.png", first)
    put(tmp_path / "d/3 same pixels.webp", encoded(noise(1), "WEBP", lossless=True))
    put(tmp_path / "d/4 other.png", encoded(noise(2)))
    found = scan(tmp_path, EASY)
    assert names(found) == ["d/1.png", "d/4 other.png"]
    assert [problem.code for problem in found.problems] == ["duplicate"] * 2
    assert all("d/1.png" in problem.sentence for problem in found.problems)


def test_a_rejected_picture_does_not_reject_its_copy(tmp_path: Path) -> None:
    put(tmp_path / "a.png", encoded(noise(1)))
    put(tmp_path / "b.png", encoded(noise(1)))
    put(tmp_path / "b.txt", b"only the second has a caption")
    found = scan(tmp_path, PictureRules(min_side=8, captions_required=True))
    assert names(found) == ["b.png"]
    assert codes(found) == {"a.png": [("no-caption", True)]}


def test_near_duplicates_are_told_and_used(tmp_path: Path) -> None:
    put(tmp_path / "d/1.png", encoded(smooth(1)))
    put(tmp_path / "d/2.jpg", encoded(smooth(1), "JPEG", quality=90))
    put(tmp_path / "d/3.png", encoded(smooth(1).resize((180, 160))))
    put(tmp_path / "d/4.png", encoded(smooth(2)))
    # Of flat pictures a fingerprint tells nothing.
    put(tmp_path / "d/5.png", encoded(Image.new("RGB", (30, 30), "red")))
    put(tmp_path / "d/6.png", encoded(Image.new("RGB", (40, 30), "blue")))
    found = scan(tmp_path, EASY)
    assert len(found.samples) == 6
    assert codes(found) == {
        "d/2.jpg": [("near-duplicate", False)],
        "d/3.png": [("near-duplicate", False)],
    }
    assert "d/1.png" in found.problems[0].sentence
    assert scan(tmp_path, PictureRules(min_side=8, near_duplicates=False)).problems == ()


def test_captions(tmp_path: Path) -> None:
    for number, name in enumerate(["a", "b", "c", "d"]):
        put(tmp_path / f"{name}.png", encoded(noise(number)))
    put(tmp_path / "a.txt", b"one two three\nsix words are more than four")
    put(tmp_path / "b.txt", b"caf\xe9")
    put(tmp_path / "c.txt", b"x" * 1_000_001)
    rules = PictureRules(min_side=8, token_limit=4, count_tokens=lambda text: len(text.split()))
    found = scan(tmp_path, rules)
    assert len(found.samples) == 4
    assert codes(found) == {
        "a.png": [("long-caption", False)],
        "b.png": [("encoding", False), ("no-caption", False)],
        "c.png": [("caption-too-large", False), ("no-caption", False)],
        "d.png": [("no-caption", False)],
    }
    assert "6 tokens, of which the model reads 4" in found.problems[0].sentence
    found = scan(tmp_path, PictureRules(min_side=8, captions_required=True))
    assert names(found) == ["a.png"]
    assert codes(found)["d.png"] == [("no-caption", True)]


def test_a_label_is_no_caption_where_captions_are_required(tmp_path: Path) -> None:
    put(tmp_path / "cat/a.png", encoded(noise(1)))
    assert scan(tmp_path, EASY).problems == ()
    found = scan(tmp_path, PictureRules(min_side=8, captions_required=True))
    assert codes(found) == {"cat/a.png": [("no-caption", True)]}


def test_an_empty_folder_is_a_sentence_and_one_picture_is_enough(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no picture"):
        scan(tmp_path, EASY)
    put(tmp_path / "only.gif", b"GIF89a")
    found = scan(tmp_path, EASY)
    assert (names(found), codes(found)) == ([], {"only.gif": [("unsupported", True)]})
    put(tmp_path / "d/a.png", encoded(noise(1)))
    assert names(scan(tmp_path, EASY)) == ["d/a.png"]


def test_a_picture_that_goes_away_or_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        put(tmp_path / f"d/{name}.png", encoded(noise(ord(name))))
    put(tmp_path / "secret.jpg", encoded(noise(5)))
    source = readers.find(tmp_path / "d")
    (tmp_path / "d/a.png").unlink()
    (tmp_path / "d/b.png").unlink()
    (tmp_path / "d/b.png").symlink_to("../secret.jpg")

    def refuse(file: Path, mode: str) -> io.BufferedReader:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(lint, "open", refuse, raising=False)
    found = scan(source, EASY)
    assert [(p.path, p.code) for p in found.problems] == [
        ("a.png", "missing"),
        ("b.png", "missing"),
        ("c.png", "unreadable"),
    ]


def test_strange_names(tmp_path: Path) -> None:
    strange = ['"><img src=x onerror=alert(1)>.png', "-rf.png", "$(id).png", "\u202egnp.exe.png"]
    strange += ["n" * 251 + ".png", "a\nb.png"]
    for number, name in enumerate(strange):
        put(tmp_path / name, encoded(noise(number)))
    found = scan(tmp_path, EASY)
    assert sorted(names(found)) == sorted(strange)
    found.write(tmp_path / "out.jsonl")
    assert manifest.read(tmp_path / "out.jsonl") == found
    for line in as_text(table(found)).splitlines():
        assert line.isprintable()


def test_thousands_of_pictures_are_never_all_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2000
    for number in range(count):
        put(tmp_path / f"d{number % 7}/{number:04}.png", encoded(noise(number, 16, 16)))
    lock = threading.Lock()
    ahead = most = 0
    look = lint._look

    def counted(*arguments: object) -> object:
        nonlocal ahead, most
        with lock:
            ahead += 1
            most = max(most, ahead)
        return look(*arguments)  # type: ignore[arg-type]

    def report(done: int, total: int) -> None:
        nonlocal ahead
        assert total == count
        reported.append(done)
        with lock:
            ahead -= done > 0

    reported: list[int] = []
    monkeypatch.setattr(lint, "_look", counted)
    tracemalloc.start()
    found = scan(tmp_path, EASY, report)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.samples) == count
    assert names(found) == sorted(names(found))
    assert reported == list(range(count + 1))
    assert most <= lint._WAITING + 1
    # About 3 kB for each picture is kept: its sample and where its fingerprint is filed.
    assert peak < count * 6000


def test_two_checks_find_the_same(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / f"d/{number}.png", encoded(noise(number % 30)))
    assert scan(tmp_path, EASY) == scan(tmp_path, EASY)


def test_a_stopped_check_says_so(tmp_path: Path) -> None:
    for number in range(100):
        put(tmp_path / f"d/{number:03}.png", encoded(noise(number)))
    seen: list[int] = []
    threads = threading.active_count()
    found = scan(
        tmp_path, EASY, lambda done, _: seen.append(done), should_stop=lambda: len(seen) > 9
    )
    assert not found.complete
    assert [p.code for p in found.problems] == ["stopped"]
    assert "after 9 of 100" in found.problems[0].sentence
    assert len(found.samples) == 9
    assert threading.active_count() == threads
    late = scan(tmp_path, EASY, should_stop=lambda: False)
    assert late.complete


def test_a_fault_of_the_caller_ends_the_threads(tmp_path: Path) -> None:
    for number in range(60):
        put(tmp_path / f"d/{number}.png", encoded(noise(number)))
    threads = threading.active_count()

    def report(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    filters = list(warnings.filters)
    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path, EASY, report)
    assert threading.active_count() == threads
    assert warnings.filters == filters


def test_the_table_is_ordered_by_gravity(tmp_path: Path) -> None:
    put(tmp_path / "d/1.png", b"")
    put(tmp_path / "d/2\x1b[31m.png", b"")
    put(tmp_path / "d/3.png", encoded(with_alpha(noise(1))))
    put(tmp_path / "d/4.png", film("PNG"))
    put(tmp_path / "d/5.gif", b"")
    lines = table(scan(tmp_path, EASY))
    assert [(x.code, x.count, x.action) for x in lines] == [
        ("empty", 2, "rejected"),
        ("unsupported", 1, "rejected"),
        ("animated", 1, "warning"),
        ("alpha", 1, "handled"),
    ]
    text = as_text(lines)
    assert len(text.splitlines()) == 5
    assert "\x1b" not in text
    assert "rejected" in text.splitlines()[1]
    assert as_text([]) == ""
    unknown = Problem(path="x", code="new", sentence="", rejected=True)
    assert table(Manifest(root=tmp_path, samples=(), problems=(unknown,)))[0].meaning == "new"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(0, 3000), st.binary(max_size=4))
def test_damaged_pictures_are_used_or_told(
    tmp_path: Path, kind: str, at: int, wrong: bytes
) -> None:
    data = encoded(noise(3), kind)
    at %= len(data)
    data = data[:at] + (wrong + data[at + len(wrong) :] if wrong else b"")
    put(tmp_path / "d/a.png", data)
    found = scan(tmp_path, EASY)
    assert len(found.samples) == 1 or any(problem.rejected for problem in found.problems)
    assert all("\n" not in problem.sentence for problem in found.problems)


def brute(values: list[int]) -> list[int | None]:
    """For each value the first earlier one of the same fingerprint or within 2 bits."""
    found: list[int | None] = []
    for number, value in enumerate(values):
        earlier = [i for i in range(number) if (values[i] ^ value).bit_count() <= 2]
        same = [i for i in earlier if values[i] == value]
        found.append(min(same or earlier, default=None))
    return found


def search(values: list[int]) -> list[int | None]:
    seen, found = Likenesses(), []
    for number, value in enumerate(values):
        found.append(seen.find(value))
        seen.add(value, number)
    return found


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=4)), max_size=60),
)
def test_likenesses_are_found_as_by_comparing_all(
    origins: list[int], changes: list[tuple[int, set[int]]]
) -> None:
    values = [*origins]
    for which, bits in changes:
        values.append(origins[which % len(origins)] ^ sum(1 << bit for bit in bits))
    assert search(values) == brute(values)


def test_many_likenesses_in_one_place_are_found_too() -> None:
    # All in few bits, so that thousands share three of their four bands.
    values = random.Random(4).sample(range(1 << 16), 2500)
    assert search(values) == brute(values)


def test_the_fingerprint_follows_brightness_and_not_size() -> None:
    rising = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8) * 2, (80, 1))).convert("RGB")
    falling = rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert fingerprint(rising) == 0
    assert fingerprint(falling) == 2**64 - 1
    assert fingerprint(falling.resize((900, 800))) == 2**64 - 1
    assert fingerprint(Image.new("RGB", (9, 9), "red")) is None
