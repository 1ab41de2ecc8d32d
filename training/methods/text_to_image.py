"""Stages 2 and 3: a PixArt transformer learns pictures from captions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from training.loop.devices import attention, checkpointed, lent
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
        self.objective = config.objective
        self.diffusion = Diffusion()
        self.register_buffer("null", null, persistent=False)

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        """Per picture."""
        latents: Tensor = batch["latents"]
        draw = generator(seed)
        noise, timesteps = drawn(latents, draw, timestep, middle=self.objective.middle)
        # Validation is with the captions.
        share = self.objective.dropout if timestep is None else 0.0
        dropped = torch.rand(len(latents), generator=draw) < share
        null: Tensor = self.null  # type: ignore[assignment]
        embeds, mask = replaced(batch["embeds"], batch["mask"], null, dropped)
        noised = self.diffusion.noised(latents, noise, timesteps)
        output = predicted(self.transformer, batch, noised, timesteps, embeds=embeds, mask=mask)
        weights = self.objective.weights
        return self.diffusion.losses(output, latents, noise, timesteps, **weights).by_name()


def predicted(
    net: PixArtTransformer2DModel,
    batch: Batch,
    noised: Tensor,
    timesteps: Tensor,
    *,
    embeds: Tensor,
    mask: Tensor,
) -> Tensor:
    """What `net` says of noised latents (B, C, h, w) with the sizes of `batch`."""
    micro = net.config.use_additional_conditions
    with attention(noised, net.config.patch_size):
        output: Tensor = net(
            noised,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs={
                "resolution": batch["resolution"] if micro else None,
                "aspect_ratio": batch["aspect_ratio"] if micro else None,
            },
        ).sample
    return output


def replaced(
    embeds: Tensor, mask: Tensor, features: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Texts (B, T, C) with their mask (B, T), and `features` (U, C) in place of the `chosen`."""
    missing = len(features) - embeds.shape[1]
    if missing > 0:
        embeds = nn.functional.pad(embeds, (0, 0, 0, missing))
        mask = nn.functional.pad(mask, (0, missing))
    other = torch.zeros_like(embeds[0])
    other[: len(features)] = features.to(embeds)
    other_mask = torch.zeros_like(mask[0])
    other_mask[: len(features)] = 1
    chosen = chosen.to(embeds.device)
    return (
        torch.where(chosen[:, None, None], other, embeds),
        torch.where(chosen[:, None], other_mask, mask),
    )


@dataclass(frozen=True, kw_only=True)
class Captions:
    """One of a picture's captions, by dice, as features (T, C). `names` maps captions to texts;
    `otherwise` has those of the pictures without a caption of their own, by their paths.

    A class and not a closure: loader processes that are spawned get it by pickle.
    """

    texts: FeatureStore
    names: Mapping[str, str]
    otherwise: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, sample: Sample, dice: random.Random) -> dict[str, Any]:
        captions = sample.captions or self.otherwise[sample.path]
        return {"embeds": self.features(dice.choice(captions))}

    def features(self, caption: str) -> Tensor:
        """Those of a caption that was asked for (T, C)."""
        return self.texts.read(self.names[caption])


@dataclass(frozen=True, kw_only=True)
class CaptionData:
    """What a training on captions reads. `null` are the features of the empty text (T, C)."""

    vae: AutoencoderKL
    captions: Captions
    samples: LatentSamples
    held_out: LatentSamples

    @property
    def null(self) -> Tensor:
        """The features of the empty text (T, C)."""
        return self.captions.features("")

    @classmethod
    def read(
        cls,
        config: RunConfig,
        sources: Sources,
        *,
        otherwise: Callable[[Sample], tuple[str, ...]] | None = None,
        more: Iterable[str] = (),
        tells_bucket: bool = False,
    ) -> CaptionData:
        """Latents and texts, computed where they are missing: captions, those of the previews, and
        `more`. Pictures without a caption are used where `otherwise` gives them some."""
        vae = sources.vae()
        model = sources.text_row
        learning, held = sources.buckets(lambda s: bool(s.captions or otherwise))
        everything = [s for b in [*learning, *held] for s in b.samples]
        given = {s.path: otherwise(s) for s in everything if otherwise and not s.captions}
        written = {c for s in everything for c in s.captions or given[s.path]}
        captions = written | {"", *config.preview_prompts, *more}
        texts = sources.texts(sorted(captions))
        names = {c: caption_key(tokenize(c, model).ids) for c in captions}
        describe = Captions(texts=texts, names=names, otherwise=given)
        samples = LatentSamples(
            buckets=learning,
            latents=sources.latents(vae, [*learning, *held]),
            scale=float(vae.config.scaling_factor),
            describe=describe,
            tells_bucket=tells_bucket,
        )
        held_out = replace(samples, buckets=held)
        return cls(vae=vae, captions=describe, samples=samples, held_out=held_out)

    def task(
        self,
        config: RunConfig,
        net: CaptionLoss,
        size: Size,
        publish: Callable[[Path], Mapping[str, Any]],
    ) -> Task:
        """The training of `net` on these; its previews have `size`."""
        transformer = net.transformer
        features = [self.captions.features(prompt) for prompt in config.preview_prompts]
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing(checkpointed)
        return Task(
            net=net,
            samples=self.samples,
            held_out=self.held_out,
            held_out_batches=self.held_out.held_out_batches(
                config.batch, config.validation.pictures
            ),
            plan=self.samples.plan(config.batch, config.seed),
            collate=collate,
            preview=_preview(config, transformer, self.vae, features, self.null, size),
            publish=publish,
            facts={
                "pictures": len(self.samples),
                "held_out": len(self.held_out),
                "captions": len(self.captions.names),
                "buckets": {str(b.size): len(b.samples) for b in self.samples.buckets},
            },
        )


def task(config: RunConfig, sources: Sources) -> Task:
    """The training of a PixArt transformer on the captions of the manifest."""
    torch.manual_seed(config.seed)
    data = CaptionData.read(config, sources)
    # Decided by the recipe, not by the shapes of the pictures that happen to be there.
    size = sources.square
    transformer = build(
        config,
        sources.base("transformer"),
        channels=data.vae.config.latent_channels,
        sample_size=size.width // PIXELS_PER_LATENT,
        caption_channels=data.null.shape[-1],
    )

    def publish(folder: Path) -> Mapping[str, Any]:
        transformer.save_pretrained(folder / "transformer")
        return {"parameters": sum(p.numel() for p in transformer.parameters())}

    return data.task(config, CaptionLoss(transformer, data.null, config), size, publish)


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
