"""The folder of LoRAs: what is in it, what comes in, what goes, and what failures leave."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_manager import card, files
from lora_manager.errors import LoraError
from lora_manager.library import LoraLibrary
from tests.lora_manager import made


@pytest.fixture
def library(tmp_path: Path) -> LoraLibrary:
    return LoraLibrary(tmp_path / "loras")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return made.f6(made.reference(), folder)


def names(library: LoraLibrary) -> list[str]:
    return [one.name for one in library.cards()]


def left(library: LoraLibrary) -> list[str]:
    return sorted(file.name for file in library.root.iterdir()) if library.root.is_dir() else []


def test_an_empty_library_says_so(library: LoraLibrary) -> None:
    assert library.cards() == []
    assert library.problems() == []
    assert not library.root.exists()
    with pytest.raises(LoraError, match=r"no LoRA called “dog”\. There is no LoRA yet: import one"):
        library.find("dog")


@pytest.mark.parametrize("family", [*made.FAMILIES, "F4"])
def test_every_family_is_imported_into_one_layout(
    family: str, library: LoraLibrary, tmp_path: Path
) -> None:
    folder = tmp_path / "My first dog!"
    folder.mkdir()
    reference = made.reference()
    source = {**made.FAMILIES, "F4": made.f4}[family](reference, folder)
    found = library.import_(source)
    expected = source.stem if source.is_file() else "My-first-dog"
    assert found.name == (expected if source.stem != "pytorch_lora_weights" else "My-first-dog")
    assert left(library) == [f"{found.name}.safetensors"]
    assert (found.rank, found.modules, found.width) == (4, 27, 48)
    keys = set(load_file(found.file))
    assert keys == {f"transformer.{p}.lora_{half}.weight" for p in reference for half in "AB"}
    again = files.read(found.file)
    assert again.notes == ()
    alpha = 8 if family == "F4" else made.ALPHA
    for path, one in reference.items():
        # Rounded to float16.
        wanted = one.change(alpha)
        error = (again.pairs[path].change().double() - wanted).norm() / wanted.norm()
        assert error < 1e-3
    # What was guessed or left out stays known.
    guessed = {"F4": "taken as 8", "F5": "changes the text encoder"}.get(family)
    assert bool(found.notes) == (guessed is not None)
    assert guessed is None or guessed in found.notes[0]
    assert found.base == ("PixArt-alpha/x" if family.startswith("F3") else "")


def test_what_a_source_says_about_itself_is_kept(library: LoraLibrary, source: Path) -> None:
    metadata = {
        "modelspec.title": "Dog\nof\x07 mine",
        "modelspec.trigger_phrase": "sks dog",
        "modelspec.license": "MIT",
        "modelspec.architecture": "pixart",
        "ss_tag_frequency": "{}" * 1000,
    }
    save_file(load_file(source), source, metadata)
    found = library.import_(source, "dog")
    assert (found.title, found.trigger) == ("Dog of mine", "sks dog")
    assert (found.licence, found.base) == ("MIT", "pixart")
    found = library.import_(
        source, "ink", title="Ink", trigger="in ink", licence="CC0", base="alpha-512"
    )
    assert (found.title, found.trigger) == ("Ink", "in ink")
    assert (found.licence, found.base) == ("CC0", "alpha-512")
    header = found.file.read_bytes()[8:3000]
    assert b"ss_tag_frequency" not in header
    # And again, from our own file.
    copied = library.import_(found.file, "copy")
    assert (copied.title, copied.base) == ("Ink", "alpha-512")


def test_the_same_source_gives_the_same_bytes(library: LoraLibrary, source: Path) -> None:
    one, two = library.import_(source, "a"), library.import_(source, "b")
    assert one.file.read_bytes() == two.file.read_bytes()


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("dog", "dog"),
        ("mein Hündchen (v2)", "mein-H-ndchen-v2"),
        ("..x..", "x"),
        ("犬", "lora"),
        ("con", "lora-con"),
        ("a" * 200, "a" * 80),
    ],
)
def test_names_are_made_safe(
    stem: str, name: str, library: LoraLibrary, source: Path, tmp_path: Path
) -> None:
    renamed = source.rename(tmp_path / f"{stem}.safetensors")
    assert library.import_(renamed).name == name


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "x" * 81, "nul", "Com1.x"])
def test_other_names_are_refused(name: str, library: LoraLibrary, source: Path) -> None:
    with pytest.raises(LoraError, match=r"is no name of a LoRA|is a device of Windows"):
        library.import_(source, name)
    assert left(library) == []
    library.import_(source, "dog")
    with pytest.raises(LoraError, match=r"is no name of a LoRA|is a device of Windows"):
        library.rename("dog", name)
    assert names(library) == ["dog"]


def test_a_name_is_taken_whatever_its_case(library: LoraLibrary, source: Path) -> None:
    first = library.import_(source, "Dog").file.read_bytes()
    for name in ("Dog", "dog", "DOG"):
        with pytest.raises(LoraError, match="There is a LoRA called “Dog”"):
            library.import_(source, name)
    library.import_(source, "ink")
    with pytest.raises(LoraError, match="There is a LoRA called “Dog”"):
        library.rename("ink", "dog")
    assert names(library) == ["Dog", "ink"]
    assert library.find("Dog").file.read_bytes() == first
    # The case alone may change.
    assert library.rename("Dog", "dog").name == "dog"
    assert names(library) == ["dog", "ink"]
    assert library.rename("dog", "dog").name == "dog"


def test_a_folder_or_a_dead_link_in_the_way_is_not_replaced(
    library: LoraLibrary, source: Path
) -> None:
    library.root.mkdir()
    (library.root / "a.safetensors").mkdir()
    (library.root / "b.safetensors").symlink_to(library.root / "nowhere")
    library.import_(source, "dog")
    for name in "ab":
        with pytest.raises(LoraError, match="exists"):
            library.import_(source, name)
        with pytest.raises(LoraError, match="exists"):
            library.rename("dog", name)
    assert names(library) == ["dog"]
    assert left(library) == ["a.safetensors", "b.safetensors", "dog.safetensors"]


def test_a_file_that_came_meanwhile_is_not_replaced(
    library: LoraLibrary, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the name between the look and the writing."""
    write = files.write

    def late(file: Path, *args: Any, **how: Any) -> None:
        file.write_bytes(b"theirs")
        write(file, *args, **how)

    monkeypatch.setattr(files, "write", late)
    with pytest.raises(LoraError, match="exists"):
        library.import_(source, "dog")
    assert left(library) == ["dog.safetensors"]
    assert (library.root / "dog.safetensors").read_bytes() == b"theirs"


