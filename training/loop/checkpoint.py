"""Checkpoints: all or nothing, verified before use, the last good one never deleted.

A checkpoint is a folder `step-00000500` with

    manifest.json     step, state of the trainer, size and SHA-256 of every other file
    *.safetensors     raw weights, averaged weights, tensors of the optimizers
    *.json            the numbers of the optimizers

It is written under another name, synced, renamed, and only then are old ones removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_manager import drafts
from pipelines.errors import SaveError, printable
from pipelines.files import sync

MANIFEST = "manifest.json"
FORMAT = 1
_PREFIX = "step-"
_DRAFT = ".draft-"
_SPARE_BYTES = 32_000_000

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk. `state` is what the trainer said about itself."""

    folder: Path
    step: int
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file. Raises SaveError."""
        try:
            return load_file(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            raise SaveError(
                f"The checkpoint {self.folder} cannot be read ({printable(error, 80)})."
            ) from None

    def has(self, name: str) -> bool:
        """True where the checkpoint holds a file of tensors with that name."""
        return (self.folder / f"{name}.safetensors").is_file()


def save(
    root: Path, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]
) -> Checkpoint:
    """Writes the checkpoint of `step`. Raises SaveError and leaves the others as they were."""
    folder = root / f"{_PREFIX}{step:08d}"
    draft, before = drafts.beside(folder), drafts.beside(folder, "old")
    needed = sum(t.numel() * t.element_size() for part in parts.values() for t in part.values())
    try:
        free = shutil.disk_usage(root).free
        if free < needed + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        draft.mkdir()
        for name, tensors in parts.items():
            save_file(_plain(tensors), draft / f"{name}.safetensors")
            sync(draft / f"{name}.safetensors")
        manifest = {
            "format": FORMAT,
            "step": step,
            "files": {file.name: _facts(file) for file in sorted(draft.iterdir())},
            "state": dict(state),
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        sync(draft / MANIFEST)
        sync(draft)
        if folder.exists():
            folder.rename(before)
        draft.rename(folder)
        sync(root)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        if before.exists() and not folder.exists():
            before.rename(folder)
        raise _save_error(root, error, needed) from None
    return Checkpoint(folder=folder, step=step, state=dict(state))


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    """In main memory, each with its own numbers: the format refuses shared ones (bitsandbytes gives
    every weight the same two tables), and views would be written whole."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        here = value.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        # Empty tensors lie nowhere, all of them.
        plain[name] = here.clone() if place in seen and here.numel() else here
        seen.add(place)
    return plain


def _save_error(root: Path, error: Exception, needed: int) -> SaveError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space" in str(error):
        return SaveError(
            f"There is no space for a checkpoint of {needed / 1e6:.0f} MB in {root}; the training"
            " stopped, and the checkpoint before is whole.",
            "Free some space and give the same command again.",
        )
    return SaveError(
        f"The checkpoint cannot be written in {root} ({printable(error, 120)}); the one before is"
        " whole.",
        "Make the folder writable and give the same command again.",
    )


def sync_folder(folder: Path) -> None:
    """Makes sure that every file below `folder` is on the disk. Raises OSError."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _facts(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def found(root: Path) -> Iterator[Path]:
    """The folders that look like checkpoints, newest first by their step (clocks may lie)."""
    folders = [f for f in root.glob(f"{_PREFIX}*") if re.fullmatch(r"step-[0-9]{1,12}", f.name)]
    yield from sorted(folders, key=lambda f: int(f.name.removeprefix(_PREFIX)), reverse=True)


def read(folder: Path, *, deep: bool = True) -> Checkpoint:
    """A checkpoint whose every file is as it was written. Raises SaveError that says what is not.

    Not `deep`: only the sizes of the files are compared.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise SaveError(f"{folder} was written by another version of the studio.")
        for name, facts in manifest["files"].items():
            own = Path(name).name == name and (folder / name).stat().st_size == facts["bytes"]
            if not own or (deep and _facts(folder / name) != facts):
                raise SaveError(f"The checkpoint {folder} is damaged ({printable(name)}).")
        return Checkpoint(folder=folder, step=int(manifest["step"]), state=manifest["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SaveError(
            f"The checkpoint {folder} cannot be read ({printable(error, 80)})."
        ) from None


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is not whole."""
    told: list[str] = []
    for folder in found(root):
        try:
            return read(folder), told
        except SaveError as error:
            told.append(error.message)
    return None, told


def remove_drafts(root: Path) -> None:
    """Takes away what a killed process left half-written, and puts back what it had put aside."""
    drafts.sweep(root)
    # The names of earlier versions; nobody else trains in this folder now.
    for draft in root.glob(f"{_DRAFT}*"):
        number = draft.name.removeprefix(f"{_DRAFT}old-")
        if number.isdigit() and not (root / f"{_PREFIX}{number}").exists():
            draft.rename(root / f"{_PREFIX}{number}")
        shutil.rmtree(draft, ignore_errors=True)


def rotate(root: Path, keep: int, best: int | None) -> None:
    """Leaves the newest `keep` checkpoints and the best one.

    Damaged ones do not count, so the last good one always stays.
    """
    whole = 0
    for folder in list(found(root)):
        if whole < keep:
            try:
                read(folder, deep=False)
                whole += 1
            except SaveError:
                continue
        elif int(folder.name.removeprefix(_PREFIX)) != best:
            shutil.rmtree(folder, ignore_errors=True)
