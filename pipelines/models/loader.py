"""A model folder in diffusers layout + a plan -> components. Faults of files end here."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from safetensors import SafetensorError, safe_open
from transformers import T5Config, T5EncoderModel

from pipelines.catalog import ModelSpec
from pipelines.denoising.latents import PIXELS_PER_LATENT
from pipelines.errors import ModelError, StudioError, printable
from pipelines.memory.planning import (
    DevicePlan,
    is_out_of_memory,
)
from pipelines.models.weights_digest import digest
from pipelines.text.tokens import tokenize, vocabulary_size

_PARTS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    # Old repositories call the transformer by the name of diffusers' former class.
    "transformer": (
        PixArtTransformer2DModel,
        ("PixArtTransformer2DModel", "Transformer2DModel"),
        "diffusion_pytorch_model.safetensors",
    ),
    "vae": (AutoencoderKL, ("AutoencoderKL",), "diffusion_pytorch_model.safetensors"),
    "text_encoder": (T5EncoderModel, ("T5EncoderModel",), "model.safetensors"),
}
# A hostile config must not be able to ask for a net that fills the machine before its weights are
# compared. Bounds of the keys that decide sizes, several times what the family has; the rest of the
# numbers stay below the general one (T5's vocabulary is the largest).
_MAX_CONFIG_NUMBER = 300_000
_MAX_CONFIG = {
    "sample_size": 512,
    "num_layers": 64,
    "num_decoder_layers": 64,
    "layers_per_block": 8,
    "num_attention_heads": 64,
    "num_heads": 128,
    "attention_head_dim": 256,
    "block_out_channels": 4096,
    "cross_attention_dim": 16_384,
    "caption_channels": 16_384,
    "d_model": 16_384,
    "d_ff": 65_536,
    "d_kv": 512,
}
# Keys by which a config can ask the libraries to fetch or run something else.
_REFUSED_KEYS = ("quantization_config", "auto_map")
_MAX_CONFIG_BYTES = 100_000
# The null caption of the original training, a buffer that the released models still carry: it was
# never trained, and T5("") takes its place.
_LEFT_OUT = ("caption_projection.y_embedding",)
_BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def check(model: ModelSpec) -> dict[str, Any]:
    """Everything that can be known of a model without reading its weights.

    Returns its noise schedule as scheduler arguments. Raises ModelError.
    """
    with faults(model, "scheduler"):
        betas = _betas(model)
    parts = {name: unfilled(model, name) for name in _PARTS}
    with faults(model, "configuration"):
        _check_fit(model, parts)
    return betas


def unfilled(model: ModelSpec, name: str) -> Any:
    """A part without its numbers: only its configuration is asked. Raises ModelError."""
    cls = _PARTS[name][0]
    folder = _checked_folder(model, name)
    with faults(model, name), quiet(), torch.device("meta"):
        if cls is T5EncoderModel:
            return cls(T5Config.from_pretrained(folder, local_files_only=True))
        return cls.from_config(cls.load_config(folder, local_files_only=True))


def transformer(model: ModelSpec, plan: DevicePlan) -> PixArtTransformer2DModel:
    """The transformer with its weights, on the plan's device. Raises ModelError."""
    net: PixArtTransformer2DModel = _placed(model, "transformer", plan)
    return net


def vae(model: ModelSpec, plan: DevicePlan) -> AutoencoderKL:
    """The VAE with its weights, on the plan's device. Raises ModelError."""
    net: AutoencoderKL = _placed(model, "vae", plan)
    with torch.inference_mode(False):
        return net.to(memory_format=memory_format(plan))


def memory_format(plan: DevicePlan) -> torch.memory_format:
    """The order of weights in which convolutions are fast.

    On processors measured (docs/benchmarks.md). On GPUs every group norm would copy its input, a
    sixth more memory for a gain that nobody measured (docs/gpu-wanted.md).
    """
    last = plan.precision == "bfloat16" and plan.device == "cpu"
    return torch.channels_last if last else torch.contiguous_format


def _placed(model: ModelSpec, name: str, plan: DevicePlan) -> Any:
    net = part(model, name, getattr(torch, plan.precision))
    # Moved under inference mode, weights would become inference tensors.
    with torch.inference_mode(False):
        return net.to(torch.device(plan.device))


def fingerprint(model: ModelSpec) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of the model changes: (path, size, time of the last change) of each."""
    try:
        return tuple(
            (f"{part}/{file.name}", stat.st_size, stat.st_mtime_ns)
            for part in (*_PARTS, "tokenizer", "scheduler")
            for file in sorted(model.part(part).glob("*"))
            if (stat := file.stat())
        )
    except OSError as error:
        raise _broken(model, f"its folder cannot be read ({error.strerror})") from None


def weights_hash(model: ModelSpec) -> str:
    """The first 10 hex digits of the SHA-256 of the transformer's weights, as other tools do."""
    facts = tuple(f for f in fingerprint(model) if f[0].startswith("transformer/"))
    with faults(model, "transformer"):
        return _hash(model.part("transformer"), facts)


@lru_cache(maxsize=32)
def _hash(folder: Path, _facts: object) -> str:
    """Read once for the same files: they may have gigabytes."""
    return digest(folder)


