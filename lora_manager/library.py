"""The LoRAs of the studio: a folder of files, and what was downloaded elsewhere.

The folder is the truth: `NAME.safetensors` in it is a LoRA called NAME, whoever put it there and
whatever names its tensors have. Links are followed when they are read and never when they are
removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_manager import card, folders, headers, sources, strength
from lora_manager.card import LoraCard
from lora_manager.errors import LoraError, hint, printable

if TYPE_CHECKING:
    from lora_manager.files import Lora

SUFFIX = ".safetensors"
_NOTHING: Mapping[str, Path] = MappingProxyType({})
# Windows opens a device under these names, whatever comes behind a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# What files of LoRAs end in.
_LIKELY = (SUFFIX, ".bin", ".pt", ".pth", ".ckpt")
_Stamp = tuple[int, int, int]


class LoraLibrary:
    """The LoRAs in `root` and the read-only `others` by name. A name in `root` comes first."""

    def __init__(self, root: Path, others: Mapping[str, Path] = _NOTHING) -> None:
        self.root = root
        self._others = dict(others)
        self._others_trouble: tuple[str, ...] = ()
        self._seen: dict[Path, tuple[_Stamp, LoraCard | LoraError]] = {}
        self._hashes: dict[Path, tuple[_Stamp, str]] = {}
        self._lock = threading.Lock()

    def cards(self) -> list[LoraCard]:
        """All that can be used, by name. Never raises for a file that cannot."""
        found = [self._card(name, file) for name, file in self._files()]
        return [entry for entry in found if isinstance(entry, LoraCard)]

    def faulty(self) -> dict[str, str]:
        """A sentence for each LoRA that is there and cannot be used, by name."""
        found = ((name, self._card(name, file)) for name, file in self._files())
        return {
            name: f"The LoRA “{name}” cannot be used: {entry}"
            for name, entry in found
            if isinstance(entry, LoraError)
        }

    def problems(self) -> list[str]:
        """A sentence for everything in the folder that looks like a LoRA and cannot be used."""
        return [*self.unlisted(), *self.faulty().values(), *self._strangers()]

    def unlisted(self) -> list[str]:
        """A sentence for each folder of which nobody can say what it holds."""
        return [*self._root_trouble(), *self._others_trouble]

    def _root_trouble(self) -> list[str]:
        reason = folders.trouble(self.root)
        return [f"The LoRAs in {self.root} cannot be listed ({reason})."] if reason else []

    def use(self, others: Mapping[str, Path], unlisted: Iterable[str] = ()) -> None:
        """Takes `others` for the read-only ones from now on; `unlisted` says why some may be
        missing."""
        self._others, self._others_trouble = dict(others), tuple(unlisted)

    def is_other(self, name: str) -> bool:
        """Whether `name` is one of the read-only ones, and none of the folder hides it."""
        return name in self._others and name not in dict(self._in_root())

    def place(self, name: str) -> tuple[Path, int]:
        """Where a LoRA of the folder lies, a damaged one too, and its bytes. Raises LoraError."""
        file = self._own(name, "removed")
        try:
            return file, file.lstat().st_size
        except OSError as error:
            raise headers.unreadable(file, error) from None

    def find(self, name: str) -> LoraCard:
        """The LoRA called `name`. Raises LoraError that says the nearest name, or what is wrong."""
        files = dict(self._files())
        if name not in files:
            _check(self.unlisted())
            raise _unknown(name, (one.name for one in self.cards()))
        found = self._card(name, files[name])
        if isinstance(found, LoraError):
            raise LoraError(
                f"The LoRA “{name}” cannot be used: {found.message}", found.way_out
            ) from None
        return found

    def content_hash(self, name: str) -> str:
        """The SHA-256 of the file of the LoRA called `name`, in hex. Raises LoraError.

        Computed once while the file is as it was.
        """
        file = self.find(name).file
        try:
            stamp = _stamp(file)
            seen = self._hashes.get(file)
            if seen is None or seen[0] != stamp:
                with open(file, "rb") as stream:
                    seen = (stamp, hashlib.file_digest(stream, "sha256").hexdigest())
                self._hashes[file] = seen
        except OSError as error:
            raise headers.unreadable(file, error) from None
        return seen[1]

    def import_(
        self,
        source: Path,
        name: str | None = None,
        *,
        title: str = "",
        trigger: str = "",
        licence: str = "",
        base: str = "",
    ) -> LoraCard:
        """Reads a file or PEFT folder of any family and keeps it in the library.

        Without `name` it is called as the file is, or its folder. What is given here replaces what
        the source says about itself. Raises LoraError; nothing is left then.
        """
        from lora_manager import files

        found = sources.weights_file(source)
        name = _name_of(source, found) if name is None else name
        self.check_free(name)
        lora = files.read(found)
        given = {"title": title, "trigger": trigger, "licence": licence, "base": base}
        said = _said(found)
        return self.add(name, lora, {f: card.short(text) or said[f] for f, text in given.items()})

    def add(self, name: str, lora: Lora, texts: Mapping[str, str]) -> LoraCard:
        """Keeps `lora` in the library as `name`, with its notes and what `texts` says about it
        (title, trigger, licence, base).

        Raises LoraError where the name is taken or none, and where it cannot be written.
        """
        from lora_manager import files

        metadata = card.metadata(texts, lora.notes)
        target = self._path(name)
        with self._lock:
            self.check_free(name)
            self._make_root()
            files.write(target, lora, metadata, replace=False)
        return self.find(name)

    def rename(self, old: str, new: str) -> LoraCard:
        """Gives a LoRA another name. Raises LoraError where that is taken or it is not ours."""
        with self._lock:
            file = self._own(old, "renamed")
            # A change of case alone is none of another LoRA.
            self.check_free(new, besides=old)
            if new != old:
                try:
                    file.rename(self._path(new))
                except OSError as error:
                    raise _refused(file, "renamed", error) from None
        return self.find(new)

    def remove(self, name: str) -> int:
        """Deletes a LoRA for good; of a link only the link. Returns the bytes freed.

        Raises LoraError for a name that is not there and for one of the read-only ones.
        """
        with self._lock:
            file = self._own(name, "removed")
            try:
                size = 0 if file.is_symlink() else file.stat().st_size
                file.unlink()
            except OSError as error:
                raise _refused(file, "removed", error) from None
            self._seen.pop(file, None)
        return size

    def _path(self, name: str) -> Path:
        return self.root / f"{name}{SUFFIX}"

    def _files(self) -> list[tuple[str, Path]]:
        """Every name with its file, by name; those of `root` hide others."""
        found = dict(self._others) | dict(self._in_root())
        return sorted(found.items(), key=lambda item: (item[0].casefold(), item[0]))

    def _in_root(self) -> Iterator[tuple[str, Path]]:
        try:
            entries = list(self.root.iterdir())
        except OSError:
            # No LoRA was kept yet.
            return
        for file in entries:
            name = file.name.removesuffix(SUFFIX)
            if name != file.name and card.NAME.fullmatch(name) and headers.is_file(file):
                yield name, file

    def _strangers(self) -> Iterator[str]:
        """What somebody has put into the folder in a form that is not looked for there."""
        known = {file for _, file in self._in_root()}
        try:
            entries = sorted(self.root.iterdir())
        except OSError:
            return
        for file in entries:
            if file in known or file.name.startswith("."):
                continue
            if file.suffix.lower() in _LIKELY or (file / strength.CONFIG).is_file():
                reason = folders.dead_link(file) or "import it to use it"
                yield f"“{printable(file.name)}” in {self.root} is left out: {reason}."

    def _card(self, name: str, file: Path) -> LoraCard | LoraError:
        """The card of a file, from memory while the file is as it was."""
        try:
            stamp = _stamp(file)
        except OSError as error:
            return headers.unreadable(file, error)
        seen = self._seen.get(file)
        if seen is None or seen[0] != stamp:
            seen = (stamp, _read(file, name))
            self._seen[file] = seen
        return seen[1] if isinstance(seen[1], LoraError) else replace(seen[1], name=name)

    def _own(self, name: str, what: str) -> Path:
        files = dict(self._in_root())
        if name in files:
            return files[name]
        if name in self._others:
            raise LoraError(
                f"The LoRA “{name}” was downloaded and is kept elsewhere, so it cannot be {what}"
                " here."
            )
        _check(self.unlisted())
        raise _unknown(name, files)

    def check_free(self, name: str, besides: str = "") -> None:
        """Raises LoraError for a name that none can have, or that is taken but by `besides`.

        Case counts for nothing: on many disks "Dog" and "dog" are one file.
        """
        card.check_name(name)
        if _DEVICES.fullmatch(name):
            raise LoraError(f"“{name}” is a device of Windows.", "Take another name.")
        for taken, _ in self._files():
            if taken != besides and taken.casefold() == name.casefold():
                raise LoraError(f"There is a LoRA called “{taken}”.", "Take another name.")
        _check(self._root_trouble())
        # Also a folder, or a link that leads nowhere.
        if name.casefold() != besides.casefold() and os.path.lexists(self._path(name)):
            raise LoraError(f"{self._path(name)} exists.", "Take another name.")

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(self.root, "made", error) from None


def _check(troubles: Iterable[str]) -> None:
    """Raises LoraError for the first one."""
    for sentence in troubles:
        raise LoraError(sentence, folders.WAY_OUT)


def _stamp(file: Path) -> _Stamp:
    """Changes with the file. Raises OSError."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _read(file: Path, name: str) -> LoraCard | LoraError:
    try:
        return card.read(file, name)
    except LoraError as error:
        return error


