"""Tensors of a `.bin`, `.pt` or `.pth`, without trusting it.

Such a file is a zip with a pickle inside: its table of contents, its checksums and every name in
the pickle are looked at before torch opens it with `weights_only=True`. `pipelines.models.weights`
reads models so.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_manager import headers
from lora_manager.errors import LoraError, printable

SUFFIXES = (".bin", ".pt", ".pth")
ZIP, PICKLE = b"PK\x03\x04", (b"\x80", b"(", b"c", b"]", b"}")
"""How a checkpoint of torch begins, and how the bare pickles of before 2020 do."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
# A table of contents, and the structure of a few thousand tensors, are far smaller.
_MAX_ZIP_READ = 4_000_000
_MAX_PICKLE = 2_000_000
_MAX_DEPTH = 5
# Of a tuple with all that is in it, however often: a tensor of a checkpoint has some thirty.
_MAX_VALUES = 100_000
_CHUNK = 1 << 20
# All that a file of tensors names. Narrower than what torch lets through.
_ALLOWED = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int")),
    *(f"torch {name}" for name in ("float32", "float64", "float16", "bfloat16", "int64")),
}
_RUNNING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
# What torch and the interpreter of pickles raise for files that are no checkpoints.
_FAULTS = (
    RuntimeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    pickle.PickleError,
    struct.error,
    zipfile.BadZipFile,
)


def read(file: Path) -> dict[str, Tensor]:
    """The table of tensors in a file that begins with ZIP; they are read when they are used.

    Raises LoraError for anything else than a table of tensors, before a line of it could run.
    """
    name = printable(file.name)
    before = identity(file)
    check(file)
    try:
        root = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _FAULTS as error:
        raise LoraError(
            f"“{name}” is not a file that torch can read ({printable(error, 120)}).",
            "Download it again.",
        ) from None
    if identity(file) != before:
        raise LoraError(f"“{name}” was changed while it was read.", "Try again.")
    return _tensors(root, name, before[2])


def refuse_bare(file: Path) -> LoraError:
    """The sentence for a pickle that is not inside a checkpoint of today."""
    return LoraError(
        f"“{printable(file.name)}” is a bare pickle, which can run code when it is opened; it was"
        " not opened.",
        "Take the .safetensors of the LoRA, or save it again with a torch of 2020 or later.",
    )


def identity(file: Path) -> tuple[int, ...]:
    """Changes when another file takes the name. Raises LoraError."""
    try:
        stat = file.stat()
    except OSError as error:
        raise headers.unreadable(file, error) from None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _tensors(root: Any, name: str, size: int) -> dict[str, Tensor]:
    """Attributes of objects from a file are never used: it may set them to anything."""
    if not isinstance(root, dict):
        raise LoraError(f"“{name}” holds no table of tensors.")
    tensors: dict[str, Tensor] = {}
    for key, value in dict.items(root):
        if not isinstance(key, str):
            raise LoraError(f"“{name}” holds a table that is not one of tensors by name.")
        if not isinstance(value, Tensor):
            raise LoraError(f"“{name}” holds “{printable(key, 80)}”, which is no tensor.")
        value = value.detach()
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise LoraError(f"“{name}” holds “{printable(key, 80)}” in a form that is not read.")
        if value.dtype not in DTYPES.values():
            raise unread(key, str(value.dtype).removeprefix("torch."))
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise LoraError(
                f"“{name}” claims more numbers for “{printable(key, 80)}” than it holds."
            )
        tensors[key] = value
    # Each is copied when it is read, also where all of them are views of one.
    if sum(value.numel() * value.element_size() for value in tensors.values()) > size:
        raise LoraError(f"“{name}” claims more numbers than it holds.")
    return tensors


def unread(key: str, dtype: str) -> LoraError:
    """The sentence for a tensor of a type that carries no weights."""
    return LoraError(
        f"Its tensor “{printable(key, 80)}” is stored as {dtype}; only fp64, fp32, fp16 and bf16"
        " are read."
    )


