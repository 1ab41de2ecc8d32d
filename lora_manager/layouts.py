"""The names of tensors in a LoRA file -> which layers of PixArt it changes, with which tensors.

Every program names them in its own way: after diffusers' layers or after the original ones, with
dots or underscores, with or without a prefix. Here only names and shapes are looked at, so that a
file can be described without a tensor library. A name is looked up in the list of PixArt's layers
(`targets`), never guessed; what is not known is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, NoReturn

from lora_manager import targets
from lora_manager.errors import LoraError, printable

Shape = tuple[int, ...]
Family = Literal["diffusers", "bare", "peft", "script", "underscored", "comfy", "stacked"]
"""Who names layers so: diffusers (`transformer.`), nobody in particular (no prefix), PEFT folders
(`base_model.model.`), PixArt's own LoRA script (`unet.base_model.model.`), kohya, OneTrainer and
LyCORIS (underscores), ComfyUI (`diffusion_model.`), and ComfyUI_ExtraModels, which stacks the
halves of several layers (whatever the prefix)."""
_PREFIXES: tuple[tuple[str, Family], ...] = (
    ("unet.base_model.model.", "script"),
    ("transformer.base_model.model.", "script"),
    ("base_model.model.", "peft"),
    ("model.diffusion_model.", "comfy"),
    ("diffusion_model.", "comfy"),
    ("transformer.", "diffusers"),
    ("unet.", "diffusers"),
    ("lora_transformer_", "underscored"),
    ("lora_unet_", "underscored"),
    ("lycoris_", "underscored"),
    ("", "bare"),
)
_KEY = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<letter>[AB])(?:\.[A-Za-z0-9_-]{1,64})?\.weight"
    r"|lora[_.](?P<word>down|up)\.weight|(?P<alpha>alpha)"
    # kohya and ComfyUI, PEFT, ai-toolkit.
    r"|(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.[A-Za-z0-9_-]{1,64})?(?:\.weight)?"
    r"|magnitude(?:\.weight)?))"
)
_MAX_KEY = 400
_TEXT = re.compile(r"lora_te\d?_|text_encoders?(_\d)?\.|(text_encoders\.)?t5xxl\.")
_EMBEDDING = re.compile(r"bundle_emb[._]")
# Keys that betray another way of changing weights, each with its name.
_OTHER_WAYS = (
    (r"(^|[._])lokr_", "a LoKr (LyCORIS)"),
    (r"(^|[._])(hada|loha)_", "a LoHa (LyCORIS)"),
    (r"(^|[._])b?oft_", "an OFT (LyCORIS)"),
    (r"lora_mid\.", "a LoCon with a middle (LyCORIS)"),
    (r"\.(diff|diff_b|w_norm|b_norm)$", "a file of whole differences"),
    (r"lora_(B|up)\.[A-Za-z0-9_.-]{0,64}bias$", "a LoRA that changes biases, too"),
)
_UNET = "Stable Diffusion"
_TEXT_LAYER = re.compile(r"attn2[._](processor[._])?to_[kv][._](lora[._])?(lora_)?(down|A)(\.|\b)")
_TEXT_WIDTHS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}
# SDXL alone has a second text encoder, and several transformer blocks in one place.
_SECOND_TEXT = re.compile(r"lora_te[12]_|text_encoder_2\.")
_DEEP = re.compile(
    r"(attentions[._]\d+|(input|output)_blocks?[._]\d+[._]1|middle_block[._]1)"
    r"[._]transformer_blocks[._][1-9]"
)
# Keys that betray another net, each with its name where they tell it.
_OTHER_NETS = (
    (r"single_transformer_blocks|double_blocks|single_blocks|double_stream", "FLUX"),
    (r"joint_(transformer_)?blocks", "Stable Diffusion 3"),
    (r"(down|up|mid|input|output|middle)_blocks?[._]", _UNET),
    (r"(^|[._])layers[._]\d+[._]|self_attn|q_proj|refiner", ""),
    (r"blocks[._]\d+[._](attn[._](to_|add_)|img_|txt_|self_attn|adaln)", ""),
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The tensors that change one layer of a file, which are several layers where it is fused.

    `paths`: diffusers' paths in the order of the pieces. `down`, `up`, `alpha`: keys in the file.
    `name`: the layer's name in the file without prefix. `rank`: of each piece; `stacked`: the down
    tensor holds those of the pieces one behind the other. `inside`: columns of a linear layer.
    `magnitude`: the key of a DoRA's magnitudes, `sizes` their shape beside the weight: (out, 1)
    where they are those of its rows, (1, in) of its columns, with two more axes in a convolution.
    """

    paths: tuple[str, ...]
    name: str
    down: str
    up: str
    alpha: str | None
    rank: int
    inside: int
    stacked: bool
    magnitude: str | None = None
    sizes: Shape = ()


