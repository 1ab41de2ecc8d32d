"""Weights that other programs have downloaded already: found without loading any of them.

Looks into the hub's own cache, ComfyUI, A1111 and Forge, and folders of the original PixArt code.
A part in diffusers layout can be used where it lies; a single file can only be reported. A look is
bounded in depth and number, follows no link out of the folder it looks at, and never fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import hub_rows, parts
from pipelines.hub_rows import Known, Source

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
    """A file that holds something of the family but cannot be used as it lies."""

    file: Path
    what: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a look has shown."""

    parts: tuple[FoundPart, ...] = ()
    files: tuple[FoundFile, ...] = ()

    def places(self, model: Known) -> dict[str, Path]:
        """The parts of `model` that can be used where they lie."""
        places = {source.part: self.place(source) for source in model.parts if not source.file}
        return {part: folder for part, folder in places.items() if folder is not None}

    def place(self, source: Source) -> Path | None:
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
        return None


def look(folders: Iterable[Path] = ()) -> Found:
    """What lies in `folders`, in the hub's cache and in the usual places of other programs."""
    found: list[FoundPart] = list(_cache(hub_cache()))
    files: list[FoundFile] = []
    seen: set[Path] = set()
    home = _home()
    usual = [home / name for name in _USUAL] if home else []
    for folder in (*folders, *usual, Path("output") / "pretrained_models"):
        for root in _roots(folder):
            if root in seen:
                continue
            seen.add(root)
            for item in _walk(root):
                if isinstance(item, FoundPart):
                    found.append(item)
                else:
                    files.append(item)
    return Found(parts=tuple(found), files=tuple(files))


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


def _cache(root: Path) -> Iterator[FoundPart]:
    """The parts of every snapshot: models--<owner>--<name>/snapshots/<commit>/<part>."""
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
                    what = _what(entry) if entry.is_file() else None
                    if what:
                        yield FoundFile(file=entry, what=what, size=entry.stat().st_size)


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


def _what(file: Path) -> str | None:
    """What a single file holds, None where it is nothing of the family."""
    name = file.name.lower()
    if file.suffix.lower() in (".pth", ".ckpt", ".bin"):
        # Pickles are not opened to look at them; the name has to do.
        if "pixart" in name:
            return "PixArt ControlNet" if "controlnet" in name else "PixArt model"
        beside = file.parent.name.lower()
        first = name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin")
        return "T5-XXL text encoder" if first and "t5" in beside and "xxl" in beside else None
    header = parts.read_header(file)
    return _kind_of(header[1]) if header else None


def _kind_of(table: Mapping[str, Mapping[str, object]]) -> str | None:
    keys = {key.removeprefix("model.diffusion_model.").removeprefix("model.") for key in table}
    if keys & {"adaln_single.linear.weight", "t_block.1.weight"}:
        control = any(key.startswith("controlnet") for key in keys)
        return "PixArt ControlNet" if control else "PixArt model"
    wide = next((table[k] for k in table if k.endswith(_T5_KEY)), None)
    if wide is not None and wide.get("shape") == [4096, 10240]:
        return "T5-XXL text encoder"
    if {"decoder.conv_in.weight", "encoder.conv_in.weight"} <= keys and len(keys) < 600:
        return "VAE"
    return None
