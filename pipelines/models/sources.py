"""A PixArt transformer from any file or folder that holds one, found sound before it is used.

Accepted are diffusers' folders (also of the class's former name, in shards, or with a `.bin`),
single files of either layout, and the `.pth` of the original code. What the container holds is
checked by `weights`, every key and shape by `originals`, and the configuration here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.catalog import ROW_FILE
from pipelines.errors import LoraFileError, ModelError, RequestError, printable
from pipelines.models import original_layout, positions, weights
from pipelines.models.original_layout import Design, KeyPair, Sizes, WeightLayout
from pipelines.models.weights import Weights

NULL_CAPTION_FILE = "null_caption.safetensors"
TRANSFORMER = "transformer"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_ADAPTER = "adapter_config.json"
_CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
_MAX_CONFIG_BYTES = 100_000
# What a PixArt has and diffusers' classes could have otherwise; a config that asks for anything
# else describes another net.
_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": False,
    "use_linear_projection": False,
}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a source. The last three answer what a bare file may not tell.

    `image_size` is the side in pixels that the weights were trained for.
    """

    weights: weights.Choice = "auto"
    head_dim: int | None = None
    image_size: int | None = None
    interpolation_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A transformer whose keys, shapes and configuration were found sound.

    `null_caption` is what the original code puts in place of a dropped text, (tokens, channels).
    """

    weights: Weights
    layout: WeightLayout
    design: Design
    null_caption: Tensor | None

    def dtype(self, pair: KeyPair) -> torch.dtype:
        """The stored dtype of a pair of tensors."""
        return self.weights.dtypes[pair.original if self.layout == "original" else pair.parts[0]]

    def part(self, pair: KeyPair, index: int) -> Tensor:
        """A tensor of diffusers' layout."""
        if self.layout == "diffusers":
            return self.weights.read(pair.parts[index])
        return self.weights.read(pair.original).chunk(len(pair.parts))[index]

    def stacked(self, pair: KeyPair) -> Tensor:
        """A tensor of the original layout."""
        if self.layout == "original":
            return self.weights.read(pair.original)
        parts = [self.weights.read(name) for name in pair.parts]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


@contextmanager
def opened(source: Path, options: ReadOptions) -> Iterator[Source]:
    """The transformer of a file or folder. Raises ModelError, RequestError."""
    _check_options(options)
    folder = _folder_of(source)
    paths = [source] if folder is None else _weight_files(folder)
    with weights.opened(paths, options.weights) as found:
        layout = original_layout.layout_of(found.shapes.keys())
        sizes = original_layout.measure(found.shapes, layout)
        if layout == "diffusers" and (source.parent / CONFIG).is_file():
            # The weights of a folder, named by themselves.
            folder = folder or source.parent
        tokens, null = _null_caption(found, sizes)
        if null is None and layout == "diffusers" and folder is not None:
            tokens, null = _beside(folder, sizes)
        place = _place(found, sizes) if layout == "original" else None
        if layout == "diffusers" and folder is not None:
            design = _configured(read_config(folder / CONFIG), sizes, options)
        else:
            design = _bare(found, sizes, options, place)
        yield Source(
            weights=found,
            layout=layout,
            design=replace(design, tokens=tokens),
            null_caption=null,
        )


def _check_options(options: ReadOptions) -> None:
    """Numbers that are none of their kind are refused also where nothing asks for them."""
    longest = positions.MAX_SAMPLE_SIZE * original_layout.LATENT_PIXELS
    side = options.image_size
    if side is not None and (side % original_layout.LATENT_PIXELS or not 16 <= side <= longest):
        raise RequestError(
            "image_size",
            f"{side} is not the side of a picture (16 to {longest} pixels, in steps of"
            f" {original_layout.LATENT_PIXELS}).",
            "Give --image-size, as 256, 512 or 1024.",
        )
    if options.head_dim is not None and options.head_dim < 1:
        raise RequestError("head_dim", f"Heads cannot have {options.head_dim} channels.")
    if options.interpolation_scale is not None:
        _scale(options.interpolation_scale)