@dataclass(frozen=True, kw_only=True)
class LoraChanges:
    """All changes of a file, and what was left out of it."""

    changes: tuple[Change, ...]
    family: Family
    notes: tuple[str, ...]

    @property
    def every_matrix(self) -> bool:
        """True where the layers that PixArt's own LoRA script picks are changed: nearly all."""
        return any(change.paths == ("adaln_single.linear",) for change in self.changes)


@dataclass(kw_only=True)
class _Found:
    paths: tuple[str, ...]
    family: Family
    name: str
    keys: dict[str, str]


def sort(shapes: Mapping[str, Shape], file: str) -> LoraChanges:
    """Finds out what the tensors of `file` (its name for people) change.

    Raises LoraError for another kind of file or net, and for tensors that do not fit together.
    """
    shown = f"“{printable(file)}”"
    text = [key for key in shapes if _TEXT.match(key)]
    embeddings = [key for key in shapes if _EMBEDDING.match(key)]
    left_out = {*text, *embeddings}
    rest = [key for key in shapes if key not in left_out]
    _check_way(rest, shown)
    modules: dict[str, _Found] = {}
    unknown = [key for key in rest if not _take(key, modules)]
    if unknown:
        _refuse(unknown, shapes, bool(modules), shown)
    if not modules:
        raise _without_layers(shown, bool(text), bool(embeddings))
    changes = tuple(_change(found, shapes, shown) for found in modules.values())
    _check_once(changes, shown)
    family = Counter(found.family for found in modules.values()).most_common(1)[0][0]
    if any(change.stacked for change in changes):
        family = "stacked"
    notes = []
    if text:
        notes.append(f"It changes the text encoder, too ({len(text)} tensors): left out.")
    if embeddings:
        notes.append(f"It brings words of its own ({len(embeddings)} embeddings): left out.")
    return LoraChanges(changes=changes, family=family, notes=tuple(notes))


def _check_way(keys: list[str], shown: str) -> None:
    for pattern, kind in _OTHER_WAYS:
        searched = re.compile(pattern)
        if any(searched.search(key[:_MAX_KEY]) for key in keys):
            raise LoraError(
                f"{shown} is {kind}, which is not read.", "Take a plain LoRA, or convert it to one."
            )


def _take(key: str, modules: dict[str, _Found]) -> bool:
    """Puts `key` to the other tensors of its layer; False where it belongs to none."""
    found = _KEY.fullmatch(key) if len(key) <= _MAX_KEY else None
    if found is None:
        return False
    module = found["module"]
    if found["alpha"]:
        role = "alpha"
    elif found["magnitude"]:
        role = "magnitude"
    else:
        role = "down" if "A" in (found["letter"] or "") or found["word"] == "down" else "up"
    if module not in modules:
        place = _place(module)
        if place is None:
            return False
        modules[module] = place
    keys = modules[module].keys
    if role in keys:
        return False
    keys[role] = key
    return True


def _place(module: str) -> _Found | None:
    for prefix, family in _PREFIXES:
        if not module.startswith(prefix):
            continue
        name = module.removeprefix(prefix)
        flat = family == "underscored"
        paths = targets.paths_of_flat(name) if flat else targets.paths_of(name)
        if paths:
            return _Found(paths=paths, family=family, name=name, keys={})
    return None


def _refuse(
    unknown: list[str], shapes: Mapping[str, Shape], some_known: bool, shown: str
) -> NoReturn:
    first = f"“{printable(unknown[0], 80)}”"
    for pattern, kind in _OTHER_NETS:
        searched = re.compile(pattern)
        if any(searched.search(key[:_MAX_KEY]) for key in unknown):
            if kind == _UNET:
                kind = _stable_diffusion(shapes)
            named = f" ({kind})" if kind else ""
            raise LoraError(
                f"{shown} is a LoRA for another kind of model{named}: it has {first}.",
                "Take one that was made for PixArt.",
            )
    if not some_known and not any("lora" in key[:_MAX_KEY] for key in unknown):
        raise LoraError(f"{shown} is not a LoRA (it begins with {first}).")
    raise LoraError(
        f"{shown} has {len(unknown):,} tensors that no LoRA for PixArt has; the first is {first}."
        if len(unknown) > 1
        else f"{shown} has a tensor that no LoRA for PixArt has: {first}.",
        "Take one that was made for PixArt.",
    )