def part(model: ModelSpec, name: str, dtype: torch.dtype, **options: Any) -> Any:
    """A part with its weights, in `dtype`, in main memory. Raises ModelError.

    `options` go to the library that reads it.
    """
    cls = _PARTS[name][0]
    folder = _checked_folder(model, name)
    # Weights are no inference tensors: a change of theirs must be seen (`Transformer`).
    with faults(model, name), quiet(), torch.inference_mode(False):
        # transformers and diffusers name the same argument differently.
        options["dtype" if cls is T5EncoderModel else "torch_dtype"] = dtype
        net, report = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
        # Both libraries fill missing weights with random numbers and only warn.
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if keys := sorted(set(map(str, report.get(kind) or ())) - set(_LEFT_OUT)):
                first = printable(keys[0], 120)
                raise _broken(model, f"its {name} has {kind.replace('_', ' ')} ({first})")
        if isinstance(net, PixArtTransformer2DModel):
            # Released configurations leave it out, and the class only resolves it for itself.
            net.register_to_config(use_additional_conditions=net.use_additional_conditions)
        return net.eval().requires_grad_(False)


def _checked_folder(model: ModelSpec, name: str) -> Path:
    """The folder of a part whose configuration and headers of weights are sound."""
    _, class_names, weights = _PARTS[name]
    folder = model.part(name)
    config = _config(model, folder / "config.json")
    with faults(model, name):
        found = config.get("_class_name") or config["architectures"][0]
        if found not in class_names:
            raise _broken(model, f"its {name} is a “{printable(found)}”, not a {class_names[0]}")
        _check_weights(model, folder, weights)
    return folder


def _check_weights(model: ModelSpec, folder: Path, weights: str) -> None:
    """Opens each weight file's header, so that a damaged file is named and nothing is executed."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _broken(model, f"{folder.name}/{weights} is missing")
    for file in files:
        if not file.is_file():
            raise _broken(model, f"{folder.name}/{file.name} is not a file")
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (OSError, SafetensorError) as error:
            raise _broken(
                model, f"{folder.name}/{file.name} is damaged ({printable(error, 80)})"
            ) from None


def _config(model: ModelSpec, file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    try:
        if file.exists() and not file.is_file():
            raise _broken(model, f"{where} is not a file")
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise _broken(model, f"{where} is too large")
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise _broken(model, f"{where} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(model, f"{where} cannot be read ({printable(error, 80)})") from None
    if not isinstance(config, dict):
        raise _broken(model, f"{where} is not a configuration")
    for key, number in _numbers("", config):
        if not abs(number) <= _MAX_CONFIG.get(key, _MAX_CONFIG_NUMBER):
            raise _broken(model, f"{where} asks for {printable(number)} as {printable(key)}")
    for key in _REFUSED_KEYS:
        if config.get(key):
            raise _broken(model, f"{where} has a “{key}”, which is not supported")
    return config


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number of a configuration with the key that it stands under."""
    if isinstance(value, dict):
        for key, item in value.items():
            # Bookkeeping of schedulers, not a size of a net.
            if key != "lambda_min_clipped":
                yield from _numbers(str(key), item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _betas(model: ModelSpec) -> dict[str, Any]:
    """The noise schedule, from the model's own folder: class defaults belong to other families."""
    config = _config(model, model.part("scheduler") / "scheduler_config.json")
    missing = [name for name in _BETAS if name not in config]
    if missing:
        raise _broken(model, f"scheduler/scheduler_config.json lacks {missing[0]}")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise _broken(model, "its scheduler does not predict noise (epsilon)")
    if config["num_train_timesteps"] != 1000:
        raise _broken(model, "it was not trained with 1000 timesteps")
    betas = {name: config[name] for name in _BETAS}
    if betas["beta_schedule"] not in _BETA_SCHEDULES:
        raise _broken(model, f"its beta schedule is “{printable(betas['beta_schedule'])}”")
    numbers = (betas["beta_start"], betas["beta_end"])
    if not all(isinstance(n, int | float) and 0 < n < 1 for n in numbers):
        raise _broken(model, "its noise schedule has betas outside 0 to 1")
    return betas | {"prediction_type": "epsilon"}


def _check_fit(model: ModelSpec, parts: dict[str, Any]) -> None:
    """Parts that load each by itself but cannot paint together."""
    transformer, vae, text = (parts[name].config for name in _PARTS)
    pairs = (
        ("text encoder", text.d_model, transformer.caption_channels),
        ("VAE", vae.latent_channels, transformer.in_channels),
    )
    for name, given, wanted in pairs:
        if given != wanted:
            raise _broken(model, f"its {name} gives {given} channels where {wanted} are read")
    if 2 ** (len(vae.block_out_channels) - 1) != PIXELS_PER_LATENT:
        raise _broken(model, f"its VAE does not turn {PIXELS_PER_LATENT} pixels into one latent")
    if not 0 < float(vae.scaling_factor) < 100:
        raise _broken(model, f"its VAE has a scaling factor of {vae.scaling_factor}")
    channels = transformer.in_channels
    outputs = (2 * channels,) if model.learned_variance else (channels, 2 * channels)
    if transformer.out_channels not in outputs:
        raise _broken(model, f"its transformer has {transformer.out_channels} output channels")
    if tokenize("", model).ids != (text.eos_token_id,):
        raise _broken(model, "its tokenizer does not end a text with the encoder's end token")
    if vocabulary_size(model) > text.vocab_size:
        raise _broken(model, "its tokenizer knows more tokens than its text encoder")


def _broken(model: ModelSpec, fault: str) -> ModelError:
    return ModelError(
        f"The model “{model.id}” cannot be used: {fault}.",
        "Install it again, or choose another model.",
    )


@contextmanager
def faults(model: ModelSpec, part: str) -> Iterator[None]:
    """Maps whatever the libraries raise for damaged files to ModelError.

    They raise nearly everything (assertions, unbound variables, validation errors of their own),
    so this one boundary is broad. Lack of memory is not a fault of the model and passes.
    """
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _broken(model, f"its {part} does not load ({printable(error, 160)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice for developers while weights are read."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
