"""T5 and VAE as other programs keep them: one file, without the configuration that diffusers wants.

The header of such a file tells which net it is, to the last shape; the configuration follows from
that. The file itself stays where it is: the folder of the part holds a link to it. No tensor
library is loaded here, and no number of a file is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ModelError, printable
from pipelines.models import headers, hub_rows, parts

Shape = tuple[int, ...]
TEXT_WEIGHTS = "model.safetensors"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LINKED = ("text_encoder", "vae")
SUFFIXES = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_TYPES = ("F32", "F16", "BF16")
_SCALES = re.compile(r"(^|\.)(scaled_fp8|scale_weight|scale_input|weight_scale)$")
_EMBEDDING = "shared.weight"
# The same table once more, as some programs write it.
_EMBEDDING_TWIN = "encoder.embed_tokens.weight"
_ATTENTION = "encoder.block.{}.layer.0.SelfAttention."
_FEED_FORWARD = "encoder.block.{}.layer.1.DenseReluDense."
_BLOCK = re.compile(r"encoder\.block\.(\d{1,3})\.")
_XXL_WIDTH = 4096
# Of a T5 with its decoder, which no picture needs. The encoder's class passes over the one and not
# over the other, so that a file with a head has to be converted.
_HEAD = "lm_head."
_DECODER = ("decoder.", _HEAD)
_CHANNELS = (128, 256, 512, 512)
_LATENTS = 4
# How diffusers called the projections of a VAE's attention at first; its loader knows them, too.
_OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
# The names of the first Stable Diffusion code (arXiv 2112.10752), as most programs keep VAEs.
_FIRST = re.compile(r"(encoder|decoder)\.(?:down|up)\.(\d)\.")
_TRAINING = ("loss.", "model_ema.")
_FIRST_NAMES = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"(_blocks\.\d)\.block\.", r"\1.resnets."),
        (r"(_blocks\.\d)\.(down|up)sample\.", r"\1.\2samplers.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"coder\.norm_out\.", "coder.conv_norm_out."),
    )
)


def text_encoder(file: Path) -> dict[str, Any]:
    """config.json of the T5 v1.1 encoder in `file`, as it lies. Raises ModelError."""
    shapes = _shapes(file)
    config = text_config(shapes, file.name)
    if head := next((key for key in shapes if key.startswith(_HEAD)), None):
        raise ModelError(
            f"“{printable(file.name)}” is a T5 with its decoder (“{printable(head, 80)}”), which"
            " cannot be loaded as it lies.",
            "Take a file of the encoder alone, such as t5xxl_fp16.safetensors.",
        )
    return config


def vae(file: Path, scaling: float) -> dict[str, Any]:
    """config.json of the VAE of Stable Diffusion 1 or SDXL in `file`. Raises ModelError.

    `scaling` is the factor of its latents: the two have the same shapes, so a file does not tell.
    """
    shapes = _shapes(file)
    wanted = dict(_vae_shapes())
    names = _first_names(shapes) or {_renamed(key): key for key in shapes}
    found = {
        # The first code has convolutions of one pixel where diffusers has matrices.
        new: shapes[old][:2] if shapes[old][2:] == (1, 1) and ".attentions." in new else shapes[old]
        for new, old in names.items()
    }
    _compare(found, wanted, f"“{printable(file.name)}” is not the VAE that PixArt has")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(_CHANNELS),
        "down_block_types": ["DownEncoderBlock2D"] * len(_CHANNELS),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": _LATENTS,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": scaling,
        "up_block_types": ["UpDecoderBlock2D"] * len(_CHANNELS),
    }


def first_names(file: Path) -> dict[str, str]:
    """Diffusers' name -> the name in `file`, for a VAE of the first Stable Diffusion code, else {}.

    It has to be converted: its attention is stored in other shapes, too. Raises ModelError.
    """
    return _first_names(_shapes(file))


def _first_names(keys: Iterable[str]) -> dict[str, str]:
    own = [key for key in keys if not key.startswith(_TRAINING)]
    return {_new_name(key): key for key in own} if any(_FIRST.match(key) for key in own) else {}


def _new_name(key: str) -> str:
    if match := _FIRST.match(key):
        side, block = match[1], int(match[2])
        down = side == "encoder"
        # The decoder counts its blocks from the end.
        number = block if down else len(_CHANNELS) - 1 - block
        key = f"{side}.{'down' if down else 'up'}_blocks.{number}.{key[match.end() :]}"
    for pattern, new in _FIRST_NAMES:
        key = pattern.sub(new, key)
    return key


def text_config(shapes: Mapping[str, Shape], name: str) -> dict[str, Any]:
    """config.json of the T5 v1.1 encoder whose tensors have these shapes. Raises ModelError.

    A decoder beside it is left out of account. Source: arXiv 1910.10683 and T5 v1.1's release.
    """
    fault = f"“{printable(name)}” is not a T5 v1.1 text encoder"
    own = {key: shape for key, shape in shapes.items() if not key.startswith(_DECODER)}
    attention, feed_forward = _ATTENTION.format(0), _FEED_FORWARD.format(0)
    bias = f"{attention}relative_attention_bias.weight"
    places = (_EMBEDDING, bias, f"{attention}q.weight", f"{feed_forward}wi_0.weight")
    for key in places:
        if len(own.get(key, ())) != 2 or 0 in own[key]:
            raise _misfit(fault, key, own.get(key))
    (vocabulary, width), (buckets, heads), (inner, _), (wide, _) = (own[key] for key in places)
    layers = len({match[1] for key in own if (match := _BLOCK.match(key))})
    if inner % heads:
        raise _misfit(fault, bias, own[bias])
    wanted = dict(_text_shapes(width, inner, wide, layers))
    wanted |= {_EMBEDDING: (vocabulary, width), bias: (buckets, heads)}
    if _EMBEDDING_TWIN in own:
        wanted[_EMBEDDING_TWIN] = wanted[_EMBEDDING]
    _compare(own, wanted, fault)
    config = {
        "architectures": ["T5EncoderModel"],
        "d_ff": wide,
        "d_kv": inner // heads,
        "d_model": width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": heads,
        "num_layers": layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": buckets,
        "tie_word_embeddings": True,
        "use_cache": False,
        "vocab_size": vocabulary,
    }
    for key, value in _xxl().items() if width == _XXL_WIDTH else ():
        if config[key] != value:
            raise ModelError(
                f"{fault} of the size XXL: its {key} is {printable(config[key])}, not {value}."
            )
    return config


def text_names(shapes: Mapping[str, Shape]) -> list[str]:
    """The tensors that `text_config` has looked at, each once."""
    return [key for key in shapes if not key.startswith(_DECODER) and key != _EMBEDDING_TWIN]


def put(file: Path, folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Makes `folder` a part: its configuration, and a link to `file` called `name`.

    Raises OSError where no link can be made, as to a file of another disk on some systems.
    """
    describe(folder, config)
    link(file, folder / name)


