"""LoRA files in and out: whatever names their tensors have, they become pairs by layer.

Read are (names as in `layouts`): diffusers' files, PEFT folders, what PixArt's own script writes,
OneTrainer's and kohya's names, the original layers' names, ComfyUI's, and the stacked ones of
ComfyUI_ExtraModels. Written is what diffusers calls its own, which ComfyUI and trainers read, too.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lora_manager import atomic, headers, layouts, pickles, strength
from lora_manager.errors import LoraError, printable
from lora_manager.layouts import Change
from lora_manager.sources import weights_file

PEFT_MAGNITUDE = "lora_magnitude_vector"
"""What PEFT calls the magnitudes of a DoRA in files."""
ALL_ZERO = "its numbers, or its strength (alpha), are all 0"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraPair:
    """The change of one layer's weight: up @ down, alpha included. All float32 on the processor.

    down (r, in), up (out, r); for the convolution pos_embed.proj down (r, in, k, k) and
    up (out, r, 1, 1). Of a DoRA `magnitude` are the sizes of the rows (out, 1), or of the columns
    (1, in), that the weight has with the change in it; `attach` says how.
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that is changed: (out, in) or (out, in, k, k)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def change(self) -> Tensor:
        """up @ down, of `shape`: the whole change, or that of the directions of a DoRA."""
        return (self.up.flatten(1) @ self.down.flatten(1)).view(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """Pairs by diffusers' paths of the layers; `notes` say what was left out or guessed."""

    pairs: Mapping[str, LoraPair]
    notes: tuple[str, ...] = ()

    @property
    def is_dora(self) -> bool:
        """Whether its change depends on the weights that it is put on (arXiv 2402.09353)."""
        return any(pair.magnitude is not None for pair in self.pairs.values())

    @property
    def changes_nothing(self) -> bool:
        """True where one half of every change is 0 throughout, as where alpha is 0."""
        return not any(_changes(pair) for pair in self.pairs.values())


@dataclass(frozen=True, kw_only=True)
class _Source:
    """An open file. `read` gives a tensor as it is stored."""

    file: Path
    shapes: Mapping[str, layouts.Shape]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> Lora:
    """The LoRA of a file (.safetensors, .bin, .pt, .pth) or of a PEFT folder.

    Raises LoraError for one that is not sound, not for PixArt, or of a kind that is not read.
    """
    file = weights_file(path)
    try:
        with open(file, "rb") as stream:
            begin = stream.read(4)
            # By content: what a file is called says little.
            if begin == pickles.ZIP:
                return _lora(_of_pickle(file))
            if file.suffix.lower() in pickles.SUFFIXES and begin[:1] in pickles.PICKLE:
                raise pickles.refuse_bare(file)
            return _lora(_of_safetensors(file, stream))
    except OSError as error:
        raise headers.unreadable(file, error) from None


def _of_pickle(file: Path) -> _Source:
    tensors = pickles.read(file)
    return _Source(
        file=file,
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
        read=lambda key: tensors[key],
    )


def _of_safetensors(file: Path, stream: io.BufferedReader) -> _Source:
    header = headers.of_stream(stream, file.name)

    def read_one(key: str) -> Tensor:
        entry = header.tensors[key]
        if entry.dtype not in pickles.DTYPES:
            raise pickles.unread(key, entry.dtype)
        data = bytearray(entry.size)
        stream.seek(entry.start)
        # The file that was checked stays open, so another one under its name changes nothing.
        if stream.readinto(data) != entry.size:
            raise LoraError(f"“{printable(file.name)}” was changed while it was read.")
        return torch.frombuffer(data, dtype=pickles.DTYPES[entry.dtype]).reshape(entry.shape)

    return _Source(
        file=file,
        shapes={key: entry.shape for key, entry in header.tensors.items()},
        read=read_one,
        metadata=header.metadata,
    )


def _lora(source: _Source) -> Lora:
    name = source.file.name
    layout = layouts.sort(source.shapes, name)
    alphas = {c.alpha: _number(source, c.alpha) for c in layout.changes if c.alpha is not None}
    config = strength.beside(source.file)
    factors, notes = strength.factors(layout, alphas, source.metadata, config, name)
    pairs: dict[str, LoraPair] = {}
    for change in layout.changes:
        pairs |= _pairs(source, change, factors[change.name])
    if Lora(pairs=pairs).changes_nothing:
        notes = (*notes, f"It changes nothing: {ALL_ZERO}.")
    return Lora(pairs=pairs, notes=(*layout.notes, *notes))


def _changes(pair: LoraPair) -> bool:
    return pair.magnitude is not None or bool(pair.up.any() and pair.down.any())


def _number(source: _Source, key: str) -> float:
    value = float(source.read(key).double().reshape(()))
    if not -1e9 <= value <= 1e9:
        raise LoraError(
            f"“{printable(source.file.name)}” has {value:g} as “{printable(key, 80)}”,"
            " which is no strength."
        )
    return value


def _matrix(source: _Source, key: str) -> Tensor:
    stored = source.read(key)
    if stored.dtype not in _FLOATS:
        raise pickles.unread(key, str(stored.dtype).removeprefix("torch."))
    # A copy, also of float32: pages of a mapped file may change under us.
    value = stored.to(torch.float32, copy=True).contiguous()
    if not value.isfinite().all():
        raise _not_finite(source, key)
    return value


def _pairs(source: _Source, change: Change, factor: float) -> dict[str, LoraPair]:
    down, up = _matrix(source, change.down), _matrix(source, change.up) * factor
    if not up.isfinite().all():
        raise _not_finite(source, change.up)
    pieces = len(change.paths)
    sizes = None
    if change.magnitude is not None:
        sizes = _matrix(source, change.magnitude).reshape(change.sizes)
    if pieces == 1:
        return {change.paths[0]: LoraPair(down=down, up=up, magnitude=sizes)}
    downs = down.chunk(pieces) if change.stacked else (down,) * pieces
    found = {
        path: _without_zeros(below, above)
        for path, below, above in zip(change.paths, downs, up.chunk(pieces), strict=True)
    }
    if sizes is not None:
        return {
            path: replace(pair, magnitude=own)
            for (path, pair), own in zip(found.items(), sizes.chunk(pieces), strict=True)
        }
    # A fused layer of which not every piece is changed has zeros in place of the others.
    changed = {path: pair for path, pair in found.items() if pair.up.any()}
    return changed or found


def _without_zeros(down: Tensor, up: Tensor) -> LoraPair:
    """Three layers of rank r, fused exactly, have 3 r columns, of which each piece uses r."""
    used = up.any(dim=0)
    if used.all() or not used.any():
        return LoraPair(down=down, up=up)
    return LoraPair(down=down[used].contiguous(), up=up[:, used].contiguous())


def _not_finite(source: _Source, key: str) -> LoraError:
    return LoraError(
        f"“{printable(source.file.name)}” holds numbers in “{printable(key, 80)}” that are not"
        " finite (NaN or infinite).",
        "Its training went wrong; take an earlier one.",
    )


def write(file: Path, lora: Lora, metadata: Mapping[str, str], *, replace: bool = True) -> None:
    """Writes `lora` in diffusers' layout, as float16 where that loses nothing, else float32.

    `metadata` goes into the file besides what diffusers and PEFT need to build the layers. The file
    is there whole or not at all. Raises LoraError where it cannot be written, and without `replace`
    where it exists.
    """
    if not lora.pairs:
        raise LoraError("This LoRA changes nothing, so there is nothing to write.")
    pairs = {path: lora.pairs[path] for path in sorted(lora.pairs)}
    dtype = dtype_of(pairs.values())
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        # Copies: pieces of one fused layer may share memory, which the format does not know.
        for half, value in (("A", pair.down), ("B", pair.up)):
            copied = value.to(dtype, copy=True).contiguous()
            tensors[f"transformer.{path}.lora_{half}.weight"] = copied
        if pair.magnitude is not None:
            key, value = magnitude_of(pair)
            tensors[f"transformer.{path}.{key}"] = value.to(dtype, copy=True).contiguous()
    noted = {**metadata, "format": "pt", strength.METADATA: _adapter(pairs)}
    with atomic.written(file, replace=replace) as stream:
        save(stream, tensors, noted)


def save(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes safetensors, metadata in order: that library itself gives other bytes every time."""
    label = {torch.float16: "F16", torch.float32: "F32"}
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.itemsize
        table[name] = {
            "dtype": label[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    stream.write(len(header).to_bytes(8, "little") + header)
    for tensor in tensors.values():
        stream.write(tensor.view(-1).view(torch.uint8).numpy().data)


def dtype_of(pairs: Iterable[LoraPair]) -> torch.dtype:
    """float16 where it holds every number as it is, else float32."""
    return torch.float16 if all(map(_is_half, pairs)) else torch.float32


def _is_half(pair: LoraPair) -> bool:
    """Whether float16 holds every number as it is."""
    values = [value for value in (pair.down, pair.up, pair.magnitude) if value is not None]
    return all(torch.equal(value.half().float(), value) for value in values)


def is_dora_of_peft(pairs: Iterable[LoraPair]) -> bool:
    """Whether PEFT can hold it: with magnitudes of rows in every layer, and of linear ones only."""
    return all(
        pair.magnitude is not None and magnitude_of(pair)[0] == PEFT_MAGNITUDE for pair in pairs
    )


def magnitude_of(pair: LoraPair, *, flat: bool = True) -> tuple[str, Tensor]:
    """The end of the key of its magnitudes, and these: as PEFT has them, which knows rows of
    linear layers only, else, and where not `flat`, as kohya and ComfyUI do."""
    sizes = pair.magnitude
    assert sizes is not None
    if flat and sizes.ndim == 2 and sizes.shape[1] == 1:
        return PEFT_MAGNITUDE, sizes.flatten()
    return "dora_scale", sizes


def ranks_of(pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """Ranks and alphas as PEFT's LoraConfig takes them; alpha is the rank, so the factor is 1."""
    ranks = {path: pair.rank for path, pair in pairs.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    other = {path: rank for path, rank in ranks.items() if rank != common}
    told: dict[str, Any] = {
        "r": common,
        "lora_alpha": common,
        "target_modules": list(ranks),
        "rank_pattern": other,
        "alpha_pattern": other,
    }
    return told | ({"use_dora": True} if is_dora_of_peft(pairs.values()) else {})


def _adapter(pairs: Mapping[str, LoraPair]) -> str:
    """What diffusers hands to PEFT's LoraConfig, under the prefix that it looks for.

    (`diffusers.loaders.lora_base._save_lora_weights`.)
    """
    prefixed = {f"transformer.{key}": value for key, value in ranks_of(pairs).items()}
    return json.dumps(prefixed, indent=2, sort_keys=True)
