"""One request on a loaded model: texts, denoising and decoding, picture by picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines import pictures
from pipelines.denoising import latents
from pipelines.denoising.denoise import DenoisingStep
from pipelines.denoising.preview import Previews
from pipelines.denoising.sampling import Sampling
from pipelines.errors import ModelError, StudioError
from pipelines.memory import planning
from pipelines.memory.planning import DevicePlan
from pipelines.models import loader
from pipelines.models.loaded import Loaded
from pipelines.picture_record import Picture
from pipelines.progress import Clock, Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class PictureWork:
    """A job as it was asked for."""

    request: GenerationRequest
    upcoming: Sequence[GenerationRequest]
    report: Report
    should_stop: ShouldStop
    clock: Clock


@dataclass
class StageMark:
    """The stage that a picture has reached: what is blamed where the memory runs out."""

    stage: planning.PlanStage | None = None


class PictureJob:
    """One request on one loaded model under one plan; `inputs` holds the pictures to start from."""

    def __init__(
        self, loaded: Loaded, plan: DevicePlan, work: PictureWork, inputs: Path, mark: StageMark
    ) -> None:
        self._loaded, self._plan, self._work = loaded, plan, work
        self._request, self._inputs, self._mark = work.request, inputs, mark

    def paint(self, index: int) -> Picture | None:
        """Picture `index`, or None when it was stopped."""
        report = self._work.clock.watch(self._work.report, index)
        self._mark.stage = "text"
        texts = self._texts(self._work.report)
        loaded, request = self._loaded, self._request.single(index)
        if self._work.should_stop():
            return None
        self._mark.stage = "decoding"
        clean = self._clean_start()
        self._mark.stage = "denoising"
        loaded.read(self._work.report, self._plan)
        started = time.perf_counter()
        end = self._denoised(request, texts, clean, report)
        if end is None:
            return None
        self._mark.stage = "decoding"
        report(Progress(stage=Stage.DECODING))
        loaded.before_pixels(self._plan)
        pixels = latents.decode(loaded.vae, end, tile=self._plan.tile)
        if not torch.isfinite(pixels).all():
            raise ModelError(
                "The model painted numbers that are no picture (NaN or infinity).",
                "Try another sampler, more steps or less guidance.",
            )
        return Picture(
            image=latents.to_picture(pixels),
            request=request,
            seconds=time.perf_counter() - started,
            weights=loaded.weights,
            lora_hashes=loaded.lora_hashes,
        )

    def _texts(self, report: Report) -> list[Tensor]:
        """The features of [negative, prompt], or [prompt] without guidance."""
        request, loaded = self._request, self._loaded
        texts, how = request.texts, request.cleaning
        if not loaded.text.knows(*texts, cleaning=how):
            report(Progress(stage=Stage.ENCODING, pictures=request.count))
            loaded.before_text(self._plan)
            with loader.faults(loaded.model, "text encoder"):
                found = [loaded.text.features(text, how) for text in texts]
                if not self._plan.keeps_text:
                    self._look_ahead()
            loaded.after_text()
            return found
        return [loaded.text.features(text, how) for text in texts]

    def _look_ahead(self) -> None:
        """One visit of T5 for the whole queue; whatever fails here is left to its own job."""
        for one in self._work.upcoming:
            if self._work.should_stop() or one.model != self._request.model:
                continue
            try:
                self._loaded.text.remember(*one.texts, cleaning=one.cleaning)
            except Exception as error:
                if not planning.is_out_of_memory(error) and not isinstance(error, StudioError):
                    raise
                return

    def _clean_start(self) -> Tensor | None:
        """The latents of the picture to start from, or None."""
        request = self._request
        if request.init is None:
            return None
        picture = pictures.load(pictures.find(request.init, self._inputs))
        fitted = latents.fit(picture, request.width, request.height)
        self._loaded.before_pixels(self._plan)
        return latents.encode(self._loaded.vae, latents.to_tensor(fitted)).cpu()

    def _denoised(
        self,
        request: GenerationRequest,
        texts: list[Tensor],
        clean: Tensor | None,
        report: Report,
    ) -> Tensor | None:
        """The latents after the last step, or None when it was stopped."""
        loaded = self._loaded
        previews = Previews(loaded.preview, loaded.device)
        sampling = Sampling(
            loaded.transformer,
            texts,
            request,
            loaded.betas,
            learned_variance=loaded.model.learned_variance,
            clean=clean,
        )
        report(Progress(stage=Stage.DENOISING, done=0, total=sampling.steps))
        step: DenoisingStep | None = None
        for step in sampling.walk():
            if self._work.should_stop():
                return None
            report(
                Progress(
                    stage=Stage.DENOISING,
                    done=step.done,
                    total=step.total,
                    preview=previews.after_step(step.denoised),
                )
            )
        assert step is not None, "a schedule has at least one step"
        return step.latents
