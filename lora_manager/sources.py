"""Which file holds the tensors of what a person gives: a file, or a folder as PEFT writes it."""

from __future__ import annotations

from pathlib import Path

from lora_manager import headers
from lora_manager.errors import LoraError, printable

MAX_BYTES = 2_000_000_000
"""Of a file: about thirty times the largest LoRA of PixArt-XL that trainers write."""
_NAMES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)


def weights_file(path: Path) -> Path:
    """The file of tensors at `path`. Raises LoraError where there is none, or one far too large."""
    try:
        folder = path.is_dir()
        file = _in_folder(path) if folder else path
        # A pipe would be waited for.
        if not headers.is_file(file):
            raise LoraError(f"{printable(path, 200)} is not a file or folder of a LoRA.")
        size = file.stat().st_size
    except OSError as error:
        raise headers.unreadable(path, error) from None
    if size > MAX_BYTES:
        raise LoraError(
            f"“{printable(file.name)}” has {size / 1e9:.1f} GB, far more than a LoRA has.",
            "If it is a whole model, import it as one.",
        )
    return file


def _in_folder(folder: Path) -> Path:
    if (folder / "model_index.json").exists() or (folder / "transformer").is_dir():
        raise LoraError(
            f"The folder “{printable(folder.name)}” is that of a whole model.",
            "Give the file of the LoRA itself.",
        )
    for name in _NAMES:
        if headers.is_file(folder / name):
            return folder / name
    found = sorted(file for file in folder.glob("*.safetensors") if headers.is_file(file))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} files that may be one" if found else "no LoRA"
    raise LoraError(f"The folder “{printable(folder.name)}” holds {what}.", "Give the file itself.")
