"""The one way from encoded texts to finished latents, for everything that paints.

The engine, the previews of trainings, evaluations and the benchmark assemble schedule, start,
predictions and steps here and nowhere else; what differs between them stands in the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelines.denoising.denoise import (
    DenoisingStep,
    StepHook,
    denoise,
    make_schedule,
    start_latents,
)
from pipelines.denoising.latents import PIXELS_PER_LATENT
from pipelines.denoising.transformer import BlockResidual, Predict
from pipelines.request import GenerationRequest


class NoisePredictor(Protocol):
    """What `Sampling` asks of a net: `Transformer` is one."""

    @property
    def channels(self) -> int:
        """Channels of its latents."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it works."""
        ...

    def predictor(
        self,
        texts: Sequence[Tensor],
        size: tuple[int, int],
        *,
        variance: bool = False,
        original_size: tuple[int, int] | None = None,
        residual: BlockResidual | None = None,
    ) -> Predict:
        """See `Transformer.predictor`."""
        ...


class Sampling:
    """One picture that is being denoised, from its noise to its latents.

    `texts` are the features (T, C) of [negative, prompt] where the request is guided, else of
    [prompt]. `betas` and `learned_variance` say what noise the net was trained with. `clean` are
    the latents (1, C, h, w) to start from, where the request names a picture. `between` is called
    after every step and may change the latents; `residual` is added behind blocks of the net.
    Without either nothing is computed for it.
    """

    def __init__(
        self,
        net: NoisePredictor,
        texts: Sequence[Tensor],
        request: GenerationRequest,
        betas: Mapping[str, Any],
        *,
        learned_variance: bool,
        clean: Tensor | None = None,
        between: StepHook | None = None,
        residual: BlockResidual | None = None,
    ) -> None:
        self._guidance, self._between = request.guidance, between
        self._schedule = make_schedule(request, dict(betas), learned_variance=learned_variance)
        # On the processor, so that a seed gives the same noise on every device.
        self._generator = torch.Generator("cpu").manual_seed(request.seed)
        size = (request.height // PIXELS_PER_LATENT, request.width // PIXELS_PER_LATENT)
        shape = (1, net.channels, *size)
        start = start_latents(self._schedule, shape, self._generator, clean)
        self._start = start.to(net.device)
        self._predict = net.predictor(
            texts,
            size,
            variance=self._schedule.wants_variance,
            original_size=request.told_size,
            residual=residual,
        )

    @property
    def steps(self) -> int:
        """How many steps there will be, as people count them."""
        return self._schedule.steps

    def walk(self) -> Iterator[DenoisingStep]:
        """Step after step; the latents of the last one are finished. Can be walked once."""
        return denoise(
            self._predict,
            self._schedule,
            self._start,
            guidance=self._guidance,
            generator=self._generator,
            between=self._between,
        )

    def latents(self) -> Tensor:
        """The finished latents (1, C, h, w), float32 on the net's device."""
        latents = self._start
        for step in self.walk():
            latents = step.latents
        return latents
