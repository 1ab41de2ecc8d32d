"""How large the parts of a model are, from its configurations and the headers of its weights."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from pipelines.catalog import ModelSpec
from pipelines.errors import ModelError, printable
from pipelines.memory.planning import Numbers
from pipelines.models import headers
from pipelines.models.hub_rows import Known

_MAX_CONFIG_BYTES = 100_000
# All released models: PixArt-XL/2 and a VAE of Stable Diffusion's shape, published in float32.
_WIDTH = 1152
_VAE_WIDTH = 256
_FLOAT = 4


def of(model: ModelSpec) -> Numbers:
    """The numbers of `model`. Raises ModelError where a part is missing or damaged."""
    text = _config(model.part("text_encoder"))
    transformer = _config(model.part("transformer"))
    vae = _config(model.part("vae"))
    try:
        channels = vae["block_out_channels"]
        block, embedding = _t5(text)
        layers = int(text["num_layers"])
        return Numbers(
            transformer=_count(model, "transformer"),
            text=layers * block + embedding,
            text_kept=layers * int(text["d_model"]) * int(text["d_ff"]) + embedding,
            text_block=block,
            text_rest=embedding,
            vae=_count(model, "vae"),
            width=int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"]),
            vae_width=int(channels[min(1, len(channels) - 1)]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"The configuration of “{model.id}” is incomplete ({printable(error, 80)}).",
            "Install it again, or choose another model.",
        ) from None


def of_text(model: ModelSpec) -> Numbers:
    """Those of the text encoder alone; the others are zero. Raises ModelError."""
    try:
        config = _config(model.part("text_encoder"))
        block, embedding = _t5(config)
        layers = int(config["num_layers"])
        kept = layers * int(config["d_model"]) * int(config["d_ff"]) + embedding
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The configuration of a text encoder is incomplete ({printable(error, 80)}).",
            "Choose another one.",
        ) from None
    return Numbers(
        transformer=0,
        text=layers * block + embedding,
        text_kept=kept,
        text_block=block,
        text_rest=embedding,
        vae=0,
        width=0,
        vae_width=0,
    )


def expected(row: Known) -> Numbers | None:
    """Those of a released model that is not here yet; None where it is no model by itself."""
    size = {source.part: source.size for source in row.parts}
    text = next((dict(one.like) for one in row.parts if one.part == "text_encoder"), None)
    if not row.paints or not text:
        return None
    block, embedding = _t5(text)
    layers = int(text["num_layers"])
    return Numbers(
        transformer=size["transformer"] // _FLOAT,
        text=layers * block + embedding,
        text_kept=layers * int(text["d_model"]) * int(text["d_ff"]) + embedding,
        text_block=block,
        text_rest=embedding,
        vae=size["vae"] // _FLOAT,
        width=_WIDTH,
        vae_width=_VAE_WIDTH,
    )


def width(model: ModelSpec) -> int:
    """How wide the layers of the transformer are, 0 where its files do not tell."""
    try:
        config = _config(model.part("transformer"))
        return int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    except (ModelError, OSError, KeyError, TypeError, ValueError):
        return 0


def knows_sizes(model: ModelSpec) -> bool:
    """True for nets that were trained with size conditions (PixArt-α at 1024 px).

    Configurations that do not say so mean what diffusers takes it for: sample_size 128. Raises
    ModelError where the configuration cannot be read.
    """
    config = _config(model.part("transformer"))
    told = config.get("use_additional_conditions")
    return config.get("sample_size", 128) == 128 if told is None else told is True


def _t5(config: dict[str, Any]) -> tuple[int, int]:
    """Parameters of a block of T5's encoder, and of its embedding. Source: arXiv 1910.10683."""
    width, inner = int(config["d_model"]), int(config["d_kv"]) * int(config["num_heads"])
    gates = 3 if str(config.get("feed_forward_proj", "")).startswith("gated") else 2
    block = 4 * width * inner + gates * width * int(config["d_ff"]) + 2 * width
    return block, int(config["vocab_size"]) * width


def _count(model: ModelSpec, name: str) -> int:
    total = 0
    for file in sorted(model.part(name).glob("*.safetensors")):
        try:
            header = headers.read(file)
        except ModelError as error:
            raise ModelError(
                f"The model “{model.id}” cannot be used: {name}/{file.name} is damaged"
                f" ({error.message})",
                "Install it again, or choose another model.",
            ) from None
        total += sum(prod(entry.shape) for entry in header.tensors.values())
    return total


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        config = json.loads(file.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else printable(error, 80)
        raise ModelError(
            f"{file} cannot be read ({reason}).", "Install the model again, or choose another."
        ) from None
    return config
