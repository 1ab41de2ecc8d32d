"""Sample pictures with the weights as they are, through the studio's own sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from pipelines.denoising.latents import decode, to_picture
from pipelines.denoising.samplers import DEFAULT_SAMPLER
from pipelines.denoising.sampling import NoisePredictor, Sampling
from pipelines.denoising.transformer import BlockResidual, Predict, Transformer
from pipelines.request import GenerationRequest
from pipelines.sizes import Size

_CLASS_SAMPLER = "ddim"
_CASTS = "cast_input_dtype_enabled"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How samples are painted; picture i gets seed + i."""

    seed: int
    steps: int
    guidance: float
    size: Size

    def request(self, index: int, sampler: str) -> GenerationRequest:
        """The request of picture `index`."""
        return GenerationRequest(
            prompt="sample",
            model="training",
            sampler=sampler,
            steps=self.steps,
            guidance=self.guidance,
            width=self.size.width,
            height=self.size.height,
            seed=self.seed + index,
        )


def paint(
    transformer: PixArtTransformer2DModel,
    vae: AutoencoderKL,
    features: Sequence[Tensor],
    null: Tensor,
    options: SamplingOptions,
    betas: dict[str, Any],
) -> list[Image.Image]:
    """One picture per features (T, C), with `null` as what guidance steers away from."""
    found = sampled(transformer, features, null, options, betas)
    return [to_picture(decode(vae, latents)) for latents in found]


def sampled(
    transformer: PixArtTransformer2DModel,
    features: Sequence[Tensor],
    null: Tensor,
    options: SamplingOptions,
    betas: dict[str, Any],
) -> list[Tensor]:
    """The latents (1, C, h, w) of one picture per features (T, C), scaled as the net sees them."""
    net = Transformer(transformer)
    requests = [options.request(index, DEFAULT_SAMPLER) for index in range(len(features))]
    with _alone(transformer):
        return [
            _latents(net, (null, one), request, betas)
            for one, request in zip(features, requests, strict=True)
        ]


@contextmanager
def _alone(net: nn.Module) -> Iterator[None]:
    """Outside of autocast the layers of a LoRA take what comes in as exactly as they are."""
    layers: list[Any] = [one for one in net.modules() if hasattr(one, _CASTS)]
    before = [getattr(layer, _CASTS) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, _CASTS, True)
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            setattr(layer, _CASTS, value)


def paint_classes(
    dit: DiTTransformer2DModel,
    vae: AutoencoderKL,
    labels: Sequence[int],
    options: SamplingOptions,
    betas: dict[str, Any],
) -> list[Image.Image]:
    """One picture per class, with the class that means none as what guidance steers away from."""
    net = _ClassNet(dit)
    none = torch.tensor([dit.config.num_embeds_ada_norm])
    requests = [options.request(index, _CLASS_SAMPLER) for index in range(len(labels))]
    return [
        to_picture(decode(vae, _latents(net, (none, torch.tensor([label])), request, betas)))
        for label, request in zip(labels, requests, strict=True)
    ]


def _latents(
    net: NoisePredictor,
    pair: tuple[Tensor, Tensor],
    request: GenerationRequest,
    betas: dict[str, Any],
) -> Tensor:
    texts = [one.to(net.device) for one in (pair if request.guided else pair[1:])]
    return Sampling(net, texts, request, betas, learned_variance=False).latents()


class _ClassNet:
    """A class-conditional net as what samples are painted with: its texts are labels (1,)."""

    def __init__(self, dit: DiTTransformer2DModel) -> None:
        self._dit = dit

    @property
    def channels(self) -> int:
        """Channels of its latents."""
        count: int = self._dit.config.in_channels
        return count

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return next(self._dit.parameters()).device

    def predictor(
        self,
        texts: Sequence[Tensor],
        size: tuple[int, int],
        *,
        variance: bool = False,
        original_size: tuple[int, int] | None = None,
        residual: BlockResidual | None = None,
    ) -> Predict:
        """See `Transformer.predictor`. It knows no sizes, and nothing is added to its blocks."""
        classes, rows = torch.cat(list(texts)), len(texts)
        channels = self._dit.out_channels if variance else self.channels

        def predict(latents: Tensor, timestep: float) -> Tensor:
            output: Tensor = self._dit(
                latents.expand(rows, -1, -1, -1),
                timestep=torch.full((rows,), timestep, device=self.device, dtype=torch.long),
                class_labels=classes,
            ).sample
            return output.float()[:, :channels]

        return predict


def sheet(found: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures in rows on white."""
    width = max(p.width for p in found)
    height = max(p.height for p in found)
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    result = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(found):
        place = ((index % columns) * width, (index // columns) * height)
        result.paste(picture, place)
    return result
