"""One transformer: from any file or folder that holds it, into diffusers' layout or a `.pth`.

Everything is checked before anything is written: the container (`weights`), every key and shape
(`originals`), the configuration, and while it is copied every number. The two tensors that
diffusers' class has no place for are not lost: positions are computed again from the configuration,
the null caption travels in a file beside the transformer's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipelines import files
from pipelines.errors import ModelError, RequestError, printable
from pipelines.models import original_layout, positions, weights
from pipelines.models.original_layout import Design, WeightLayout
from pipelines.models.sources import (
    CONFIG,
    NULL_CAPTION_FILE,
    TRANSFORMER,
    WEIGHTS,
    ReadOptions,
    Source,
    opened,
)
from pipelines.models.weights import Weights

SavedPrecision = Literal["keep", "bf16", "fp16", "fp32"]
PRECISIONS: Mapping[SavedPrecision, torch.dtype | None] = {
    "keep": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
ORIGINAL_SUFFIXES = (".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written. `null_caption`: kept, drawn anew, or none (diffusers has none itself)."""

    path: Path
    layout: WeightLayout
    design: Design
    averaged: bool
    null_caption: Literal["kept", "drawn", "none"]


CountReport = Callable[[int, int], None]


def is_original(target: Path) -> bool:
    """Whether `target` names a `.pth`, and not a folder. Raises RequestError for other files."""
    suffix = target.suffix.lower()
    if suffix in weights.SUFFIXES and suffix not in ORIGINAL_SUFFIXES:
        raise RequestError(
            "destination",
            f"“{printable(target.name)}” is neither a .pth nor a folder.",
            "Give a name that ends with .pth, or the name of a folder for diffusers' layout.",
        )
    return suffix in ORIGINAL_SUFFIXES


def convert(
    source: Path,
    target: Path,
    options: ReadOptions,
    *,
    precision: SavedPrecision = "keep",
    overwrite: bool = False,
    report: CountReport = lambda done, total: None,
) -> Converted:
    """Writes the transformer of `source` to `target`: a `.pth`, or a folder in diffusers' layout.

    Raises ModelError, RequestError, SaveError; `target` is then as it was.
    """
    original = is_original(target)
    _check_target(source, target, original=original, overwrite=overwrite)
    with opened(source, options) as net:
        with files.whole(target, size(net, precision)) as draft:
            if original:
                drawn = write_original(net, draft, precision, report)
            else:
                write_folder(net, draft, precision, report)
        kept = net.null_caption is not None
        return Converted(
            path=target,
            layout="original" if original else "diffusers",
            design=net.design,
            averaged=net.weights.averaged,
            null_caption="kept" if kept else "drawn" if original and drawn else "none",
        )


def _check_target(source: Path, target: Path, *, original: bool, overwrite: bool) -> None:
    if not target.exists():
        return
    if source.resolve().is_relative_to(target.resolve()):
        raise RequestError("destination", f"{target} is what would be read.", "Choose another.")
    if original != target.is_file():
        kind = "a folder" if original else "a file"
        raise RequestError("destination", f"{target} is {kind}.", "Choose another name.")
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise RequestError(
            "destination", f"{target} exists already.", "Choose another name, or say --overwrite."
        )
    own = {TRANSFORMER, NULL_CAPTION_FILE}
    if target.is_dir() and not {path.name for path in target.iterdir()} <= own:
        # A whole model, or somebody's home: more would go than comes.
        raise RequestError(
            "destination",
            f"{target} holds more than a converted transformer, so it is not replaced.",
            "Choose another folder.",
        )


def size(net: Source, precision: SavedPrecision) -> int:
    """The bytes that the transformer takes when it is written."""
    dtype = PRECISIONS[precision]
    return sum(
        prod(pair.shape) * (dtype or net.dtype(pair)).itemsize
        for pair in original_layout.pairs(net.design.sizes)
    )