class _Sparing(io.FileIO):
    """A file that is never read in large pieces, whatever its table of contents asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_ZIP_READ:
            raise LoraError("The table of contents of this file is far too long.")
        return super().read(size) or b""


def check(file: Path, more: Collection[str] = ()) -> None:
    """Looks at the container and the pickle of a checkpoint, which may name `more` than a file of
    tensors does. Raises LoraError.

    torch believes what the pickle says about sizes and does not compare checksums when it maps the
    file; both are done here.
    """
    name = printable(file.name)
    try:
        with _Sparing(str(file)) as stream, zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
            if archive.comment:
                # Behind a comment two readers may find two different tables of contents.
                raise LoraError(f"“{name}” is a zip, but not a checkpoint of torch.")
            _check_contents(infos, os.fstat(stream.fileno()).st_size, name)
            for info in infos:
                with archive.open(info) as record:
                    if info.filename.endswith("/data.pkl"):
                        _check_pickle(record.read(), name, more)
                    while record.read(_CHUNK):
                        pass
    except _FAULTS as error:
        raise LoraError(
            f"“{name}” is damaged or not a checkpoint ({printable(error, 100)}).",
            "Download it again.",
        ) from None


def _check_contents(infos: list[zipfile.ZipInfo], size: int, name: str) -> None:
    names = [info.filename for info in infos]
    top = names[0].split("/")[0] + "/" if names else ""
    if f"{top}data.pkl" not in names or not all(n.startswith(top) for n in names):
        raise LoraError(
            f"“{name}” is a zip, but not a checkpoint of torch.", "Unpack it and give the weights."
        )
    if f"{top}constants.pkl" in names:
        raise LoraError(f"“{name}” is a TorchScript program, not weights.")
    if len(set(names)) != len(names):
        raise LoraError(f"“{name}” holds a record twice.")
    if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in infos):
        raise LoraError(f"“{name}” is compressed or encrypted, as no checkpoint of torch is.")
    if sum(info.file_size for info in infos) > size:
        raise LoraError(f"“{name}” claims to hold more than its size.")
    if any(i.file_size > _MAX_PICKLE for i in infos if i.filename.endswith(".pkl")):
        raise LoraError(f"“{name}” holds far more structure than weights have.")


def _check_pickle(data: bytes, name: str, more: Collection[str]) -> None:
    """Reads the pickle's instructions without following any."""
    nesting = Nesting()
    for code, argument, _ in pickletools.genops(data):
        if code.name == "PROTO" and argument != 2:
            raise LoraError(
                f"“{name}” is pickled by protocol {argument}; only 2 is read, which torch writes."
            )
        if not nesting.follow(code, argument):
            raise LoraError(f"“{name}” is nested as no weights are; it was not opened.")
        named = code.name == "GLOBAL" and argument not in _ALLOWED and argument not in more
        if code.name in _RUNNING or named:
            wanted = printable(str(argument or "code").replace(" ", "."), 80)
            raise LoraError(
                f"“{name}” asks for “{wanted}”, which weights never need; it was not opened.",
                "Take its .safetensors, or save only its tensors.",
            )


class Nesting:
    """How deeply the tuples of a pickle hold tuples, and how many values they hold in all.

    A tuple that holds another one twice, thirty times over, is a few bytes that are hashed for
    hours; one that is nested a million times overruns the interpreter's stack.
    """

    def __init__(self) -> None:
        # (depth, values) of each thing, None for a mark.
        self._stack: list[_Held | None] = []
        self._memo: dict[Any, _Held] = {}

    def follow(self, code: pickletools.OpcodeInfo, argument: Any) -> bool:
        """Follows one instruction; False where a tuple goes too deep or holds too much."""
        stack, before = self._stack, code.stack_before
        if "PUT" in code.name or code.name == "MEMOIZE":
            place = len(self._memo) if code.name == "MEMOIZE" else argument
            self._memo[place] = (stack[-1] if stack else None) or _PLAIN
            return True
        if code.name == "DUP":
            return False
        taken: list[_Held] = []
        if pickletools.markobject in before:
            while stack and (top := stack.pop()) is not None:
                taken.append(top)
            before = before[: before.index(pickletools.markobject)]
        taken += [stack.pop() or _PLAIN for _ in before[: len(stack)]]
        held = self._memo.get(argument, _PLAIN) if "GET" in code.name else _PLAIN
        if "TUPLE" in code.name:
            depth = 1 + max((depth for depth, _ in taken), default=0)
            held = depth, 1 + sum(values for _, values in taken)
        marks = code.name == "MARK"
        stack += [None if marks else held for _ in code.stack_after]
        return held[0] <= _MAX_DEPTH and held[1] <= _MAX_VALUES


_Held = tuple[int, int]
_PLAIN: _Held = (0, 1)