def test_the_folder_is_the_truth(library: LoraLibrary, source: Path, tmp_path: Path) -> None:
    library.root.mkdir()
    (library.root / "linked.safetensors").symlink_to(source)
    (library.root / "kohya.safetensors").write_bytes(source.read_bytes())
    for other in ("notes.txt", ".hidden.safetensors", "a b.safetensors", "x.bin", ".safetensors"):
        (library.root / other).write_bytes(source.read_bytes())
    (library.root / "folder.safetensors").mkdir()
    os.mkfifo(library.root / "pipe.safetensors")
    (library.root / "broken.safetensors").write_bytes(b"no LoRA")
    assert names(library) == ["kohya", "linked"]
    assert library.find("linked").modules == 27
    problems = list(library.faulty().values())
    assert len(problems) == 1
    told = library.problems()[1:]
    strangers = ("a b.safetensors", "folder.safetensors", "pipe.safetensors", "x.bin")
    assert [sentence.partition("”")[0][1:] for sentence in told] == list(strangers)
    assert "The LoRA “broken” cannot be used: “broken.safetensors” is not a sound" in problems[0]
    with pytest.raises(LoraError, match="The LoRA “broken” cannot be used"):
        library.find("broken")
    # Links are taken away, and what they lead to stays.
    assert library.remove("linked") == 0
    assert source.is_file()
    size = source.stat().st_size
    assert library.remove("kohya") == size
    assert library.remove("broken") == 7
    assert names(library) == []


