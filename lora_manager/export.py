"""A LoRA as a file or folder of another program. What the forms are: `forms`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_manager import atomic, drafts, files, strength, targets
from lora_manager.errors import LoraError
from lora_manager.files import Lora, LoraPair
from lora_manager.forms import ExportForm

PEFT_WEIGHTS = "adapter_model.safetensors"


def write(
    lora: Lora,
    form: ExportForm,
    target: Path,
    metadata: Mapping[str, str],
    *,
    base: str = "",
    replace: bool = False,
) -> None:
    """Writes `lora` to `target` in `form`, as float16 where that loses nothing, else float32.

    Every form says that the strength is 1: alpha is the rank. `base` is the model that PEFT should
    put it on. The target is there whole or not at all. Raises LoraError where it cannot be written,
    and without `replace` where it exists.
    """
    if lora.is_dora and not form.fused:
        _check_dora(lora, form)
    # What processes that were killed have left there; nobody else looks after that folder.
    drafts.sweep(target.parent)
    if form.folder:
        _write_folder(lora, form, target, metadata, base=base, replace=replace)
    elif form.fused:
        tensors = _tensors(lora, form)
        noted = {**metadata, "format": "pt"}
        with atomic.written(target, replace=replace) as stream:
            files.save(stream, tensors, noted)
    else:
        files.write(target, lora, metadata, replace=replace)


def _check_dora(lora: Lora, form: ExportForm) -> None:
    """PEFT has magnitudes in all layers or in none, and of rows alone. Raises LoraError."""
    if files.is_dora_of_peft(lora.pairs.values()):
        return
    partly = any(pair.magnitude is None for pair in lora.pairs.values())
    why = "has magnitudes in some of its layers only" if partly else "does not measure rows alone"
    raise LoraError(
        f"This DoRA {why}, so it cannot be written in the form {form.name}.",
        "Take the form kohya, comfyui or original.",
    )


def _write_folder(
    lora: Lora,
    form: ExportForm,
    target: Path,
    metadata: Mapping[str, str],
    *,
    base: str,
    replace: bool,
) -> None:
    names = {PEFT_WEIGHTS, strength.CONFIG} if replace else set()
    tensors = _tensors(lora, form)
    with atomic.folder(target, replaces=names) as draft:
        with open(draft / PEFT_WEIGHTS, "xb") as stream:
            files.save(stream, tensors, {**metadata, "format": "pt"})
        text = json.dumps(_peft_config(lora, base), indent=2, sort_keys=True)
        (draft / strength.CONFIG).write_text(text + "\n", "utf-8")


def _tensors(lora: Lora, form: ExportForm) -> dict[str, Tensor]:
    layers = _fused(lora.pairs) if form.fused else {p: lora.pairs[p] for p in sorted(lora.pairs)}
    dtype = files.dtype_of(layers.values())
    tensors: dict[str, Tensor] = {}
    for name, pair in layers.items():
        key = form.prefix + (name.replace(".", "_") if form.flat else name)
        for end, value in zip(form.halves, (pair.down, pair.up), strict=True):
            # Copies: pieces of one fused layer may share memory, which the format does not know.
            tensors[f"{key}.{end}"] = value.to(dtype, copy=True).contiguous()
        if pair.magnitude is not None:
            end, value = files.magnitude_of(pair, flat=not form.fused)
            tensors[f"{key}.{end}"] = value.to(dtype, copy=True).contiguous()
        if form.alpha:
            # Its type holds every rank that there is exactly, as float16 would not.
            tensors[f"{key}.alpha"] = torch.tensor(float(pair.rank), dtype=torch.float32)
    return tensors


def _fused(pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """The pairs by the names of the original layers, exactly the same changes."""
    found: dict[str, LoraPair] = {}
    for name, paths in targets.originals(pairs).items():
        pieces = [pairs.get(path) for path in paths]
        found[name] = _one(name, pieces) if len(pieces) > 1 else pairs[paths[0]]
    return found


def _one(name: str, pieces: list[LoraPair | None]) -> LoraPair:
    """The pieces of a fused layer as one change. A piece that is not changed gets zeros."""
    there = [piece for piece in pieces if piece is not None]
    if len({piece.shape for piece in there}) != 1:
        raise LoraError(
            f"The parts of “{name}” have different sizes, so they cannot be written as one layer.",
            "Take the form diffusers or peft, which keeps them apart.",
        )
    sizes = _sizes(name, pieces)
    first, rows = there[0], there[0].shape[0]
    # So it was before it was taken apart: one down half for all.
    shared = len(there) == len(pieces) and all(
        torch.equal(piece.down, first.down) for piece in there
    )
    if shared:
        up = torch.cat([piece.up for piece in there])
        return LoraPair(down=first.down, up=up, magnitude=sizes)
    up = torch.zeros(rows * len(pieces), sum(piece.rank for piece in there))
    column = 0
    for index, piece in enumerate(pieces):
        if piece is not None:
            up[index * rows : (index + 1) * rows, column : column + piece.rank] = piece.up
            column += piece.rank
    return LoraPair(down=torch.cat([piece.down for piece in there]), up=up, magnitude=sizes)


def _sizes(name: str, pieces: list[LoraPair | None]) -> Tensor | None:
    """The magnitudes of a fused layer, None where it has none. Raises LoraError where the pieces'
    are not those of one: a piece without keeps sizes that only the model knows."""
    found = [piece.magnitude for piece in pieces if piece is not None]
    measured = [sizes for sizes in found if sizes is not None]
    if not measured:
        return None
    rows = [sizes for sizes in measured if sizes.shape[1] == 1]
    if len(rows) == len(pieces):
        return torch.cat(rows)
    why = "measures the columns" if len(rows) < len(measured) else "has not all parts"
    raise LoraError(
        f"This DoRA {why} of “{name}”, which is one layer there, so it cannot be written in that"
        " form.",
        "Take the form diffusers or peft, which keeps them apart.",
    )


def _peft_config(lora: Lora, base: str) -> dict[str, Any]:
    """What `PeftModel.from_pretrained` reads (peft.LoraConfig); the factor of each change is 1."""
    return {
        "use_dora": False,
        **files.ranks_of(lora.pairs),
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "task_type": None,
        "use_rslora": False,
    }
