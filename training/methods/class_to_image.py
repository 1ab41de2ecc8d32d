"""Stage 1: a class-conditional DiT learns what pixels look like, from labelled pictures."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from pipelines import files
from pipelines.errors import ModelError, RequestError, printable
from training import nets
from training.bases import Base, transformer_folder
from training.config import RunConfig
from training.data.manifest import Sample
from training.data.sources import Sources
from training.loop.devices import attention, checkpointed, lent
from training.loop.rng import drawn, generator
from training.loop.task import Batch, Task
from training.methods.latent_data import LatentSamples, collate
from training.objective import LINEAR, Diffusion
from training.sampling import SamplingOptions, paint_classes, sheet

WEIGHTS = "dit.safetensors"
SHAPE = "dit.json"
_SHOWN = 16


class ClassLoss(nn.Module):
    """The loss of a batch {"latents": (B, C, h, w), "label": (B,)}."""

    def __init__(self, dit: DiTTransformer2DModel, config: RunConfig) -> None:
        super().__init__()
        self.dit = dit
        self._objective = config.objective
        self._diffusion = Diffusion()

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        """Per picture; labels are dropped by the net's own embedder while it trains."""
        latents: Tensor = batch["latents"]
        noise, timesteps = drawn(latents, generator(seed), timestep, middle=self._objective.middle)
        noised = self._diffusion.noised(latents, noise, timesteps)
        with attention(latents, self.dit.config.patch_size):
            output = self.dit(noised, timestep=timesteps, class_labels=batch["label"]).sample
        weights = self._objective.weights
        return self._diffusion.losses(output, latents, noise, timesteps, **weights).by_name()


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A picture's class as a number. A class, so that it can be handed to loader processes."""

    numbers: Mapping[str, int]

    def __call__(self, sample: Sample, dice: random.Random) -> dict[str, Any]:
        return {"label": torch.tensor(self.numbers[sample.label or ""])}


def task(config: RunConfig, sources: Sources) -> Task:
    """The training of a DiT on the labels of the manifest."""
    torch.manual_seed(config.seed)
    vae = sources.vae()
    learning, held = sources.buckets(lambda s: s.label is not None)
    labels = sorted({s.label for b in [*learning, *held] for s in b.samples if s.label is not None})
    if len(labels) < 2:
        raise RequestError(
            "data",
            f"The pictures have {len(labels)} labels; class-to-image needs at least two.",
            "Put the pictures of each class into a folder of its own, or give labels in"
            " metadata.jsonl.",
        )
    numbers = {label: number for number, label in enumerate(labels)}

    describe = Labels(numbers=numbers)
    store = sources.latents(vae, [*learning, *held])
    scale = float(vae.config.scaling_factor)
    samples = LatentSamples(buckets=learning, latents=store, scale=scale, describe=describe)
    held_out = LatentSamples(buckets=held, latents=store, scale=scale, describe=describe)
    base = sources.base("transformer")
    size = sources.square
    dit = _started(base, labels) if base else _new(config, vae, len(labels), size.width // 8)
    dit.transformer_blocks[0].norm1.emb.class_embedder.dropout_prob = config.objective.dropout
    if config.gradient_checkpointing:
        dit.enable_gradient_checkpointing(checkpointed)
    shown = [i * len(labels) // _SHOWN for i in range(min(_SHOWN, len(labels)))]

    def preview() -> Image.Image:
        options = SamplingOptions(
            seed=config.preview.seed,
            steps=config.preview.steps,
            guidance=config.preview.guidance,
            size=size,
        )
        with lent(vae, next(dit.parameters()).device):
            return sheet(paint_classes(dit, vae, shown, options, LINEAR))

    return Task(
        net=ClassLoss(dit, config),
        samples=samples,
        held_out=held_out,
        held_out_batches=held_out.held_out_batches(config.batch, config.validation.pictures),
        plan=samples.plan(config.batch, config.seed),
        collate=collate,
        preview=preview,
        publish=lambda folder: write(dit, labels, folder / "transformer"),
        facts={"pictures": len(samples), "held_out": len(held_out), "classes": len(labels)},
    )


def _new(config: RunConfig, vae: AutoencoderKL, classes: int, side: int) -> DiTTransformer2DModel:
    return nets.dit(
        config.net, channels=vae.config.latent_channels, sample_size=side, classes=classes
    )


def _started(base: Base, labels: list[str]) -> DiTTransformer2DModel:
    """The net of an earlier run of the same classes. Raises ModelError."""
    folder = transformer_folder(base)
    dit, known = read(folder)
    if known != labels:
        raise ModelError(
            f"The net in {folder} knows {len(known)} other classes.",
            "Train it on pictures of the same classes, or leave base.transformer out.",
        )
    return dit


def write(dit: DiTTransformer2DModel, labels: list[str], folder: Path) -> Mapping[str, Any]:
    """The weights, and the shape with the names of the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(dit, str(folder / WEIGHTS))
    shape = {
        "heads": dit.config.num_attention_heads,
        "head_dim": dit.config.attention_head_dim,
        "layers": dit.config.num_layers,
        "patch": dit.config.patch_size,
        "interpolation_scale": dit.pos_embed.interpolation_scale,
    }
    about = {
        "shape": shape,
        "channels": dit.config.in_channels,
        "sample_size": dit.config.sample_size,
        "classes": labels,
    }
    files.write(folder / SHAPE, (json.dumps(about, indent=1) + "\n").encode())
    return {"classes": len(labels)}


def read(folder: Path) -> tuple[DiTTransformer2DModel, list[str]]:
    """A DiT that `write` wrote, and its classes. Raises ModelError."""
    try:
        about = json.loads((folder / SHAPE).read_text("utf-8"))
        dit: DiTTransformer2DModel = nets.dit(
            about["shape"],
            channels=about["channels"],
            sample_size=about["sample_size"],
            classes=len(about["classes"]),
        )
        load_model(dit, str(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The class-conditional net in {folder} cannot be read ({printable(error, 120)}).",
            "Run its stage again.",
        ) from None
    return dit, list(about["classes"])