def _stable_diffusion(shapes: Mapping[str, Shape]) -> str:
    """Which of the nets of Stable Diffusion it is: they are told apart by how wide their texts are.

    (`cross_attention_dim` of the released `unet/config.json`.)
    """
    for key, shape in shapes.items():
        if _TEXT_LAYER.search(key[:_MAX_KEY]) and len(shape) in (2, 4) and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
    second = any(_SECOND_TEXT.match(key[:_MAX_KEY]) for key in shapes)
    return "SDXL" if second or any(_DEEP.search(key[:_MAX_KEY]) for key in shapes) else _UNET


def _without_layers(shown: str, text: bool, embeddings: bool) -> LoraError:
    if not text and not embeddings:
        return LoraError(f"{shown} is empty.")
    what = "the text encoder" if text else "words"
    return LoraError(f"{shown} changes only {what}, and nothing of PixArt itself.")


def _change(found: _Found, shapes: Mapping[str, Shape], shown: str) -> Change:
    keys = found.keys
    name = f"“{printable(found.name, 80)}”"
    if "down" not in keys or "up" not in keys:
        absent = "down (A)" if "down" not in keys else "up (B)"
        raise LoraError(f"{shown} lacks the {absent} half of {name}; it is not whole.")
    down, up = shapes[keys["down"]], shapes[keys["up"]]
    stacked, pieces = False, len(found.paths)
    if found.paths == (targets.CONVOLUTION,):
        fits = len(down) == 4 and len(up) == 4 and up[2:] == (1, 1) and up[1] == down[0]
    else:
        fits = len(down) == 2 and len(up) == 2 and up[0] % pieces == 0
        stacked = fits and pieces > 1 and down[0] == pieces * up[1]
        fits = fits and (stacked or down[0] == up[1])
    if not fits or 0 in down or 0 in up:
        sizes = " and ".join("×".join(map(str, shape)) or "nothing" for shape in (down, up))
        raise LoraError(f"{shown} has tensors of {printable(sizes)} for {name}: no LoRA has that.")
    alpha = keys.get("alpha")
    if alpha is not None and (len(shapes[alpha]) > 2 or prod(shapes[alpha]) != 1):
        raise LoraError(f"{shown} has an alpha of {name} that is not one number.")
    magnitude = keys.get("magnitude")
    measured: Shape = ()
    if magnitude is not None:
        told = f"{shown} has magnitudes of {name}"
        measured = _sizes(shapes[magnitude], (up[0], *down[1:]), told)
        if pieces > 1 and measured[0] == 1:
            raise LoraError(
                f"{shown} is a DoRA that measures the columns of {name}, which is {pieces} layers"
                " here; they cannot be told apart.",
                "Take one that was made for diffusers' layers, or measures the rows.",
            )
    return Change(
        paths=found.paths,
        name=found.name,
        down=keys["down"],
        up=keys["up"],
        alpha=alpha,
        rank=up[1],
        inside=down[1],
        stacked=stacked,
        magnitude=magnitude,
        sizes=measured,
    )


def _sizes(shape: Shape, weight: Shape, what: str) -> Shape:
    """The shape in which magnitudes stand beside a weight of the shape `weight`.

    PEFT writes those of rows as (out,), of a convolution as (1, out, 1, 1); LyCORIS, kohya and
    ComfyUI have (out, 1) and (1, in), with two more axes for a convolution. Raises LoraError.
    """
    ones = (1,) * (len(weight) - 2)
    rows, columns = (weight[0], 1, *ones), (1, weight[1], *ones)
    if shape in ((weight[0],), rows):
        return rows
    if ones and shape == (1, weight[0], *ones):
        return rows
    if shape == columns:
        return columns
    raise LoraError(f"{what} in the shape {'×'.join(map(str, shape)) or 'of one number'}.")


def _check_once(changes: tuple[Change, ...], shown: str) -> None:
    seen: set[str] = set()
    for change in changes:
        for path in change.paths:
            if path in seen:
                raise LoraError(f"{shown} changes “{path}” twice.")
            seen.add(path)
