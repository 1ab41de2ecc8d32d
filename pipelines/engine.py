"""What is loaded now, and the one way from a request to pictures."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines import latents, loader, memory, pictures, styles
from pipelines.catalog import Catalog
from pipelines.denoise import Step, denoise, make_schedule, start_latents
from pipelines.errors import ModelError, OutOfMemoryError
from pipelines.loader import Components
from pipelines.memory import Machine
from pipelines.preview import Preview
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.prompt_cache import PromptCache
from pipelines.request import GenerationRequest
from pipelines.text import TextEncoder
from pipelines.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Finished pixels and the request that paints exactly them again.

    `weights` is the hash of the model's weights, `seconds` what the painting took.
    """

    image: Image.Image
    request: GenerationRequest
    seconds: float
    weights: str


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    parts: Components
    text: TextEncoder
    transformer: Transformer
    preview: Preview
    fingerprint: object
    weights: str


class Engine:
    """Owns the device. Not safe for threads: one engine, one thread.

    `inputs` is the folder of kept pictures that requests may start from; `prompts` keeps encoded
    prompts on disk; `machine` is what to run on, by default the best that is found.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        inputs: Path,
        prompts: PromptCache | None = None,
        machine: Machine | None = None,
    ) -> None:
        self._catalog = catalog
        self._inputs = inputs
        self._prompts = prompts
        self._loaded: _Loaded | None = None
        self.machine = machine or loader.probe()

    def load(self, model_id: str, report: Report) -> _Loaded:
        """Makes `model_id` the loaded model.

        Raises UnknownNameError, ModelError, OutOfMemoryError.
        """
        model = self._catalog.find(model_id)
        # A model that was installed again has the same row and other files.
        fingerprint = loader.fingerprint(model)
        loaded = self._loaded
        if loaded and (loaded.parts.model, loaded.fingerprint) == (model, fingerprint):
            return loaded
        report(Progress(stage=Stage.LOADING))
        self.unload()
        with self._memory_faults():
            plan = memory.plan(self.machine)
            parts = loader.load(model, plan)
            with loader.faults(model, "vae"):
                preview = Preview(parts.vae)
            self._loaded = _Loaded(
                parts=parts,
                text=TextEncoder(
                    model,
                    lambda: loader.text_encoder(model, plan),
                    identity=loader.text_identity(model, plan),
                    cache=self._prompts,
                ),
                transformer=Transformer(parts.transformer),
                preview=preview,
                fingerprint=fingerprint,
                weights=loader.weights_hash(model),
            )
        return self._loaded

    def unload(self) -> None:
        """Frees the loaded model."""
        self._loaded = None
        gc.collect()
        if self.machine.device == "cuda":
            torch.cuda.empty_cache()

    def generate(
        self, request: GenerationRequest, report: Report, should_stop: ShouldStop
    ) -> Iterator[Picture]:
        """Paints the pictures of `request` one after another.

        Each is painted alone, so that it does not depend on its neighbours: picture i is the
        picture of seed + i to the last bit. Ends early once `should_stop()` is true. Raises
        StudioError.
        """
        loaded = self.load(request.model, report)
        clock = _Clock(request.count)
        with torch.inference_mode(), self._memory_faults():
            if should_stop():
                return
            report(Progress(stage=Stage.ENCODING, pictures=request.count))
            features = self._features(loaded, request)
            clean = self._clean_start(loaded, request)
            for index in range(request.count):
                if should_stop():
                    return
                picture = _paint(
                    loaded,
                    request.single(index),
                    features,
                    clean,
                    report=clock.watch(report, index),
                    should_stop=should_stop,
                )
                if picture is None:
                    return
                yield picture

    def _features(self, loaded: _Loaded, request: GenerationRequest) -> list[Tensor]:
        prompt, negative = styles.find(request.style).apply(request.prompt, request.negative)
        return loaded.text.conditions(prompt, negative if request.guided else None)

    def _clean_start(self, loaded: _Loaded, request: GenerationRequest) -> Tensor | None:
        """The latents of the picture to start from, or None."""
        if request.init is None:
            return None
        picture = pictures.load(pictures.find(request.init, self._inputs))
        fitted = latents.fit(picture, request.width, request.height)
        return latents.encode(loaded.parts.vae, latents.to_tensor(fitted)).cpu()

    @contextmanager
    def _memory_faults(self) -> Iterator[None]:
        """Maps lack of memory to OutOfMemoryError and gives back what is only cached."""
        try:
            yield
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
        else:
            return
        # Outside the handler: the error held the frames, and they held the tensors.
        gc.collect()
        if self.machine.device == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(
            "There is not enough memory for this picture.",
            "Choose a smaller size, or close other programs that use the card.",
        )


def _paint(
    loaded: _Loaded,
    request: GenerationRequest,
    features: list[Tensor],
    clean: Tensor | None,
    *,
    report: Report,
    should_stop: ShouldStop,
) -> Picture | None:
    """One picture, or None when it was stopped."""
    started = time.perf_counter()
    parts = loaded.parts
    schedule = make_schedule(
        request,
        parts.betas,
        learned_variance=parts.model.learned_variance,
    )
    generator = torch.Generator("cpu").manual_seed(request.seed)
    channels = parts.transformer.config.in_channels
    shape = (1, channels, request.height // 8, request.width // 8)
    start = start_latents(schedule, shape, generator, clean).to(parts.device)
    predict = loaded.transformer.predictor(
        features, (shape[2], shape[3]), variance=schedule.wants_variance
    )
    step: Step | None = None
    report(Progress(stage=Stage.DENOISING, done=0, total=schedule.steps))
    for step in denoise(predict, schedule, start, guidance=request.guidance, generator=generator):
        if should_stop():
            return None
        report(
            Progress(
                stage=Stage.DENOISING,
                done=step.done,
                total=step.total,
                preview=loaded.preview.jpeg(step.denoised),
            )
        )
    assert step is not None, "a schedule has at least one step"
    report(Progress(stage=Stage.DECODING))
    pixels = latents.decode(parts.vae, step.latents)
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
    )


class _Clock:
    """Estimates the time left of a job from the steps done so far."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = time.perf_counter()

    def watch(self, report: Report, index: int) -> Report:
        """`report` for picture `index`, with the picture's number and the time left filled in."""

        def fill(progress: Progress) -> None:
            left = None
            share = progress.done / progress.total if progress.total else 0.0
            if progress.stage is Stage.DECODING:
                share = 1.0
            done = (index + share) / self._count
            if done > 0:
                left = (time.perf_counter() - self._started) * (1 / done - 1)
            report(replace(progress, picture=index + 1, pictures=self._count, seconds_left=left))

        return fill