def _name_of(source: Path, file: Path) -> str:
    """A name that a LoRA can have, after its file, or its folder where the file's is any one's."""
    stem = file.stem
    if source.is_dir() or stem in strength.PEFT_NAMES:
        stem = file.absolute().parent.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:80]
    return name if name and not _DEVICES.fullmatch(name) else f"lora-{name}".strip("-")


def _said(file: Path) -> dict[str, str]:
    """What a source says about itself, in its metadata or its adapter_config.json."""
    try:
        metadata = headers.read(file).metadata
    except LoraError:
        # A pickle has none.
        metadata = {}
    said = card.texts(metadata)
    config = strength.beside(file) if not said["base"] else None
    trained_on = (config or {}).get("base_model_name_or_path")
    if isinstance(trained_on, str):
        said["base"] = card.short(trained_on)
    return said


def _unknown(name: str, known: Iterable[str]) -> LoraError:
    said = hint(name, known, "There is no LoRA yet: import one.")
    return LoraError(f"There is no LoRA called “{printable(name)}”.", said)


def _refused(path: Path, what: str, error: OSError) -> LoraError:
    reason = printable(error.strerror or error, 120)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LoraError(f"There is no space left on the disk for {path}.", "Free some space.")
    return LoraError(f"{path} cannot be {what} ({reason}).", "Close what uses it, or try again.")
