"""Stages 2 and 3: a PixArt transformer learns pictures from captions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from pipelines.denoising.latents import PIXELS_PER_LATENT
from pipelines.errors import ModelError, TrainingError, printable
from pipelines.sizes import Size
from pipelines.text.tokens import tokenize
from training import nets
from training.bases import Base, transformer_folder
from training.config import RunConfig
from training.data.features import FeatureStore, caption_key
from training.data.manifest import Sample
from training.data.sources import Sources
from training.loop.devices import attention, lent
from training.loop.rng import drawn, generator
from training.loop.task import Batch, Task
from training.methods import class_to_image
from training.methods.latent_data import LatentSamples, collate
from training.objective import LINEAR, Diffusion
from training.reparametrize import reparametrize
from training.sampling import SamplingOptions, paint, sheet


class CaptionLoss(nn.Module):
    """The loss of a batch {"latents", "embeds", "mask", "resolution", "aspect_ratio"}.

    A share of the captions is replaced by `null` (T, C), the features of the empty text with their
    own mask: what guidance will use when the model paints.
    """

    def __init__(
        self, transformer: PixArtTransformer2DModel, null: Tensor, config: RunConfig
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self._objective = config.objective
        self._diffusion = Diffusion()
        self.register_buffer("null", null, persistent=False)

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        """Per picture."""
        latents: Tensor = batch["latents"]
        draw = generator(seed)
        noise, timesteps = drawn(latents, draw, timestep, middle=self._objective.middle)
        # Validation is with the captions.
        share = self._objective.dropout if timestep is None else 0.0
        dropped = torch.rand(len(latents), generator=draw) < share
        embeds, mask = self._with_dropout(batch["embeds"], batch["mask"], dropped)
        micro = self.transformer.config.use_additional_conditions
        with attention(latents, self.transformer.config.patch_size):
            output = self.transformer(
                self._diffusion.noised(latents, noise, timesteps),
                encoder_hidden_states=embeds,
                encoder_attention_mask=mask,
                timestep=timesteps,
                added_cond_kwargs={
                    "resolution": batch["resolution"] if micro else None,
                    "aspect_ratio": batch["aspect_ratio"] if micro else None,
                },
            ).sample
        weights = self._objective.weights
        return self._diffusion.losses(output, latents, noise, timesteps, **weights).by_name()

    def _with_dropout(self, embeds: Tensor, mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        null: Tensor = self.null  # type: ignore[assignment]
        missing = len(null) - embeds.shape[1]
        if missing > 0:
            embeds = nn.functional.pad(embeds, (0, 0, 0, missing))
            mask = nn.functional.pad(mask, (0, missing))
        empty = torch.zeros_like(embeds[0])
        empty[: len(null)] = null.to(embeds)
        empty_mask = torch.zeros_like(mask[0])
        empty_mask[: len(null)] = 1
        chosen = dropped.to(embeds.device)
        return (
            torch.where(chosen[:, None, None], empty, embeds),
            torch.where(chosen[:, None], empty_mask, mask),
        )


@dataclass(frozen=True, kw_only=True)
class Captions:
    """One of a picture's captions, by dice, as features (T, C). `names` maps captions to texts.

    A class and not a closure: loader processes that are spawned get it by pickle.
    """

    texts: FeatureStore
    names: Mapping[str, str]

    def __call__(self, sample: Sample, dice: random.Random) -> dict[str, Any]:
        return {"embeds": self.texts.read(self.names[dice.choice(sample.captions)])}


def task(config: RunConfig, sources: Sources) -> Task:
    """The training of a PixArt transformer on the captions of the manifest."""
    torch.manual_seed(config.seed)
    vae = sources.vae()
    model = sources.text_row
    learning, held = sources.buckets(lambda s: bool(s.captions))
    everything = [s for b in [*learning, *held] for s in b.samples]
    prompts = config.preview.prompts
    captions = {c for s in everything for c in s.captions} | {"", *prompts}
    texts = sources.texts(sorted(captions))
    names = {c: caption_key(tokenize(c, model).ids) for c in captions}
    store = sources.latents(vae, [*learning, *held])

    describe = Captions(texts=texts, names=names)
    scale = float(vae.config.scaling_factor)
    samples = LatentSamples(buckets=learning, latents=store, scale=scale, describe=describe)
    held_out = LatentSamples(buckets=held, latents=store, scale=scale, describe=describe)
    null = texts.read(names[""])
    # Decided by the recipe, not by the shapes of the pictures that happen to be there.
    size = sources.square
    transformer = build(
        config,
        sources.base("transformer"),
        channels=vae.config.latent_channels,
        sample_size=size.width // PIXELS_PER_LATENT,
        caption_channels=null.shape[-1],
    )

    def publish(folder: Path) -> Mapping[str, Any]:
        transformer.save_pretrained(folder / "transformer")
        return {"parameters": sum(p.numel() for p in transformer.parameters())}

    features = [texts.read(names[prompt]) for prompt in prompts]
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return Task(
        net=CaptionLoss(transformer, null, config),
        samples=samples,
        held_out=held_out,
        held_out_batches=held_out.held_out_batches(config.batch, config.validation.pictures),
        plan=samples.plan(config.batch, config.seed),
        collate=collate,
        preview=_preview(config, transformer, vae, features, null, size),
        publish=publish,
        facts={
            "pictures": len(samples),
            "held_out": len(held_out),
            "captions": len(captions),
            "buckets": {str(b.size): len(b.samples) for b in learning},
        },
    )


def _preview(
    config: RunConfig,
    transformer: PixArtTransformer2DModel,
    vae: AutoencoderKL,
    features: Sequence[Tensor],
    null: Tensor,
    size: Size,
) -> Callable[[], Image.Image] | None:
    """What paints a sheet with one picture per features, or None where there are none."""
    if not features:
        return None
    options = SamplingOptions(
        seed=config.preview.seed,
        steps=config.preview.steps,
        guidance=config.preview.guidance,
        size=size,
    )

    def preview() -> Image.Image:
        with lent(vae, next(transformer.parameters()).device):
            return sheet(paint(transformer, vae, features, null, options, LINEAR))

    return preview


def build(
    config: RunConfig,
    base: Base | None,
    *,
    channels: int,
    sample_size: int,
    caption_channels: int,
) -> PixArtTransformer2DModel:
    """The transformer to train: new, re-parametrised from a class-conditional net, or an earlier
    one that may get another size or micro-conditions. Raises ModelError, TrainingError."""
    net: dict[str, Any] = dict(config.net)
    sizes = {
        "channels": channels,
        "sample_size": sample_size,
        "caption_channels": caption_channels,
    }
    if base is None:
        return nets.pixart(net, **sizes)
    folder = transformer_folder(base)
    if (folder / class_to_image.SHAPE).is_file():
        dit, _ = class_to_image.read(folder)
        shape = {
            "heads": dit.config.num_attention_heads,
            "head_dim": dit.config.attention_head_dim,
            "layers": dit.config.num_layers,
            "patch": dit.config.patch_size,
            "interpolation_scale": dit.pos_embed.interpolation_scale,
        }
        model = nets.pixart(shape | net, **sizes)
        nets.silence_size_side(model)
        reparametrize(dit, model)
        return model
    return _grown(net, folder, sizes)


def _grown(net: dict[str, Any], folder: Path, sizes: Mapping[str, int]) -> PixArtTransformer2DModel:
    """The weights of an earlier run in a net of this run's size and conditions."""
    try:
        old: PixArtTransformer2DModel = PixArtTransformer2DModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} cannot be loaded ({printable(error, 160)}).") from None
    shape = {
        "heads": old.config.num_attention_heads,
        "head_dim": old.config.attention_head_dim,
        "layers": old.config.num_layers,
        "patch": old.config.patch_size,
        "interpolation_scale": old.config.interpolation_scale,
        "micro_conditions": old.config.use_additional_conditions,
    }
    model = nets.pixart(shape | net, **sizes)
    nets.silence_size_side(model)
    try:
        report = model.load_state_dict(old.state_dict(), strict=False)
    except RuntimeError as error:
        raise TrainingError(
            f"The weights in {folder} do not fit the recipe ({printable(error, 200)})."
        ) from None
    strange = [name for name in report.missing_keys if "adaln_single.emb." not in name]
    if strange or report.unexpected_keys:
        first = [*strange, *report.unexpected_keys][0]
        raise TrainingError(f"The weights in {folder} do not fit the recipe ({first}).")
    return model