def _folder_of(source: Path) -> Path | None:
    """The folder that holds the transformer, or None for a single file. Raises RequestError."""
    if source.is_dir():
        for folder in (source / TRANSFORMER, source):
            if (folder / CONFIG).is_file():
                return folder
        if (source / _ADAPTER).is_file():
            # What it names as its base is neither read nor fetched.
            raise LoraFileError(
                f"{printable(source.name)} is a LoRA, not a model by itself.",
                "Bring it in with: launch.py loras import",
            )
        raise ModelError(
            f"{printable(source, 200)} holds no transformer in diffusers' layout.",
            "Give the folder with model_index.json or with the transformer's config.json.",
        )
    if not source.exists():
        raise RequestError("source", f"There is no file or folder {printable(source, 200)}.")
    return None


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights in a transformer's folder: whole, in shards, in one variant, old."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        table = read_json(index, limit=10 * _MAX_CONFIG_BYTES).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) else set()
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise ModelError(f"{index.name} does not list the files of the weights.")
        return [folder / name for name in sorted(names)]
    for pattern in ("*.safetensors", "diffusion_pytorch_model.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found
    raise ModelError(f"{printable(folder, 200)} holds no {WEIGHTS}.")


def read_json(file: Path, limit: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises ModelError."""
    shown = f"{file.parent.name}/{file.name}"
    try:
        if not file.is_file():
            raise ModelError(f"{printable(shown, 120)} is missing.")
        with open(file, "rb") as stream:
            text = stream.read(limit + 1)
        values = json.loads(text.decode("utf-8")) if len(text) <= limit else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{printable(shown, 120)} cannot be read ({printable(error, 80)})."
        ) from None
    if not isinstance(values, dict):
        raise ModelError(f"{printable(shown, 120)} is not a configuration.")
    return values


def read_config(file: Path) -> dict[str, Any]:
    """The configuration of a PixArt transformer, also in its former class. Raises ModelError."""
    config = read_json(file)
    found = config.get("_class_name")
    if found not in _CLASSES:
        raise ModelError(f"Its transformer is a “{printable(found)}”, not a {_CLASSES[0]}.")
    for key, wanted in _FIXED.items():
        if config.get(key, wanted) != wanted:
            raise ModelError(
                f"Its transformer's {CONFIG} has {key} “{printable(config[key])}”, which no PixArt"
                " has."
            )
    return config


def _configured(config: dict[str, Any], sizes: Sizes, options: ReadOptions) -> Design:
    """The design that a configuration and the shapes of the weights agree on."""
    width, channels = sizes.width, sizes.in_channels
    out = config.get("out_channels", 2 * channels)
    told = {
        "num_layers": config.get("num_layers", 28),
        "patch_size": config.get("patch_size", 2),
        "in_channels": config.get("in_channels", 4),
        "out_channels": channels if out is None else out,
        "caption_channels": config.get("caption_channels"),
        "cross_attention_dim": config.get("cross_attention_dim", 1152),
        "use_additional_conditions": config.get("use_additional_conditions"),
    }
    is_so: dict[str, Any] = {
        "num_layers": sizes.layers,
        "patch_size": sizes.patch,
        "in_channels": channels,
        "out_channels": sizes.out_channels,
        "caption_channels": sizes.caption_channels,
        "cross_attention_dim": width,
        "use_additional_conditions": sizes.micro_conditions,
    }
    if told["use_additional_conditions"] is None:
        del told["use_additional_conditions"]
    for key, value in told.items():
        if value != is_so[key]:
            raise ModelError(
                f"Its transformer's {CONFIG} says {key} {printable(value)}, its weights say"
                f" {is_so[key]}."
            )
    heads, dim = config.get("num_attention_heads", 16), config.get("attention_head_dim", 72)
    if type(heads) is not int or type(dim) is not int or heads < 1 or heads * dim != width:
        raise ModelError(
            f"Its transformer's {CONFIG} says {printable(heads)} heads of {printable(dim)}, its"
            f" weights are {width} wide."
        )
    sample = config.get("sample_size", 128)
    if type(sample) is not int or not 1 <= sample <= positions.MAX_SAMPLE_SIZE:
        raise ModelError(f"Its transformer's {CONFIG} says sample_size {printable(sample)}.")
    if sample % sizes.patch:
        raise ModelError(f"Its transformer's patches do not fill its sample_size {sample}.")
    side = sample * original_layout.LATENT_PIXELS
    if options.image_size not in (None, side):
        raise RequestError(
            "image_size",
            f"Its {CONFIG} says that it was trained for {side} pixels, so {options.image_size} is"
            " not possible.",
        )
    return Design(
        sizes=sizes,
        head_dim=dim,
        sample_size=sample,
        interpolation_scale=_configured_scale(config, sample, options),
    )


def _configured_scale(config: dict[str, Any], sample: int, options: ReadOptions) -> float:
    """The scale that was asked for, else that of the configuration, else that of the size.

    diffusers' class takes 1 for all sizes up to 512 pixels where it is left out, and the models for
    256 were trained with 0.5 or 1: nobody can know there. Raises ModelError, RequestError.
    """
    told = config.get("interpolation_scale")
    if options.interpolation_scale is not None:
        return _scale(options.interpolation_scale)
    if told is not None:
        try:
            return _scale(told)
        except RequestError as error:
            raise ModelError(
                f"Its transformer's {CONFIG}: {error.message}",
                "Give the right one with --interpolation-scale.",
            ) from None
    if sample % 64:
        raise RequestError(
            "interpolation_scale",
            f"Its {CONFIG} leaves out interpolation_scale, and models for"
            f" {sample * original_layout.LATENT_PIXELS} pixels were trained with several.",
            "Give --interpolation-scale, as 0.5 or 1.",
        )
    return sample / 64


def _scale(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 64:
        raise RequestError(
            "interpolation_scale", f"{printable(value)} is not an interpolation scale (0 to 64)."
        )
    return float(value)


def _place(found: Weights, sizes: Sizes) -> tuple[int, float] | None:
    """(sample_size, interpolation_scale) from the stored positions, if there are any."""
    shape = found.shapes.get(original_layout.POSITIONS)
    if shape is None:
        return None
    if len(shape) != 3 or shape[2] != sizes.width:
        raise ModelError(f"Its positions have the shape {'×'.join(map(str, shape))}.")
    tensor = found.read(original_layout.POSITIONS)
    name = str(tensor.dtype).removeprefix("torch.")
    return positions.derive(tensor.float().numpy(), sizes.patch, positions.TOLERANCES[name])


def _bare(
    found: Weights, sizes: Sizes, options: ReadOptions, place: tuple[int, float] | None
) -> Design:
    """The design of weights without a configuration. Raises RequestError for what they hide."""
    noted = found.note.get("head_dim")
    head_dim = original_layout.head_dim(
        sizes.width, noted if options.head_dim is None and type(noted) is int else options.head_dim
    )
    if place is None:
        place = _asked_place(sizes, options)
    sample, scale = place
    for field, wanted, is_so in (
        ("image_size", options.image_size, sample * original_layout.LATENT_PIXELS),
        ("interpolation_scale", options.interpolation_scale, scale),
    ):
        if wanted is not None and wanted != is_so:
            raise RequestError(
                field, f"Its stored positions say {field} {is_so:g}, so {wanted:g} is not possible."
            )
    return Design(sizes=sizes, head_dim=head_dim, sample_size=sample, interpolation_scale=scale)


def _asked_place(sizes: Sizes, options: ReadOptions) -> tuple[int, float]:
    """Size and scale of a file without positions. Raises RequestError where nobody can know."""
    side = options.image_size
    if side is None and sizes.micro_conditions:
        side = 1024
    if side is None:
        raise RequestError(
            "image_size",
            "It holds no positions, so it does not tell for which picture size it was trained.",
            "Give --image-size, as 256, 512 or 1024.",
        )
    sample, rest = divmod(side, original_layout.LATENT_PIXELS)
    if rest or sample % sizes.patch or not 1 <= sample <= positions.MAX_SAMPLE_SIZE:
        raise RequestError("image_size", f"No PixArt was trained for {side} pixels.")
    if options.interpolation_scale is None and sample < 64:
        raise RequestError(
            "interpolation_scale",
            f"It holds no positions, and models for {side} pixels were trained with several"
            " interpolation scales.",
            "Give --interpolation-scale, as 0.5 or 1.",
        )
    scale = options.interpolation_scale
    return sample, sample / 64 if scale is None else _scale(scale)


def _null_caption(found: Weights, sizes: Sizes) -> tuple[int | None, Tensor | None]:
    """(tokens, null caption) among the weights; one that was only drawn for them is not kept."""
    for key in (original_layout.NULL_CAPTION, original_layout.RELEASED_NULL_CAPTION):
        if key in found.shapes:
            shape = found.shapes[key]
            _check_caption(shape, sizes)
            drawn = found.note.get("null_caption") == "drawn"
            return shape[0], None if drawn else found.read(key)
    return None, None


def _beside(folder: Path, sizes: Sizes) -> tuple[int | None, Tensor | None]:
    """(tokens, null caption) from what lies beside a transformer's folder."""
    if folder.name != TRANSFORMER:
        return None, None
    file = folder.parent / NULL_CAPTION_FILE
    if file.is_file():
        with weights.opened([file]) as found:
            shape = found.shapes.get(original_layout.NULL_CAPTION, ())
            _check_caption(shape, sizes)
            return shape[0], found.read(original_layout.NULL_CAPTION)
    try:
        tokens = tomllib.loads((folder.parent / ROW_FILE).read_text("utf-8")).get("tokens")
    except (OSError, ValueError, RecursionError):
        return None, None
    return (tokens if type(tokens) is int and 2 <= tokens <= 512 else None), None


def _check_caption(shape: original_layout.Shape, sizes: Sizes) -> None:
    if len(shape) != 2 or not 2 <= shape[0] <= 512 or shape[1] != sizes.caption_channels:
        raise ModelError(
            f"Its null caption has the shape {'×'.join(map(str, shape))}, its texts have"
            f" {sizes.caption_channels} channels."
        )
