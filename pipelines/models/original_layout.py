"""PixArt transformers by their keys and shapes, in the original layout and in diffusers'.

The layouts hold the same numbers under other names; the attention projections that the original
code stacks along their first axis (q, k, v of self-attention; k, v of cross-attention) are separate
in diffusers. One list of pairs serves both directions. Facts: PixArt-alpha's `diffusion/model/nets`
and diffusers' `PixArtTransformer2DModel`; both nets give the same output through this mapping.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.errors import LoraFileError, ModelError, RequestError, printable

Shape = tuple[int, ...]
WeightLayout = Literal["original", "diffusers"]

POSITIONS = "pos_embed"
NULL_CAPTION = "y_embedder.y_embedding"
RELEASED_NULL_CAPTION = "caption_projection.y_embedding"
SIDE_TENSORS: Mapping[WeightLayout, tuple[str, ...]] = {
    "original": (POSITIONS, NULL_CAPTION),
    "diffusers": (RELEASED_NULL_CAPTION,),
}
"""Keys that checkpoints have and diffusers' class has not: its first release carried the null
caption along, and so do the folders that were published then."""
TOKENS, SIGMA_TOKENS = 120, 300
LATENT_PIXELS = 8
_FREQUENCIES = 256
# The widths of DiT (arXiv 2212.09748, table 1) and PixArt-XL with their heads' dimension: shapes do
# not tell it, because all heads are stacked in one matrix.
_HEAD_DIMS = {384: 64, 768: 64, 1024: 64, 1152: 72}
# What is several times larger than any model of the family is refused before memory is asked for.
_LIMITS = {
    "width": 4608,
    "layers": 64,
    "patch": 8,
    "in_channels": 64,
    "out_channels": 128,
    "caption_channels": 16_384,
}
_WRAPPERS = ("module.", "_orig_mod.", "model.", "diffusion_model.")
_LORA = "a LoRA, not a model by itself"
# Keys that betray another kind of file, each with what it is.
_OTHERS = (
    (r"controlnet\.\d+\.copied_block\.", "a ControlNet for PixArt, not a model by itself"),
    (r"controlnet_blocks\.\d+\.", "a ControlNet for PixArt, not a model by itself"),
    (
        r"(.*\.)?(lora_(A|B|down|up|mid|a|b|magnitude_vector)|dora_scale|hada_[wt][12](_[ab])?"
        r"|lokr_(w[12](_[ab])?|t2)|oft_(R|blocks|diag))\b|(lora|lycoris)_\w+\.alpha$",
        _LORA,
    ),
    (r"y_embedder\.embedding_table\.", "a class-conditional DiT, which reads no text"),
    (r"(model\.)?diffusion_model\.|(down|up)_blocks\.|input_blocks\.", "a Stable Diffusion model"),
    (r"double_blocks\.|single_transformer_blocks\.", "a FLUX model"),
    (r"joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"(encoder|decoder)\.(conv_in|down_blocks|up_blocks)\b|post_quant_conv\.", "a VAE"),
    (r"(encoder\.block|shared)\.", "a T5 text encoder"),
)
_SIGMA_KEYS = re.compile(r"blocks\.\d+\.attn\.(q_norm|k_norm|sr|norm)\.")


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A tensor of the original layout and the parts that diffusers makes of it.

    The parts are equal pieces of `shape` along the first axis, in this order.
    """

    original: str
    parts: tuple[str, ...]
    shape: Shape

    @property
    def part_shape(self) -> Shape:
        """The shape of each part."""
        return (self.shape[0] // len(self.parts), *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of a PixArt transformer say. `micro_conditions`: it is told picture sizes."""

    width: int
    layers: int
    patch: int
    in_channels: int
    out_channels: int
    caption_channels: int
    micro_conditions: bool


@dataclass(frozen=True, kw_only=True)
class Design:
    """A transformer that can be built. `sample_size` counts latents along a side.

    `tokens` is the text length it was trained with, where the file tells.
    """

    sizes: Sizes
    head_dim: int
    sample_size: int
    interpolation_scale: float
    tokens: int | None = None

    @property
    def is_sigma(self) -> bool:
        """PixArt-Σ reads 300 tokens and is never told sizes, also at 1024 pixels and above."""
        large = self.sample_size >= 128 and not self.sizes.micro_conditions
        return self.tokens == SIGMA_TOKENS or (self.tokens is None and large)

    @property
    def side(self) -> int:
        """The side in pixels that it was trained for."""
        return self.sample_size * LATENT_PIXELS

    @property
    def family(self) -> str:
        """The name for people, e.g. "PixArt-α 1024-MS"."""
        sizes = self.sizes
        if (sizes.width, sizes.layers) != (1152, 28):
            return f"a PixArt of {sizes.layers} blocks, {sizes.width} wide, for {self.side} px"
        if self.is_sigma:
            return f"PixArt-Σ {self.side}{'-MS' if self.side > 256 else ''}"
        return f"PixArt-α {self.side}{'-MS' if sizes.micro_conditions else ''}"

    def config(self) -> dict[str, Any]:
        """config.json of the transformer; nothing is left to a default of the class."""
        sizes, scale = self.sizes, self.interpolation_scale
        return {
            "_class_name": "PixArtTransformer2DModel",
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "attention_head_dim": self.head_dim,
            "attention_type": "default",
            "caption_channels": sizes.caption_channels,
            "cross_attention_dim": sizes.width,
            "dropout": 0.0,
            "in_channels": sizes.in_channels,
            "interpolation_scale": int(scale) if scale == int(scale) else scale,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "norm_num_groups": 32,
            "norm_type": "ada_norm_single",
            "num_attention_heads": sizes.width // self.head_dim,
            "num_embeds_ada_norm": 1000,
            "num_layers": sizes.layers,
            "out_channels": sizes.out_channels,
            "patch_size": sizes.patch,
            "sample_size": self.sample_size,
            "upcast_attention": False,
            "use_additional_conditions": sizes.micro_conditions,
        }


def _linear(
    original: str, parts: str | tuple[str, ...], rows: int, columns: int
) -> Iterator[KeyPair]:
    names = (parts,) if isinstance(parts, str) else parts
    for kind, shape in (("weight", (rows, columns)), ("bias", (rows,))):
        yield KeyPair(
            original=f"{original}.{kind}", parts=tuple(f"{n}.{kind}" for n in names), shape=shape
        )


def block_pairs(original: str, diffusers: str, width: int) -> Iterator[KeyPair]:
    """The tensors of one block under two prefixes that end with a dot.

    A ControlNet's copied blocks are blocks too: only their prefixes differ.
    """
    a, b, h = original, diffusers, width
    yield KeyPair(original=f"{a}scale_shift_table", parts=(f"{b}scale_shift_table",), shape=(6, h))
    heads = tuple(f"{b}attn1.to_{name}" for name in "qkv")
    yield from _linear(f"{a}attn.qkv", heads, 3 * h, h)
    yield from _linear(f"{a}attn.proj", f"{b}attn1.to_out.0", h, h)
    yield from _linear(f"{a}cross_attn.q_linear", f"{b}attn2.to_q", h, h)
    yield from _linear(f"{a}cross_attn.kv_linear", heads_of(b, "attn2", "kv"), 2 * h, h)
    yield from _linear(f"{a}cross_attn.proj", f"{b}attn2.to_out.0", h, h)
    yield from _linear(f"{a}mlp.fc1", f"{b}ff.net.0.proj", 4 * h, h)
    yield from _linear(f"{a}mlp.fc2", f"{b}ff.net.2", h, 4 * h)


def heads_of(prefix: str, attention: str, letters: str) -> tuple[str, ...]:
    """The separate projections of diffusers in the order in which the original stacks them."""
    return tuple(f"{prefix}{attention}.to_{letter}" for letter in letters)


def pairs(sizes: Sizes) -> Iterator[KeyPair]:
    """Every tensor of a transformer of these sizes, in both layouts."""
    h, p = sizes.width, sizes.patch
    yield KeyPair(
        original="x_embedder.proj.weight",
        parts=("pos_embed.proj.weight",),
        shape=(h, sizes.in_channels, p, p),
    )
    yield KeyPair(original="x_embedder.proj.bias", parts=("pos_embed.proj.bias",), shape=(h,))
    yield from _linear(
        "y_embedder.y_proj.fc1", "caption_projection.linear_1", h, sizes.caption_channels
    )
    yield from _linear("y_embedder.y_proj.fc2", "caption_projection.linear_2", h, h)
    embedders = [("t_embedder", "timestep_embedder", h)]
    if sizes.micro_conditions:
        # Height and width get a third of the width each, the aspect ratio the last one.
        embedders.append(("csize_embedder", "resolution_embedder", h // 3))
        embedders.append(("ar_embedder", "aspect_ratio_embedder", h // 3))
    for original, name, rows in embedders:
        emb = f"adaln_single.emb.{name}"
        yield from _linear(f"{original}.mlp.0", f"{emb}.linear_1", rows, _FREQUENCIES)
        yield from _linear(f"{original}.mlp.2", f"{emb}.linear_2", rows, rows)
    yield from _linear("t_block.1", "adaln_single.linear", 6 * h, h)
    for n in range(sizes.layers):
        yield from block_pairs(f"blocks.{n}.", f"transformer_blocks.{n}.", h)
    yield KeyPair(
        original="final_layer.scale_shift_table", parts=("scale_shift_table",), shape=(2, h)
    )
    yield from _linear("final_layer.linear", "proj_out", p * p * sizes.out_channels, h)


_PROBES: Mapping[WeightLayout, tuple[str, ...]] = {
    "original": (
        "x_embedder.proj.weight",
        "y_embedder.y_proj.fc1.weight",
        "final_layer.linear.weight",
        "csize_embedder.",
        r"blocks\.(\d+)\.",
    ),
    "diffusers": (
        "pos_embed.proj.weight",
        "caption_projection.linear_1.weight",
        "proj_out.weight",
        "adaln_single.emb.resolution_embedder.",
        r"transformer_blocks\.(\d+)\.",
    ),
}


def unwrapped(keys: Collection[str]) -> str:
    """The prefix that a wrapper (DataParallel, torch.compile) put before every key, or ""."""
    for prefix in _WRAPPERS:
        if keys and all(key.startswith(prefix) for key in keys):
            return prefix + unwrapped([key.removeprefix(prefix) for key in keys])
    return ""


def layout_of(keys: Collection[str]) -> WeightLayout:
    """In which layout a PixArt transformer was saved. Raises ModelError for any other net."""
    for pattern, kind in _OTHERS[:3]:
        if any(re.match(pattern, key) for key in keys):
            raise _refused(kind)
    for layout, probes in _PROBES.items():
        if all(name in keys for name in probes[:2]):
            return layout
    for pattern, kind in _OTHERS[3:]:
        if any(re.match(pattern, key) for key in keys):
            raise ModelError(f"This is {kind}, not a PixArt transformer.")
    first = f" (it begins with “{printable(min(keys), 80)}”)" if keys else ": it is empty"
    raise ModelError(f"This is not a PixArt transformer{first}.")


def _refused(kind: str) -> ModelError:
    if kind == _LORA:
        return LoraFileError(f"This is {kind}.", "Bring it in with: launch.py loras import")
    return ModelError(f"This is {kind}.", "Give the file of the model itself.")


def measure(shapes: Mapping[str, Shape], layout: WeightLayout) -> Sizes:
    """The sizes of a transformer whose every tensor is there with the shape it must have.

    Raises ModelError that names the first tensor that is missing, unknown or of another shape.
    """
    patches, caption, output, micro, block = _PROBES[layout]
    for key in shapes:
        if _SIGMA_KEYS.match(key):
            raise ModelError(
                f"This is a PixArt-Σ with normalised or compressed attention (“{printable(key)}”),"
                " which diffusers' PixArt cannot hold.",
                "Use one of the Σ models without KV compression.",
            )
    numbers = {int(m[1]) for key in shapes if (m := re.match(block, key)) and len(m[1]) < 4}
    wanted = {patches: 4, caption: 2, output: 2}
    for key, dimensions in wanted.items():
        if len(shapes.get(key, ())) != dimensions or 0 in shapes[key]:
            raise _misfit(key, shapes.get(key))
    width, in_channels, patch, _ = shapes[patches]
    sizes = Sizes(
        width=width,
        layers=max(numbers, default=-1) + 1,
        patch=patch,
        in_channels=in_channels,
        out_channels=shapes[output][0] // patch**2,
        caption_channels=shapes[caption][1],
        micro_conditions=any(key.startswith(micro) for key in shapes),
    )
    for name, limit in _LIMITS.items():
        if not 1 <= getattr(sizes, name) <= limit:
            raise ModelError(
                f"This transformer has {getattr(sizes, name):,} as {name.replace('_', ' ')}, which"
                " no PixArt has."
            )
    _check(shapes, expected(sizes, layout), layout)
    if width % (12 if sizes.micro_conditions else 4):
        # Sine and cosine of two coordinates, and three sizes, share the width.
        raise ModelError(f"A PixArt cannot be {width} wide; the file is of another kind.")
    return sizes


def expected(sizes: Sizes, layout: WeightLayout) -> dict[str, Shape]:
    """Every key of a layout with its shape."""
    if layout == "original":
        return {pair.original: pair.shape for pair in pairs(sizes)}
    return {part: pair.part_shape for pair in pairs(sizes) for part in pair.parts}


def _check(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], layout: WeightLayout) -> None:
    unknown = sorted(key for key in shapes if key not in wanted and key not in SIDE_TENSORS[layout])
    if unknown:
        raise ModelError(
            f"This transformer has “{printable(unknown[0], 80)}”, which no PixArt has."
        )
    for key, shape in wanted.items():
        if shapes.get(key) != shape:
            raise _misfit(key, shapes.get(key), shape)


def _misfit(key: str, found: Shape | None, wanted: Shape | None = None) -> ModelError:
    shown = printable(key, 80)
    if found is None:
        return ModelError(f"This transformer lacks “{shown}”; the file is not whole.")
    fitting = f" where {'×'.join(map(str, wanted))} is needed" if wanted else ""
    return ModelError(
        f"This transformer has “{shown}” with the shape {'×'.join(map(str, found))}{fitting}."
    )


def head_dim(width: int, told: int | None) -> int:
    """Channels of one attention head: as told, else known for this width. Raises RequestError."""
    dim = _HEAD_DIMS.get(width) if told is None else told
    if dim is None:
        raise RequestError(
            "head_dim",
            f"A transformer {width} wide may have heads of several sizes, and its weights do not"
            " tell.",
            "Give --head-dim, as 64 or 72.",
        )
    if not 1 <= dim <= 256 or width % dim:
        raise RequestError(
            "head_dim", f"Heads of {dim} channels do not fill a transformer {width} wide."
        )
    return dim