def test_cards_are_read_again_only_where_a_file_changed(
    library: LoraLibrary, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.import_(source, "dog")
    (library.root / "broken.safetensors").write_bytes(b"no LoRA")
    library.cards()
    read: list[str] = []
    real = card.read

    def counted(file: Path, name: str) -> card.LoraCard:
        read.append(name)
        return real(file, name)

    monkeypatch.setattr(card, "read", counted)
    for _ in range(3):
        assert names(library) == ["dog"]
        assert len(library.problems()) == 1
    assert read == []
    file = library.root / "dog.safetensors"
    state = {k: v for k, v in load_file(file).items() if "attn2" not in k}
    save_file(state, file)
    assert library.find("dog").modules == 19
    assert read == ["dog"]


def test_nothing_is_left_after_a_failure(
    library: LoraLibrary, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.import_(source, "dog")
    before = library.find("dog").file.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(LoraError, match="no space left on the disk"):
            library.import_(source, "ink")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fails)
        patch.setattr(os, "replace", fails)
        patch.setattr(Path, "replace", fails)
        with pytest.raises(LoraError, match="no space left on the disk"):
            library.import_(source, "ink")
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(LoraError, match="is cut off"):
        library.import_(source, "ink")
    state = {"x.lora_A.weight": torch.ones(1)}
    save_file(state, source)
    with pytest.raises(LoraError, match="that no LoRA for PixArt has"):
        library.import_(source, "ink")
    assert left(library) == ["dog.safetensors"]
    assert library.find("dog").file.read_bytes() == before


def test_a_disk_that_refuses_is_said(
    library: LoraLibrary, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library.import_(source, "dog")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        patch.setattr(Path, "unlink", refused)
        with pytest.raises(LoraError, match=r"cannot be renamed \(Read-only file system\)"):
            library.rename("dog", "ink")
        with pytest.raises(LoraError, match=r"cannot be removed \(Read-only file system\)"):
            library.remove("dog")
    assert names(library) == ["dog"]
    (tmp_path / "file").touch()
    with pytest.raises(LoraError, match="it is a file, not a folder"):
        LoraLibrary(tmp_path / "file" / "loras").import_(source, "dog")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        with pytest.raises(LoraError, match=r"loras cannot be made \(Read-only file system\)"):
            LoraLibrary(tmp_path / "new" / "loras").import_(source, "dog")


def test_renaming_and_removing(library: LoraLibrary, source: Path) -> None:
    library.import_(source, "dog", title="Dog")
    content = library.find("dog").file.read_bytes()
    renamed = library.rename("dog", "hound")
    assert (renamed.name, renamed.title) == ("hound", "Dog")
    assert renamed.file.read_bytes() == content
    assert left(library) == ["hound.safetensors"]
    for action in (lambda: library.rename("dog", "x"), lambda: library.remove("dog")):
        with pytest.raises(LoraError, match="There is no LoRA called “dog”"):
            action()
    assert library.remove("hound") == len(content)
    assert left(library) == []


def test_the_nearest_name_is_said(library: LoraLibrary, source: Path) -> None:
    for name in ("watercolour", "ink"):
        library.import_(source, name)
    with pytest.raises(LoraError, match=r"called “Water”\. Did you mean “watercolour”"):
        library.find("Water")
    with pytest.raises(LoraError, match="Did you mean “ink”"):
        library.find("imk")
    with pytest.raises(LoraError, match="Known: ink, watercolour"):
        library.find("zzzzzz\n")


def test_what_was_downloaded_is_read_only(tmp_path: Path, source: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    reference = made.reference(rank=8)
    made.f3(reference, hub)
    others = {"lcm": hub / "adapter_model.safetensors", "gone": hub / "nowhere"}
    library = LoraLibrary(tmp_path / "loras", others)
    library.import_(source, "dog")
    assert names(library) == ["dog", "lcm"]
    assert len(library.problems()) == 1
    assert "“gone” cannot be used" in library.problems()[0]
    found = library.find("lcm")
    assert (found.file, found.rank) == (others["lcm"], 8)
    # Its configuration beside it counts when it is read.
    path = "transformer_blocks.0.attn1.to_q"
    read = files.read(found.file).pairs[path].change()
    assert (read.double() - reference[path].change()).abs().max() < 1e-6
    with pytest.raises(LoraError, match=r"“lcm” was downloaded .* so it cannot be removed here"):
        library.remove("lcm")
    with pytest.raises(LoraError, match="so it cannot be renamed here"):
        library.rename("lcm", "x")
    for action in (
        lambda: library.import_(source, "LCM"),
        lambda: library.rename("dog", "lcm"),
    ):
        with pytest.raises(LoraError, match="There is a LoRA called “lcm”"):
            action()
    assert others["lcm"].is_file()
    # One that a person puts into the folder under that name comes first.
    (library.root / "lcm.safetensors").write_bytes(source.read_bytes())
    assert library.find("lcm").file.parent == library.root
    assert json.loads((hub / "adapter_config.json").read_text())["r"] == 8
