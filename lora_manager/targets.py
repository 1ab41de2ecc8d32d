"""The layers of PixArt that can carry a LoRA, by diffusers' names and by the original ones.

The original code stacks q, k, v of self-attention (`attn.qkv`) and k, v of cross-attention
(`cross_attn.kv_linear`) along their first axis; diffusers keeps them apart. Facts: PixArt-alpha's
`diffusion/model/nets/PixArtMS.py` and its `tools/convert_pixart_alpha_to_diffusers.py`, and
diffusers' `PixArtTransformer2DModel`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

ATTENTION = frozenset({"to_q", "to_k", "to_v", "to_out.0"})
"""Ends of the paths of all attention projections, as PEFT's `target_modules` takes them."""
FEED_FORWARD = frozenset({"ff.net.0.proj", "ff.net.2"})
_OUTER: Mapping[str, str] = {
    "x_embedder.proj": "pos_embed.proj",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
}
ALL = ATTENTION | FEED_FORWARD | frozenset(_OUTER.values())
"""Every layer with a matrix: also those that tell the net the time and the size of the picture."""
CONVOLUTION = "pos_embed.proj"
"""The only layer that is a convolution: weight (width, 4, patch, patch)."""
MAX_LAYERS = 256
_BLOCK: Mapping[str, tuple[str, ...]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
_SIZES = ("resolution_embedder", "aspect_ratio_embedder")
_NUMBERED = re.compile(r"(transformer_blocks|blocks)([._])(0|[1-9][0-9]{0,2})[._](.{1,80})")


def matches(path: str, suffixes: Collection[str]) -> bool:
    """True where `path` is one of `suffixes` or ends with a dot and one of them (PEFT's rule)."""
    return any(path == suffix or path.endswith(f".{suffix}") for suffix in suffixes)


def paths(
    num_layers: int, kinds: Collection[str], *, micro_conditions: bool = False
) -> tuple[str, ...]:
    """The layers of a net of `num_layers` blocks whose paths end with one of `kinds`.

    `kinds` is ATTENTION, FEED_FORWARD, both together, ALL, or any choice of those. The embedders
    of picture sizes are there only with `micro_conditions` (α at 1024 pixels).
    """
    blocks = [
        f"transformer_blocks.{n}.{name}"
        for n in range(num_layers)
        for names in _BLOCK.values()
        for name in names
    ]
    outer = [
        path
        for path in _OUTER.values()
        if micro_conditions or not any(name in path for name in _SIZES)
    ]
    return tuple(path for path in (*blocks, *outer) if matches(path, kinds))


def paths_of(name: str) -> tuple[str, ...]:
    """The diffusers paths of a layer under its name in either layout, in the order of its pieces.

    () for a name that no layer of PixArt has.
    """
    return _looked_up(name, ".")


def paths_of_flat(name: str) -> tuple[str, ...]:
    """As `paths_of`, of a name whose dots are underscores (as kohya and OneTrainer write it)."""
    return _looked_up(name, "_")


def originals(paths: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The original layers of which `paths` are pieces, by name: all their pieces, in order.

    In the order of the net. Raises KeyError for a path that no layer of PixArt has.
    """
    found = {_original(path) for path in paths}
    inside = sorted((n, name) for n, name in found if n is not None)
    names = [name for name in _OUTER if (None, name) in found]
    names += [f"blocks.{n}.{name}" for n, name in inside]
    return {name: paths_of(name) for name in names}


def _original(path: str) -> tuple[int | None, str]:
    """The number of the block, None outside of all, and the name in it."""
    found = _numbered(path, ".")
    if found is None:
        return None, _OUTER_NAMES[path]
    return found[1], _INSIDE_NAMES[found[2]]


def _looked_up(name: str, dot: str) -> tuple[str, ...]:
    if name in _KNOWN_OUTSIDE[dot]:
        return _KNOWN_OUTSIDE[dot][name]
    found = _numbered(name, dot)
    if found is None:
        return ()
    inside = _KNOWN_INSIDE[dot, found[0]].get(found[2], ())
    return tuple(f"transformer_blocks.{found[1]}.{path}" for path in inside)


def _numbered(name: str, dot: str) -> tuple[str, int, str] | None:
    """The kind of block, its number, and the rest of the name behind it."""
    found = _NUMBERED.fullmatch(name)
    if found is None or found[2] != dot or name[found.end(3)] != dot:
        return None
    number = int(found[3])
    return (found[1], number, found[4]) if number < MAX_LAYERS else None


def _both(dot: str) -> dict[str, tuple[str, ...]]:
    names = {original: (path,) for original, path in _OUTER.items()}
    names |= {path: (path,) for path in _OUTER.values()}
    return {name.replace(".", dot): found for name, found in names.items()}


_INSIDE = tuple(path for names in _BLOCK.values() for path in names)
_INSIDE_NAMES = {path: name for name, paths in _BLOCK.items() for path in paths}
_OUTER_NAMES = {path: name for name, path in _OUTER.items()}
_KNOWN_OUTSIDE = {dot: _both(dot) for dot in "._"}
_KNOWN_INSIDE: Mapping[tuple[str, str], Mapping[str, tuple[str, ...]]] = {
    (dot, kind): {name.replace(".", dot): found for name, found in names.items()}
    for dot in "._"
    for kind, names in (
        ("blocks", dict(_BLOCK)),
        ("transformer_blocks", {path: (path,) for path in _INSIDE}),
    )
}
