"""T5 in the way that a plan wants: whole, in blocks that come and go, or with quantised weights."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, T5EncoderModel

from pipelines import files
from pipelines.catalog import ModelSpec
from pipelines.errors import ModelError, OutOfMemoryError, SaveError, printable
from pipelines.memory import ram
from pipelines.memory.planning import DevicePlan, is_out_of_memory
from pipelines.models import headers, loader

_QUANTISED = ("int8", "nf4")
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
log = logging.getLogger(__name__)


def device(plan: DevicePlan) -> torch.device:
    """Where the encoder works."""
    return torch.device("cpu" if plan.text == "cpu" else plan.device)


def identity(model: ModelSpec, plan: DevicePlan) -> str:
    """Names the encoder's files, the tokenizer's, and how its numbers are computed."""
    found = loader.fingerprint(model)
    own = [f for f in found if f[0].startswith(("text_encoder/", "tokenizer/"))]
    weights = plan.text if plan.text in _QUANTISED else "plain"
    return json.dumps([own, weights, plan.text_precision, device(plan).type])


def load(model: ModelSpec, plan: DevicePlan, cache: Path | None) -> T5EncoderModel:
    """The encoder as `plan` says. Quantised weights are kept below `cache` for the next time.

    Raises ModelError, OutOfMemoryError.
    """
    _check_room(model, plan)
    if plan.text in _QUANTISED:
        return _quantised(model, plan, cache)
    dtype = getattr(torch, plan.text_precision)
    target = device(plan)
    if plan.text == "resident" and target.type == "cuda":
        # Straight to the GPU, piece by piece: main memory may be smaller than T5.
        there: T5EncoderModel = loader.part(model, "text_encoder", dtype, device_map={"": target})
        return there
    net: T5EncoderModel = loader.part(model, "text_encoder", dtype)
    if plan.text == "streamed":
        return _streamed(net, target)
    moved: T5EncoderModel = net.to(target)  # type: ignore[arg-type]
    return moved


def maps(model: ModelSpec, plan: DevicePlan) -> bool:
    """True where T5 is used as it lies in its file, which takes no memory for good."""
    if plan.text in _QUANTISED or (plan.text == "resident" and plan.device != "cpu"):
        return False
    try:
        files = sorted(model.part("text_encoder").glob("*.safetensors"))
        stored = {entry.dtype for file in files for entry in headers.read(file).tensors.values()}
    except ModelError:
        return False
    return stored == {_STORED[plan.text_precision]}


def _check_room(model: ModelSpec, plan: DevicePlan) -> None:
    """Before T5 is read: a system that runs out of memory kills the process without a word."""
    main = ram.look()
    if plan.text_ram > main.free + main.swap and not maps(model, plan):
        raise OutOfMemoryError(
            f"The text encoder of “{model.id}” needs {plan.text_ram / 1e9:.1f} GB of main memory,"
            f" and {main.free / 1e9:.1f} GB of {main.total / 1e9:.1f} GB are free.",
            "Close other programs, allow approximations (T5 in 8 bits), or choose a smaller model.",
        )


def _streamed(net: T5EncoderModel, target: torch.device) -> T5EncoderModel:
    """Blocks wait in main memory and come to the GPU one by one: exact, with little memory there.

    Source: diffusers' group offloading.
    """
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        net.encoder,
        onload_device=target,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=target.type == "cuda",
        # Otherwise a pinned second copy of all blocks lies in main memory.
        low_cpu_mem_usage=True,
    )
    return net


def _quantised(model: ModelSpec, plan: DevicePlan, cache: Path | None) -> T5EncoderModel:
    _check_library()
    where = {"": device(plan)}
    dtype = getattr(torch, plan.text_precision)
    kept = None if cache is None else cache / _name(model, plan)
    if kept is not None and (kept / "config.json").is_file():
        try:
            with loader.quiet(), torch.inference_mode(False):
                read: Any = T5EncoderModel.from_pretrained(
                    kept,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    dtype=dtype,
                    device_map=where,
                )
            found: T5EncoderModel = read[0]
            report: dict[str, Any] = read[1]
            if any(report.get(kind) for kind in ("missing_keys", "mismatched_keys")):
                raise ModelError(f"{kept} is not whole.")
            return found.eval().requires_grad_(False)
        # Whatever a damaged copy makes the libraries raise: it is made again.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            shutil.rmtree(kept, ignore_errors=True)
    if plan.text == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    net: T5EncoderModel = loader.part(
        model, "text_encoder", dtype, quantization_config=config, device_map=where
    )
    if kept is not None:
        _keep(net, kept)
    return net


def _check_library() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"A quantised text encoder needs bitsandbytes ({printable(error, 80)}).",
            "Install it with: pip install bitsandbytes; or choose another text encoder.",
        ) from None


def _name(model: ModelSpec, plan: DevicePlan) -> str:
    return f"{plan.text}-{hashlib.sha256(identity(model, plan).encode()).hexdigest()[:16]}"


def _keep(net: T5EncoderModel, folder: Path) -> None:
    """Saves the quantised weights whole or not at all; without space they are made every time.

    Copies of encoders that changed since are taken away: each has gigabytes.
    """
    for old in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        shutil.rmtree(old, ignore_errors=True)
    try:
        with files.whole(folder, net.get_memory_footprint()) as draft:
            # Of each file a copy lies in main memory, which may be small where this is done.
            net.save_pretrained(draft, max_shard_size="500MB")
    except (SaveError, SafetensorError) as error:
        log.warning("the quantised text encoder is not kept (%s)", printable(error, 80))
