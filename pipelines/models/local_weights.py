"""Weights that other programs have downloaded already: found without loading any of them.

Looks into the hub's own cache, ComfyUI, A1111 and Forge, and folders of the original PixArt code.
A part in diffusers layout can be used where it lies, and so can a T5 or VAE in one file
(`single_files`); other files are reported with what can be done with them. A look is bounded in
depth and number, follows no link out of the folder it looks at, and never fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import ModelError
from pipelines.models import hub_rows, parts, single_files
from pipelines.models.hub_rows import HubSource, Known

_MAX_DEPTH = 5
_MAX_ENTRIES = 20_000
_MAX_SNAPSHOTS = 500
_CLASSES = {
    "PixArtTransformer2DModel": "transformer",
    "Transformer2DModel": "transformer",
    "AutoencoderKL": "vae",
    "T5EncoderModel": "text_encoder",
}
_SINGLE = (".safetensors", ".sft", ".pth", ".ckpt", ".bin")
_T5_KEY = "encoder.block.23.layer.1.DenseReluDense.wo.weight"
Use = Literal["", "model", "text", "vae", "first-vae", "pickles"]
_Kind = tuple[str, Use, str]
_ENCODER, _MODEL, _CONTROL = "T5-XXL text encoder", "PixArt model", "PixArt ControlNet"
_USUAL = (
    "ComfyUI",
    "stable-diffusion-webui",
    "stable-diffusion-webui-forge",
    "PixArt-alpha",
    "PixArt-sigma",
)


@dataclass(frozen=True, kw_only=True)
class FoundPart:
    """A complete part in diffusers layout. `repo` and `commit` where it lies in the hub's cache."""

    part: str
    folder: Path
    repo: str = ""
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file that holds something of the family. `use`: how `models import` can take it.

    "model": as the model itself; "text", "vae": as it lies, for a model; "first-vae": converted;
    "pickles": converted, with the other files of its folder; "": not at all, because of `why`.
    """

    file: Path
    what: str
    size: int
    use: Use = ""
    why: str = ""

    def way(self) -> str:
        """What can be done with it, in words."""
        command = "launch.py models import"
        match self.use:
            case "model" if row := released(self.file):
                return f"read from here by: launch.py models download {row.id}"
            case "model":
                return f'can be imported with: {command} "{self.file}"'
            case "text":
                return f'can be used where it lies: {command} TRANSFORMER --text "{self.file}"'
            case "vae":
                return f'can be used where it lies: {command} TRANSFORMER --vae "{self.file}"'
            case "first-vae":
                return f'can be converted: {command} TRANSFORMER --vae "{self.file}"'
            case "pickles":
                folder = self.file.parent
                return f'can be converted: {command} TRANSFORMER --text "{folder}"'
        return f"cannot be used: {self.why}"


@dataclass(frozen=True, kw_only=True)
class LocalWeights:
    """What a look has shown."""

    parts: tuple[FoundPart, ...] = ()
    files: tuple[FoundFile, ...] = ()

    def places(self, model: Known) -> dict[str, Path]:
        """The parts of `model` that can be used where they lie; a T5 may be a single file."""
        places = {source.part: self.place(source) for source in model.parts if not source.file}
        return {part: folder for part, folder in places.items() if folder is not None}

    def place(self, source: HubSource) -> Path | None:
        """Where `source` lies: the same files of the hub, else a part with the same facts."""
        for item in self.parts:
            same = item.part == source.part and item.folder.name == source.folder
            if same and item.repo == source.repo:
                if source.revision in (item.commit, hub_rows.MAIN):
                    return item.folder
        for item in self.parts:
            if source.like and item.part == source.part:
                config = parts.read_json(item.folder / "config.json") or {}
                if all(config.get(key) == value for key, value in source.like.items()):
                    return item.folder
        if source.like and source.part == "text_encoder":
            return next((item.file for item in self.files if item.use == "text"), None)
        return None

    def copy_of(self, source: HubSource, size: int) -> Path | None:
        """A file that is called as the one that `source` is, and as long. Its hash may differ."""
        for item in self.files:
            if item.file.name == source.file and item.size == size:
                return item.file
        return None


def released(file: Path) -> Known | None:
    """The released model that is published as a file of this name, as long as it paints."""
    for row in hub_rows.known().values():
        if row.paints and any(source.file == file.name for source in row.parts):
            return row
    return None


def look(folders: Iterable[Path] = ()) -> LocalWeights:
    """What lies in `folders`, in the hub's cache and in the usual places of other programs."""
    items: list[FoundPart | FoundFile] = list(_cache(hub_cache()))
    seen: set[Path] = set()
    home = _home()
    usual = [home / name for name in _USUAL] if home else []
    for folder in (*folders, *usual, Path("output") / "pretrained_models"):
        for root in _roots(folder):
            if root in seen:
                continue
            seen.add(root)
            items += _walk(root)
    return LocalWeights(
        parts=tuple(item for item in items if isinstance(item, FoundPart)),
        files=tuple(item for item in items if isinstance(item, FoundFile)),
    )