def link(file: Path, target: Path) -> None:
    """Makes `target` a link to `file`. Raises OSError."""
    source = file.resolve()
    try:
        os.symlink(source, target)
    except OSError:
        # Windows makes a symbolic link for some people only.
        os.link(source, target)


def lost_link(folder: Path, part: str) -> str | None:
    """Why weights that the folder of a part only links to cannot be used, in a few words, or None.

    The file is gone, or a quantised or damaged one lies there now: its header is read, which takes
    milliseconds.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return None
    # Of several files, only those that are read.
    read = parts.choose(part, names) or sorted(names)
    # As `put` makes it; in the hub's cache the configuration is a link, too.
    ours = part in _LINKED and not (folder / "config.json").is_symlink()
    for file in (folder / name for name in read if name.endswith(".safetensors")):
        if not file.is_symlink():
            continue
        target = Path(os.path.realpath(file))
        # Where a folder above it may not be entered, `Path.exists` raises.
        if not os.path.exists(target):
            return f"is a link to {printable(target, 200)}, which is gone or cannot be read"
        try:
            if ours:
                _shapes(target)
        except ModelError as error:
            reason = error.message.rstrip(".")
            return f"is a link to {printable(target, 200)}, which has changed: {reason}"
    return None


def describe(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes `folder` with the configuration of its part. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def text_pickles(folder: Path) -> list[Path]:
    """The `.bin` files of a T5 that is there as nothing else; [] where it is not whole."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return []
    if any(name.endswith(".safetensors") for name in names):
        return []
    pattern = re.compile(r"pytorch_model(-(\d{5})-of-(\d{5}))?\.bin")
    found = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    counts = {int(match[3]) if match[3] else 1 for match in found}
    numbers = [int(match[2]) if match[2] else 1 for match in found]
    if len(counts) != 1 or numbers != list(range(1, counts.pop() + 1)):
        return []
    return [folder / match[0] for match in found]


