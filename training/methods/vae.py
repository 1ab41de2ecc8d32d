"""A small VAE: L1, distance of features, a light pull towards a Gaussian, and an adversary.

The model and its losses are those of AutoencoderKL (arXiv 2112.10752).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from pipelines.denoising.latents import to_picture
from training.config import RunConfig
from training.data.pixels import Crops
from training.data.sources import Sources
from training.data.split import split
from training.loop.order import Pick
from training.loop.rng import generator
from training.loop.task import Batch, Task, stacked
from training.methods.adversary import Adversary
from training.perceptual import Features

_SHOWN = 16


class VaeLoss(nn.Module):
    """The loss of a batch {"pixels": (B, 3, s, s) in [-1, 1]}."""

    def __init__(self, vae: AutoencoderKL, config: RunConfig) -> None:
        super().__init__()
        self.vae = vae
        self._perceptual = config.objective.perceptual
        self._kl = config.objective.kl
        self._adversarial = config.objective.adversarial
        self._decoder_only = config.parts == "decoder"
        self.features = Features(depth=3) if self._perceptual else None
        self.adversary = Adversary() if self._adversarial else None

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        """Per picture: loss, l1, psnr's squared error on [0, 1], kl."""
        pixels: Tensor = batch["pixels"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._decoder_only):
            posterior = self.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(seed)).to(pixels.device)
        sampled = posterior.mean + posterior.std * noise
        rebuilt = self.vae.decode(sampled).sample.float()
        l1 = (rebuilt - pixels).abs().flatten(1).mean(1)
        kl = posterior.kl().float() / pixels[0].numel()
        losses = {
            "loss": l1 + self._kl * kl,
            "l1": l1,
            "squared": ((rebuilt - pixels) / 2).square().flatten(1).mean(1),
            "kl": kl,
        }
        if self.features is not None:
            # Half of a batch, counted twice: the distance costs more than the VAE itself.
            half = -(-len(pixels) // 2)
            distance = self.features.distance(rebuilt[:half], pixels[:half])
            losses["perceptual"] = nn.functional.pad(
                distance * (len(pixels) / half), (0, len(pixels) - half)
            )
            losses["loss"] = losses["loss"] + self._perceptual * losses["perceptual"]
        if self.adversary is not None:
            losses["fooled"], losses["critic"] = self.adversary(rebuilt, pixels)
            losses["loss"] = (
                losses["loss"] + self._adversarial * losses["fooled"] + losses["critic"]
            )
        return losses


def build(config: RunConfig, begun: AutoencoderKL | None) -> AutoencoderKL:
    """The VAE to train: `begun`, which goes on, or a new one of the shape in `config.net`."""
    if begun is not None:
        return begun.requires_grad_(True)
    net = dict(config.net)
    channels = tuple(net.pop("channels", (32, 64, 128, 128)))  # type: ignore[arg-type]
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        mid_block_add_attention=False,
        **({"layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 16} | net),
    )


def task(config: RunConfig, sources: Sources) -> Task:
    """The training of a VAE on crops of `config.data.side` pixels."""
    torch.manual_seed(config.seed)
    vae = build(config, sources.vae() if sources.base("vae") else None)
    manifest = sources.manifest
    learning, held = split(manifest, config.data.held_out, config.seed)
    # The scale and the sheet need pictures; without held-out ones they take those there are.
    held = held or learning
    side = config.data.side or 64
    if config.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if config.parts == "decoder":
        # The latents stay what they were, and so does every transformer that paints them.
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    samples = Crops(manifest, learning, side)
    held_out = Crops(manifest, held, side)
    count = min(len(held), config.validation.pictures)
    batches = [tuple(range(i, min(i + config.batch, count))) for i in range(0, count, config.batch)]

    def preview() -> Image.Image:
        return _sheet(vae, held_out, count)

    def publish(folder: Path) -> Mapping[str, Any]:
        return _publish(vae, held_out, count, folder, rescale=config.parts == "all")

    return Task(
        net=VaeLoss(vae, config),
        samples=samples,
        held_out=held_out,
        held_out_batches=batches,
        plan=samples.plan(config.batch, config.seed),
        collate=stacked,
        preview=preview,
        publish=publish,
        fixed_timesteps=False,
        facts={"pictures": len(learning), "held_out": len(held)},
    )


def _pixels(samples: Crops, numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.stack([samples[Pick(index=i, key=i)]["pixels"] for i in numbers]).to(device)


def _sheet(vae: AutoencoderKL, held_out: Crops, count: int) -> Image.Image:
    """Originals above what is rebuilt of them."""
    device = next(vae.parameters()).device
    pixels = _pixels(held_out, range(min(_SHOWN, count)), device)
    rebuilt = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.float()
    side = pixels.shape[-1]
    sheet = Image.new("RGB", (side * len(pixels), side * 2))
    for column in range(len(pixels)):
        for row, source in enumerate((pixels, rebuilt)):
            picture = to_picture(source[column : column + 1].cpu())
            sheet.paste(picture, (side * column, side * row))
    return sheet


@torch.no_grad()
def _publish(
    vae: AutoencoderKL, held_out: Crops, count: int, folder: Path, *, rescale: bool
) -> Mapping[str, Any]:
    """Writes the VAE and says how good it is. `rescale`: with the scale that gives its latents unit
    variance, else with the one that it had."""
    device = next(vae.parameters()).device
    latents, errors = [], []
    for index in range(count):
        pixels = _pixels(held_out, [index], device)
        mode = vae.encode(pixels).latent_dist.mode()
        latents.append(mode.flatten())
        rebuilt = vae.decode(mode).sample.clamp(-1, 1)
        errors.append(((rebuilt - pixels) / 2).square().mean())
    psnr = float((-10 * torch.log10(torch.stack(errors).clamp(min=1e-10))).mean())
    scale = float(vae.config.scaling_factor)
    if rescale:
        scale = 1.0 / float(torch.cat(latents).std())
        vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(folder / "vae")
    return {"psnr": round(psnr, 2), "scaling_factor": scale}