def write_folder(
    net: Source,
    folder: Path,
    precision: SavedPrecision = "keep",
    report: CountReport = lambda a, b: None,
) -> None:
    """Writes `folder`/transformer and, where there is one, the null caption beside it.

    Raises ModelError for numbers that are not finite, OSError.
    """
    part = folder / TRANSFORMER
    part.mkdir(parents=True)
    config = json.dumps(net.design.config(), indent=2, sort_keys=True)
    (part / CONFIG).write_text(config + "\n", "utf-8")
    wanted = PRECISIONS[precision]
    homes = {
        name: (pair, index)
        for pair in original_layout.pairs(net.design.sizes)
        for index, name in enumerate(pair.parts)
    }
    done = 0

    def read(name: str) -> Tensor:
        nonlocal done
        done += 1
        report(done, len(homes))
        pair, index = homes[name]
        return _sound(name, net.part(pair, index), wanted)

    announced = {
        name: (wanted or net.dtype(pair), pair.part_shape) for name, (pair, _) in homes.items()
    }
    weights.write(part / WEIGHTS, announced, read)
    caption = net.null_caption
    if caption is not None:
        _sound(original_layout.NULL_CAPTION, caption, None)
        weights.write(
            folder / NULL_CAPTION_FILE,
            {original_layout.NULL_CAPTION: (caption.dtype, tuple(caption.shape))},
            lambda name: caption,
        )


def write_tensors(
    tensors: Weights,
    names: Mapping[str, str],
    file: Path,
    report: CountReport = lambda a, b: None,
) -> None:
    """Writes tensors as they are stored. `names`: new name -> old; ".attentions." become matrices.

    Raises ModelError for numbers that are not finite, OSError.
    """
    done = 0

    def shape(name: str) -> original_layout.Shape:
        stored = tensors.shapes[names[name]]
        return stored[:2] if ".attentions." in name and stored[2:] == (1, 1) else stored

    def read(name: str) -> Tensor:
        nonlocal done
        done += 1
        report(done, len(names))
        return _sound(name, tensors.read(names[name]), None).reshape(shape(name))

    announced = {name: (tensors.dtypes[old], shape(name)) for name, old in names.items()}
    weights.write(file, announced, read)


def write_original(
    net: Source,
    file: Path,
    precision: SavedPrecision = "keep",
    report: CountReport = lambda a, b: None,
) -> bool:
    """Writes a `.pth` that the original code loads; returns whether its null caption was drawn.

    It is `{"state_dict": ..., "pixart_studio": ...}`; the second part notes what the first has no
    place for, as the size of a head. Raises ModelError for numbers that are not finite, OSError.
    """
    design, wanted = net.design, PRECISIONS[precision]
    every = list(original_layout.pairs(design.sizes))
    drawn = net.null_caption is None
    grid = design.sample_size // design.sizes.patch
    table = positions.sincos(design.sizes.width, grid, design.interpolation_scale)
    state: dict[str, Tensor] = {original_layout.POSITIONS: torch.from_numpy(table)}
    for done, pair in enumerate(every, start=1):
        state[pair.original] = _alone(_sound(pair.original, net.stacked(pair), wanted))
        report(done, len(every))
    caption = _drawn_caption(design) if net.null_caption is None else net.null_caption
    state[original_layout.NULL_CAPTION] = _alone(
        _sound(original_layout.NULL_CAPTION, caption, None)
    )
    note = {"head_dim": design.head_dim, "null_caption": "drawn" if drawn else "kept"}
    try:
        # Through an open file, so that the bytes do not depend on the file's name.
        with open(file, "wb") as stream:
            torch.save({"state_dict": state, weights.NOTE: note}, stream)
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return drawn


def _alone(tensor: Tensor) -> Tensor:
    """`tensor` with a storage of its own: a view is saved with all that it looks into."""
    own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone()


def _drawn_caption(design: Design) -> Tensor:
    """A null caption (tokens, channels) as the original class starts with: normal, 1/√channels.

    diffusers' layout has none, because pictures are guided by the empty text there.
    """
    tokens = design.tokens or (
        original_layout.SIGMA_TOKENS if design.is_sigma else original_layout.TOKENS
    )
    channels = design.sizes.caption_channels
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, channels, generator=generator) / channels**0.5


def check(net: Source, report: CountReport = lambda done, total: None) -> None:
    """Reads every number without writing any. Raises ModelError where one is not finite."""
    every = list(original_layout.pairs(net.design.sizes))
    for done, pair in enumerate(every, start=1):
        _sound(pair.original, net.stacked(pair), None)
        report(done, len(every))


def _sound(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` in `dtype`. Raises ModelError where it holds what is no number, before or after."""
    shown = printable(name, 80)
    if not torch.isfinite(tensor).all():
        raise ModelError(
            f"“{shown}” holds numbers that are not finite (NaN); such weights paint nothing.",
            "Take another checkpoint of that training.",
        )
    if dtype is None or tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if not torch.isfinite(result).all():
        raise ModelError(f"“{shown}” holds numbers that do not fit into fp16.", "Take bf16.")
    return result