def _shapes(file: Path) -> dict[str, Shape]:
    """The shapes in a file whose numbers can be used as they are. Raises ModelError."""
    name = printable(file.name)
    try:
        begin = b""
        # A pipe would keep whoever opens it waiting.
        if file.is_file():
            with open(file, "rb") as stream:
                begin = stream.read(4)
    except OSError as error:
        raise ModelError(f"{printable(file, 200)} cannot be read ({error.strerror}).") from None
    way = "Take the .safetensors in bf16, fp16 or fp32."
    if begin == b"GGUF":
        raise ModelError(f"“{name}” is a GGUF, whose numbers are quantised; none is read.", way)
    if begin == b"PK\x03\x04":
        raise ModelError(f"“{name}” is a pickle, which cannot be used as it lies.", way)
    loose = parts.read_header(file)
    for key, entry in (loose[1] if loose else {}).items():
        kind = entry.get("dtype")
        if kind not in _TYPES or _SCALES.search(key):
            raise ModelError(
                f"“{name}” is quantised (“{printable(key, 80)}” is stored as"
                f" {printable(kind, 20)}), which is not read here.",
                way,
            )
    return {key: entry.shape for key, entry in headers.read(file).tensors.items()}


def _compare(found: Mapping[str, Shape], wanted: Mapping[str, Shape], fault: str) -> None:
    for key, shape in wanted.items():
        if found.get(key) != shape:
            raise _misfit(fault, key, found.get(key), shape)
    if unknown := sorted(set(found) - set(wanted)):
        raise ModelError(f"{fault}: it has “{printable(unknown[0], 80)}”.")


def _misfit(fault: str, key: str, found: Shape | None, wanted: Shape = ()) -> ModelError:
    if found is None:
        return ModelError(f"{fault}: it lacks “{key}”.")
    needed = f" where {'×'.join(map(str, wanted))} is needed" if wanted else ""
    return ModelError(f"{fault}: “{key}” has the shape {'×'.join(map(str, found))}{needed}.")


def _xxl() -> Mapping[str, int | str]:
    """The facts of the text encoder of the released models."""
    sources = hub_rows.known()["alpha-1024"].parts
    return next(source.like for source in sources if source.part == "text_encoder")


def _text_shapes(width: int, inner: int, wide: int, layers: int) -> Iterator[tuple[str, Shape]]:
    yield "encoder.final_layer_norm.weight", (width,)
    for n in range(layers):
        attention, feed_forward = _ATTENTION.format(n), _FEED_FORWARD.format(n)
        for name in "qkv":
            yield f"{attention}{name}.weight", (inner, width)
        yield f"{attention}o.weight", (width, inner)
        yield f"{feed_forward}wi_0.weight", (wide, width)
        yield f"{feed_forward}wi_1.weight", (wide, width)
        yield f"{feed_forward}wo.weight", (width, wide)
        for layer in (0, 1):
            yield f"encoder.block.{n}.layer.{layer}.layer_norm.weight", (width,)


def _renamed(key: str) -> str:
    if ".attentions." in key:
        for old, new in _OLD_NAMES.items():
            key = key.replace(old, new)
    return key


def _layer(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _resnet(name: str, before: int, after: int) -> Iterator[tuple[str, Shape]]:
    yield from _layer(f"{name}.norm1", before)
    yield from _layer(f"{name}.conv1", after, before, 3, 3)
    yield from _layer(f"{name}.norm2", after)
    yield from _layer(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from _layer(f"{name}.conv_shortcut", after, before, 1, 1)


def _middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    for n in (0, 1):
        yield from _resnet(f"{name}.resnets.{n}", width, width)
    yield from _layer(f"{name}.attentions.0.group_norm", width)
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _layer(f"{name}.attentions.0.{projection}", width, width)


def _vae_shapes() -> Iterator[tuple[str, Shape]]:
    """Every tensor of the VAE that Stable Diffusion 1 and SDXL have (arXiv 2112.10752)."""
    first, last = _CHANNELS[0], _CHANNELS[-1]
    yield from _layer("quant_conv", 2 * _LATENTS, 2 * _LATENTS, 1, 1)
    yield from _layer("post_quant_conv", _LATENTS, _LATENTS, 1, 1)
    for side, ends, resnets in (("encoder", _CHANNELS, 2), ("decoder", _CHANNELS[::-1], 3)):
        blocks, sampler = ("down", "downsamplers") if side == "encoder" else ("up", "upsamplers")
        before = ends[0]
        for n, after in enumerate(ends):
            block = f"{side}.{blocks}_blocks.{n}"
            for r in range(resnets):
                yield from _resnet(f"{block}.resnets.{r}", before if r == 0 else after, after)
            if n + 1 < len(ends):
                yield from _layer(f"{block}.{sampler}.0.conv", after, after, 3, 3)
            before = after
        yield from _middle(f"{side}.mid_block", last)
        yield from _layer(f"{side}.conv_norm_out", ends[-1])
    yield from _layer("encoder.conv_in", first, 3, 3, 3)
    yield from _layer("encoder.conv_out", 2 * _LATENTS, last, 3, 3)
    yield from _layer("decoder.conv_in", last, _LATENTS, 3, 3)
    yield from _layer("decoder.conv_out", 3, first, 3, 3)