def hub_cache() -> Path:
    """Where the hub's own tools keep what they download."""
    for name, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if value := os.environ.get(name):
            return Path(os.path.expanduser(value)) / below
    return (_home() or Path()) / ".cache" / "huggingface" / "hub"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _roots(folder: Path) -> Iterator[Path]:
    """The folders to look into when a person names a program's folder, or one of models."""
    try:
        below = [folder / "models", folder / "output" / "pretrained_models"]
        there = [path.resolve() for path in below if path.is_dir()]
        yield from there or ([folder.resolve()] if folder.is_dir() else [])
    except (OSError, RuntimeError):
        return


# --- the hub's cache --------------------------------------------------------------------------


def _cache(root: Path) -> Iterator[FoundPart | FoundFile]:
    """The parts of every snapshot: models--<owner>--<name>/snapshots/<commit>/<part>.

    Of files beside them, those that a released model is published as.
    """
    looked = 0
    for repo in _entries(root):
        kind, _, name = repo.name.partition("--")
        if kind != "models" or name.count("--") < 1:
            continue
        for snapshot in _entries(repo / "snapshots"):
            looked += 1
            if looked > _MAX_SNAPSHOTS:
                return
            for folder in _entries(snapshot):
                if released(folder) and _stays(folder, root):
                    yield from _file(folder)
                    continue
                part = _part_of(folder, root)
                if part:
                    owner, _, title = name.partition("--")
                    yield FoundPart(
                        part=part, folder=folder, repo=f"{owner}/{title}", commit=snapshot.name
                    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MAX_ENTRIES]
    except OSError:
        return []


# --- any folder -------------------------------------------------------------------------------


def _walk(root: Path) -> Iterator[FoundPart | FoundFile]:
    looked = 0
    visited: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            stat = folder.stat()
            inside = folder.resolve().is_relative_to(root)
        except (OSError, RuntimeError):
            continue
        if not inside or (stat.st_dev, stat.st_ino) in visited:
            continue
        visited.add((stat.st_dev, stat.st_ino))
        if part := _part_of(folder, root):
            yield FoundPart(part=part, folder=folder)
            continue
        for entry in _entries(folder):
            looked += 1
            if looked > _MAX_ENTRIES:
                return
            with suppress(OSError, RuntimeError):
                if entry.is_dir():
                    if depth < _MAX_DEPTH:
                        waiting.append((entry, depth + 1))
                elif entry.suffix.lower() in _SINGLE and _stays(entry, root):
                    yield from _file(entry)


def _part_of(folder: Path, root: Path) -> str | None:
    """Which part a folder is, None for anything that cannot be used as one."""
    names = {entry.name for entry in _entries(folder)}
    if "config.json" not in names:
        if "scheduler_config.json" in names:
            kind: str | None = "scheduler"
        elif names & {"tokenizer.json", "spiece.model"}:
            kind = "tokenizer"
        else:
            return None
    else:
        config = parts.read_json(folder / "config.json") or {}
        listed = config.get("architectures")
        first = listed[0] if isinstance(listed, list) and listed else ""
        name = config.get("_class_name") or first
        kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None or parts.missing(folder, kind) is not None:
        return None
    chosen = parts.choose(kind, names) or ()
    return kind if all(_stays(folder / name, root) for name in chosen) else None


def _stays(file: Path, root: Path) -> bool:
    try:
        return file.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _file(file: Path) -> Iterator[FoundFile]:
    with suppress(OSError):
        kind = _what(file) if file.is_file() else None
        if kind:
            what, use, why = kind
            yield FoundFile(file=file, what=what, size=file.stat().st_size, use=use, why=why)


def _what(file: Path) -> _Kind | None:
    """What a single file holds, and its use; None where it is nothing of the family."""
    name = file.name.lower()
    if file.suffix.lower() in (".pth", ".ckpt", ".bin"):
        # Pickles are not opened to look at them; the name has to do.
        if "pixart" in name:
            return _control() if "controlnet" in name else (_MODEL, "model", "")
        beside = file.parent.name.lower()
        first = name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin")
        if not first or "t5" not in beside or "xxl" not in beside:
            return None
        whole = single_files.text_pickles(file.parent)
        return (_ENCODER, "pickles", "") if whole else (_ENCODER, "", "a file beside it is missing")
    header = parts.read_header(file)
    return _kind_of(header[1], file) if header else None


def _control() -> _Kind:
    return _CONTROL, "", "a ControlNet is not a model by itself"


def _kind_of(table: Mapping[str, Mapping[str, object]], file: Path) -> _Kind | None:
    keys = {key.removeprefix("model.diffusion_model.").removeprefix("model.") for key in table}
    if keys & {"adaln_single.linear.weight", "t_block.1.weight"}:
        control = any(key.startswith("controlnet") for key in keys)
        return _control() if control else (_MODEL, "model", "")
    wide = next((table[k] for k in table if k.endswith(_T5_KEY)), None)
    try:
        if wide is not None and wide.get("shape") == [4096, 10240]:
            single_files.text_encoder(file)
            return _ENCODER, "text", ""
        if {"decoder.conv_in.weight", "encoder.conv_in.weight"} <= keys and len(keys) < 600:
            # Of which family it is does not matter here.
            single_files.vae(file, scaling=1.0)
            return "VAE", "first-vae" if single_files.first_names(file) else "vae", ""
    except ModelError as error:
        return _ENCODER if wide is not None else "VAE", "", error.message.rstrip(".")
    return None
