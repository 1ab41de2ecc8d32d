"""Weights from anywhere -> tensors by name, without trusting a file.

Safetensors are read by their checked header (`headers`), tensor by tensor from the file that was
checked. A `.pth` is a zip with a pickle inside: its table of contents, its checksums and every name
in the pickle are looked at before torch opens it with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lora_manager import pickles
from pipelines.errors import ModelError, RequestError, model_errors, printable
from pipelines.memory.planning import is_out_of_memory
from pipelines.models import headers, original_layout

Choice = Literal["auto", "ema", "raw"]
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
NOTE = "pixart_studio"
"""The key under which our checkpoints say what the original layout has no place for."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# What a checkpoint may name besides tensors of weights: counters and masks of a training.
_MORE = {
    "collections Counter",
    *(f"torch {name}Storage" for name in ("Bool", "Byte", "Char", "Short")),
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors that can be read one by one. `averaged`: they are the EMA of a training."""

    shapes: Mapping[str, original_layout.Shape]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    averaged: bool = False
    note: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def opened(files: list[Path], choice: Choice = "auto") -> Iterator[Weights]:
    """The tensors of `files` together, for as long as the block runs.

    Raises ModelError for a file that is not sound, RequestError where `choice` is not there.
    """
    with ExitStack() as stack:
        parts = [_of_file(file, choice, stack) for file in files]
        shapes: dict[str, original_layout.Shape] = {}
        homes: dict[str, Weights] = {}
        for part in parts:
            for name, shape in part.shapes.items():
                if name in homes:
                    raise ModelError(f"Two of its files hold “{printable(name, 80)}”.")
                shapes[name], homes[name] = shape, part
        if choice == "ema" and not all(part.averaged for part in parts):
            raise RequestError("weights", "It holds no averaged weights (EMA).", "Take auto.")
        yield Weights(
            shapes=shapes,
            dtypes={name: part.dtypes[name] for name, part in homes.items()},
            read=lambda name: homes[name].read(name),
            averaged=any(part.averaged for part in parts),
            note=parts[0].note if parts else {},
        )


def _of_file(file: Path, choice: Choice, stack: ExitStack) -> Weights:
    if not file.is_file():
        raise ModelError(f"{printable(file, 200)} is not a file that holds weights.")
    try:
        stream = stack.enter_context(open(file, "rb"))
        begin = stream.read(4)
    except OSError as error:
        raise ModelError(f"{printable(file, 200)} cannot be read ({error.strerror}).") from None
    # By content: what a file is called says little.
    if begin == b"PK\x03\x04":
        return _of_checkpoint(file, choice)
    if file.suffix.lower() in PICKLE_SUFFIXES and begin[:1] in (b"\x80", b"(", b"c", b"]", b"}"):
        raise ModelError(
            f"“{printable(file.name)}” is a bare pickle, which can run code when it is opened; it"
            " was not opened.",
            "Take the .safetensors of the model, or save it again with a torch of 2020 or later.",
        )
    return _of_safetensors(file, stream)


def _of_safetensors(file: Path, stream: io.BufferedReader) -> Weights:
    tensors = headers.of_stream(stream, file.name).tensors
    for key, entry in tensors.items():
        if entry.dtype not in DTYPES:
            raise _unread(key, entry.dtype)
    prefix = original_layout.unwrapped(tensors)
    tensors = {key.removeprefix(prefix): entry for key, entry in tensors.items()}

    def read(name: str) -> Tensor:
        entry = tensors[name]
        data = bytearray(entry.size)
        stream.seek(entry.start)
        # The file that was checked stays open, so another one under its name changes nothing.
        if stream.readinto(data) != entry.size:
            raise ModelError(f"“{printable(file.name)}” was changed while it was read.")
        if not data:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)

    return Weights(
        shapes={name: entry.shape for name, entry in tensors.items()},
        dtypes={name: DTYPES[entry.dtype] for name, entry in tensors.items()},
        read=read,
    )


def _of_checkpoint(file: Path, choice: Choice) -> Weights:
    name = printable(file.name)
    with model_errors():
        before = pickles.identity(file)
        pickles.check(file, _MORE)
    try:
        root = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"“{name}” is not a checkpoint that torch can read ({printable(error, 120)}).",
            "Download it again.",
        ) from None
    with model_errors():
        same = pickles.identity(file) == before
    if not same:
        raise ModelError(f"“{name}” was changed while it was read.", "Try again.")
    tensors, averaged = _chosen(root, choice, name)
    prefix = original_layout.unwrapped(tensors)
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    note = dict.get(root, NOTE)
    return Weights(
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
        dtypes={key: value.dtype for key, value in tensors.items()},
        read=lambda key: tensors[key].contiguous(),
        averaged=averaged,
        note=dict(note) if type(note) is dict else {},
    )


def _chosen(root: Any, choice: Choice, name: str) -> tuple[dict[str, Tensor], bool]:
    """The weights of a loaded checkpoint, and whether they are averaged.

    Attributes of objects from a file are never used: a checkpoint may set them to anything.
    """
    if not isinstance(root, dict):
        raise ModelError(f"“{name}” holds no table of weights.")
    raw, ema = dict.get(root, "state_dict"), dict.get(root, "state_dict_ema")
    if choice == "ema" and not ema:
        raise RequestError(
            "weights", f"“{name}” holds no averaged weights (EMA).", "Take auto or raw."
        )
    found, averaged = (ema, True) if ema and choice != "raw" else (raw, False)
    if found is None:
        # Weights that were saved bare.
        found = {key: root[key] for key in dict.keys(root) if key != NOTE}
    if not isinstance(found, dict):
        raise ModelError(f"“{name}” holds no table of weights.")
    tensors: dict[str, Tensor] = {}
    for key, value in dict.items(found):
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(f"“{name}” holds “{printable(key, 80)}”, which is no tensor.")
        value = value.detach()
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise _unread(key, "another kind")
        if value.dtype not in DTYPES.values():
            raise _unread(key, str(value.dtype).removeprefix("torch."))
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(
                f"“{name}” claims more numbers for “{printable(key, 80)}” than it holds."
            )
        tensors[key] = value
    return tensors, averaged


def _unread(key: str, dtype: str) -> ModelError:
    return ModelError(
        f"Its tensor “{printable(key, 80)}” is stored as {dtype}; only fp64, fp32, fp16 and bf16"
        " are read."
    )


def write(
    file: Path,
    tensors: Mapping[str, tuple[torch.dtype, original_layout.Shape]],
    read: Callable[[str], Tensor],
) -> None:
    """Writes safetensors one tensor at a time, in the order and form of the library of that name.

    `read(name)` gives each tensor with its announced dtype and shape. Raises OSError.
    """
    order = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    labels = {dtype: label for label, dtype in DTYPES.items()}
    names = sorted(tensors, key=lambda name: (order.index(tensors[name][0]), name))
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        table[name] = {"dtype": labels[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with open(file, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            tensor: Tensor = read(name)
            assert (tensor.dtype, tuple(tensor.shape)) == tensors[name]
            stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
