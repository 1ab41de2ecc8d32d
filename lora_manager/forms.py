"""The forms in which a LoRA can be given to other programs: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lora_manager.errors import LoraError, hint, printable
from lora_manager.library import SUFFIX


@dataclass(frozen=True, kw_only=True)
class ExportForm:
    """A form of LoRA files.

    `written` says what is written, `read_by` which programs read it. `prefix` stands before the
    name of a layer; `halves` are the ends of the keys of its down and up tensors. `fused`: the
    layers are those of the original code, where q, k and v are one; `flat`: dots inside a name are
    underscores. `alpha`: a tensor of its own notes the strength. `folder`: it is a folder. A DoRA's
    magnitudes are called as PEFT does, and in fused forms as kohya does.
    """

    name: str
    label: str
    written: str
    read_by: str
    prefix: str
    halves: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    fused: bool = False
    flat: bool = False
    alpha: bool = False
    folder: bool = False


_ROWS = (
    ExportForm(
        name="diffusers",
        label="diffusers",
        written="transformer.{layer}.lora_A.weight, the strength in the metadata",
        read_by="diffusers with PEFT, ComfyUI, OneTrainer",
        prefix="transformer.",
    ),
    ExportForm(
        name="peft",
        label="PEFT folder",
        written="adapter_model.safetensors and adapter_config.json",
        read_by="PEFT (PeftModel.from_pretrained), ComfyUI, OneTrainer",
        prefix="base_model.model.",
        folder=True,
    ),
    ExportForm(
        name="kohya",
        label="kohya",
        written="lora_unet_blocks_{n}_attn_qkv.lora_down.weight and .alpha",
        read_by="ComfyUI, OneTrainer",
        prefix="lora_unet_",
        halves=("lora_down.weight", "lora_up.weight"),
        fused=True,
        flat=True,
        alpha=True,
    ),
    ExportForm(
        name="comfyui",
        label="ComfyUI",
        written="diffusion_model.blocks.{n}.attn.qkv.lora_A.weight and .alpha",
        read_by="ComfyUI, OneTrainer",
        prefix="diffusion_model.",
        fused=True,
        alpha=True,
    ),
    ExportForm(
        name="original",
        label="original layers",
        written="blocks.{n}.attn.qkv.lora_A.weight and .alpha",
        read_by="OneTrainer",
        prefix="",
        fused=True,
        alpha=True,
    ),
)
FORMS: Mapping[str, ExportForm] = MappingProxyType({row.name: row for row in _ROWS})


def find(name: str) -> ExportForm:
    """The form called `name`. Raises LoraError that says the nearest one."""
    if name not in FORMS:
        raise LoraError(
            f"There is no form of LoRA files called “{printable(name)}”.", hint(name, FORMS, "")
        )
    return FORMS[name]


def _is_folder(path: Path) -> bool | None:
    """None for a name that nothing can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return None


def target(form: ExportForm, out: Path, name: str) -> Path:
    """The file or folder that the LoRA `name` is written to. Raises LoraError.

    `out` is that itself; a folder that is there gets a file with the name of the LoRA.
    """
    known, inside = _is_folder(out.parent), _is_folder(out)
    if known and inside is None:
        raise LoraError(
            f"“{printable(out.name)}” is no name that a file can have.", "Take a shorter one."
        )
    if inside and not form.folder:
        return out / f"{name}{SUFFIX}"
    if not known:
        raise LoraError(
            f"There is no folder {printable(out.parent, 200)}.", "Make it, or choose another."
        )
    if not form.folder and out.suffix.lower() != SUFFIX:
        raise LoraError(
            f"“{printable(out.name)}” does not end with {SUFFIX}.",
            f"Give a file as {name}{SUFFIX}, or a folder that is there.",
        )
    return out
