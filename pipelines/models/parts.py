"""What the folder of a part has to hold, on the hub and on disk. Weights are never loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_OPTIONAL = {
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",
    ),
}
# The one place where a pickle is taken: an adapter that is published as nothing else.
ADAPTERS: tuple[str, ...] = ("adapter_model.safetensors", "adapter_model.bin")
_VOCABULARIES = ("tokenizer.json", "spiece.model")
_MAX_SHARDS = 200
_MAX_JSON = 5_000_000
_MAX_HEADER = 20_000_000
# What a file of this name may weigh at most; weights have the bound of the hub's listing.
_MAX_BYTES = {
    ".json": _MAX_JSON,
    ".model": 50_000_000,
    "tokenizer.json": 50_000_000,
    "config.json": 100_000,
}


def max_bytes(name: str) -> int | None:
    """The most that a file called `name` may weigh, None for weights."""
    return _MAX_BYTES.get(name, _MAX_BYTES.get(Path(name).suffix))


def choose(part: str, names: Collection[str]) -> tuple[str, ...] | None:
    """The files of `names` that a part consists of, without twins; None where it is incomplete.

    Safetensors only: a pickle beside them is left, fp16 variants and READMEs too. One file is
    preferred over shards; shards count only with their index and without a gap.
    """
    there = set(names)
    if part == "scheduler":
        return ("scheduler_config.json",) if "scheduler_config.json" in there else None
    if part == "adapter":
        weights = [name for name in ADAPTERS if name in there]
        whole = "adapter_config.json" in there and weights
        return ("adapter_config.json", weights[0]) if whole else None
    if part in _OPTIONAL:
        found = tuple(name for name in _OPTIONAL[part] if name in there)
        return found if set(found) & set(_VOCABULARIES) else None
    weights = _weights(_STEMS[part], there)
    return ("config.json", *weights) if weights and "config.json" in there else None


def _weights(stem: str, there: set[str]) -> list[str]:
    if f"{stem}.safetensors" in there:
        return [f"{stem}.safetensors"]
    index = f"{stem}.safetensors.index.json"
    if index not in there:
        return []
    pattern = re.compile(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}})\.safetensors")
    shards = {name: match for name in there if (match := pattern.fullmatch(name))}
    totals = {int(match[2]) for match in shards.values()}
    if len(totals) != 1 or not 0 < (total := totals.pop()) <= _MAX_SHARDS:
        return []
    if {int(match[1]) for match in shards.values()} != set(range(1, total + 1)):
        return []
    return [index, *sorted(shards)]


def missing(folder: Path, part: str) -> str | None:
    """Why `folder` cannot be used as `part`, in a few words; None where it is complete.

    Looks at names, the index and the ends of the weight files, which takes milliseconds.
    """
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except OSError:
        return "the folder is gone or cannot be read"
    chosen = choose(part, names)
    if chosen is None:
        return "files are missing"
    for name in chosen:
        if name.endswith(".safetensors") and not is_whole(folder / name):
            return f"{name} is cut off or damaged"
    for name in chosen:
        if name.endswith(".index.json"):
            index = read_json(folder / name)
            shards = index.get("weight_map") if index else None
            # Compared one by one: what is listed there need not be text.
            if not isinstance(shards, dict) or not all(s in chosen for s in shards.values()):
                return f"{name} names files that are not there"
    return None


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its own header says."""
    header = read_header(file)
    if header is None:
        return False
    length, table = header
    try:
        end = max((item["data_offsets"][1] for item in table.values()), default=0)
        return isinstance(end, int) and file.stat().st_size == 8 + length + end
    except (OSError, KeyError, IndexError, TypeError):
        return False


def read_header(file: Path) -> tuple[int, Mapping[str, Mapping[str, Any]]] | None:
    """(bytes of the header, tensors by name) of a safetensors file; None for anything else."""
    try:
        if not file.is_file():
            # A pipe would keep whoever opens it waiting.
            return None
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                return None
            table = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(table, dict):
        return None
    table.pop("__metadata__", None)
    if not all(isinstance(item, dict) for item in table.values()):
        return None
    return length, table


def read_json(file: Path) -> dict[str, Any] | None:
    """A small JSON object; None for anything else."""
    try:
        if not file.is_file() or file.stat().st_size > _MAX_JSON:
            return None
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
