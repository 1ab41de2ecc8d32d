"""What is loaded now, and the one way from a request to pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lora_manager.card import LoraUse
from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.denoising import active_loras, latents
from pipelines.denoising.denoise import DenoisingStep, denoise, make_schedule, start_latents
from pipelines.denoising.preview import Previews
from pipelines.errors import ModelError, OutOfMemoryError, StudioError
from pipelines.memory import forecast, model_numbers, out_of_memory, planning
from pipelines.memory.available_memory import Supply
from pipelines.memory.measured import measured
from pipelines.memory.planning import DevicePlan, Machine, MemoryRequest
from pipelines.models import loader
from pipelines.models.loaded import Loaded, free
from pipelines.progress import Clock, Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest
from pipelines.text import text_loader

# Often enough to see every step, seldom enough to cost nothing.
_LOOK = 0.02


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Finished pixels and the request that paints exactly them again.

    `weights` is the hash of the model's weights, `seconds` what the painting took; `notes` say
    what was done for lack of memory. `peak` is the memory in bytes at its highest, above what the
    process held before its first model; `forecast` what the plan had said.
    """

    image: Image.Image
    request: GenerationRequest
    seconds: float
    weights: str
    peak: int = 0
    forecast: int = 0
    notes: tuple[str, ...] = ()


class Engine:
    """Owns the device. Not safe for threads: one engine, one thread.

    `inputs` is the folder of kept pictures that requests may start from; `cache` keeps encoded
    prompts and quantised encoders on disk; `machine` is what to run on, by default the best that
    is found.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        inputs: Path,
        cache: Path | None = None,
        machine: Machine | None = None,
    ) -> None:
        self._catalog = catalog
        self._inputs = inputs
        self._cache = cache
        self._loaded: Loaded | None = None
        self._supply = Supply(machine)

    @property
    def machine(self) -> Machine:
        """What paints, with the memory that was free when it was last looked at."""
        return self._supply.machine

    def load(self, model_id: str, report: Report) -> Loaded:
        """Makes `model_id` the loaded model, ready to paint its default size.

        Raises UnknownNameError, ModelError, OutOfMemoryError.
        """
        size = self._catalog.find(model_id).default_size
        memory_request = MemoryRequest(width=size.width, height=size.height)
        plan = self.plan(model_id, memory_request)
        if self._reads(model_id, plan, report):
            assert self._loaded is not None
            return self._loaded
        # Here nothing holds its tensors any more.
        self.unload()
        raise out_of_memory.too_little()

    def _reads(self, model_id: str, plan: DevicePlan, report: Report) -> bool:
        """False where the memory did not suffice to load the model."""
        try:
            with torch.inference_mode():
                self._open(model_id, plan, report).read(report, plan)
        except Exception as error:
            if not planning.is_out_of_memory(error):
                raise
            return False
        return True

    def plan(self, model_id: str, memory_request: MemoryRequest) -> DevicePlan:
        """How `model_id` would paint `memory_request` with what is free now. Raises StudioError."""
        about = model_numbers.of(self._catalog.find(model_id))
        return planning.plan(self._machine_now(model_id), about, memory_request)

    def plan_of(self, request: GenerationRequest) -> DevicePlan:
        """How `request` would be painted now. Raises StudioError."""
        return self.plan(request.model, _memory_request(request))

    def unload(self) -> None:
        """Frees the loaded model."""
        device = torch.device(self.machine.device)
        self._loaded = None
        free(device)

    def generate(
        self,
        request: GenerationRequest,
        report: Report,
        should_stop: ShouldStop,
        *,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> Iterator[Picture]:
        """Paints the pictures of `request` one after another.

        Each is painted alone, so that it does not depend on its neighbours: picture i is the
        picture of seed + i to the last bit. Where the memory does not suffice, the same picture is
        begun again in the next cheaper way, and says so. The texts of `upcoming` are encoded along
        with this one's where the text encoder has to be loaded for it. Ends early once
        `should_stop()` is true. Raises StudioError.
        """
        memory_request = _memory_request(request)
        about = model_numbers.of(self._catalog.find(request.model))
        plan = planning.plan(self._machine_now(request.model), about, memory_request)
        self._refuse(request, plan, report)
        work = _Work(
            request=request,
            upcoming=upcoming,
            report=report,
            should_stop=should_stop,
            clock=Clock(request.count),
        )
        notes: list[str] = []
        index = 0
        while index < request.count and not should_stop():
            result = self._attempt(work, plan, index)
            if result is None:
                return
            if isinstance(result, Picture):
                yield replace(result, notes=tuple(notes))
                index += 1
                continue
            plan = self._next_plan(request.model, memory_request, plan, result)
            notes.append(f"Memory ran out, so it was painted again: {forecast.words(plan)}.")
            report(Progress(stage=Stage.LOADING, note=notes[-1]))

    def _refuse(self, request: GenerationRequest, plan: DevicePlan, report: Report) -> None:
        """Raises OutOfMemoryError where the system would end the process without a word."""
        with torch.inference_mode():
            loaded = self._open(request.model, plan, report, request.loras)
        known = loaded.text.knows(*request.texts, cleaning=request.cleaning)
        mapped = text_loader.maps(loaded.model, plan)
        if not planning.is_short_of_main_memory(
            self.machine, plan, reads_text=not known, maps_text=mapped
        ):
            return
        about = model_numbers.of(loaded.model)
        rough = forecast.approximation(self.machine, about, _memory_request(request))
        raise (
            out_of_memory.changed(rough)
            if rough
            else out_of_memory.too_little(forecast.sentence(self.machine, plan))
        )

    def _attempt(
        self, work: _Work, plan: DevicePlan, index: int
    ) -> Picture | out_of_memory.MemoryShortage | None:
        """One picture, None when it was stopped, or what the memory did not suffice for.

        Whatever holds tensors ends with this call, so that they can be freed behind it.
        """
        place = _Place()
        try:
            with torch.inference_mode():
                request = work.request
                loaded = self._open(request.model, plan, work.report, request.loras)
                with measured(loaded.device, before=self._supply.empty, every=_LOOK) as peak:
                    made = _Job(loaded, plan, work, self._inputs, place).paint(index)
                if made is None:
                    return None
                return replace(made, peak=_whole(peak.bytes, plan), forecast=plan.peak)
        except OutOfMemoryError as error:
            # Known before anything was tried.
            return out_of_memory.MemoryShortage(stage="main memory", told=error)
        except Exception as error:
            if not planning.is_out_of_memory(error):
                raise
        return out_of_memory.MemoryShortage(stage=place.stage, told=None)

    def _next_plan(
        self,
        model_id: str,
        memory_request: MemoryRequest,
        failed: DevicePlan,
        missing: out_of_memory.MemoryShortage,
    ) -> DevicePlan:
        """The next rung of the ladder. Raises OutOfMemoryError below the last one."""
        self.unload()
        about = model_numbers.of(self._catalog.find(model_id))
        machine = self._machine_now(model_id)
        plan = planning.cheaper(machine, about, memory_request, failed, missing.stage)
        self._supply.failed(model_id, failed, missing.stage)
        if plan is None:
            asked = replace(memory_request, approximate=True)
            rough = planning.cheaper(machine, about, asked, failed, missing.stage)
            raise (
                out_of_memory.changed(rough)
                if rough is not None
                else missing.told or out_of_memory.too_little()
            )
        return plan

    def _machine_now(self, model_id: str) -> Machine:
        """The machine with what is free now, counting what the loaded model would give back."""
        before = self.machine.device
        if not self._supply.look():
            self._loaded = None
            free(torch.device(before))
        return self._supply.of(model_id)

    def _open(
        self, model_id: str, plan: DevicePlan, report: Report, uses: Sequence[LoraUse] = ()
    ) -> Loaded:
        model = self._catalog.find(model_id)
        active = active_loras.found(uses, self._catalog.loras)
        # A model that was installed again has the same row and other files.
        now = (model, loader.fingerprint(model), *_lasting(plan))
        loaded = self._loaded
        if loaded and (loaded.model, loaded.fingerprint, *_lasting(loaded.plan)) == now:
            return loaded.with_loras(active)
        report(Progress(stage=Stage.LOADING))
        self.unload()
        self._loaded = Loaded(model, plan, self._cache)
        return self._loaded.with_loras(active)


def _memory_request(request: GenerationRequest) -> MemoryRequest:
    return MemoryRequest(
        width=request.width,
        height=request.height,
        rows=1 + request.guided,
        approximate=request.approximate,
    )


def _whole(peak: int, plan: DevicePlan) -> int:
    """A measured peak with what the forecast counts besides tensors."""
    return max(0, peak) + (planning.CONTEXT if plan.device == "cuda" else 0)


def _lasting(plan: DevicePlan) -> tuple[object, ...]:
    """What of a plan decides how weights are held; the rest may change from picture to picture."""
    return (
        plan.device,
        plan.precision,
        plan.compiled,
        plan.text,
        plan.text_precision,
        plan.keeps_text,
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A job as it was asked for."""

    request: GenerationRequest
    upcoming: Sequence[GenerationRequest]
    report: Report
    should_stop: ShouldStop
    clock: Clock


@dataclass
class _Place:
    """Where a picture is: what a lack of memory is blamed on."""

    stage: planning.PlanStage | None = None


class _Job:
    """One request on one loaded model under one plan."""

    def __init__(
        self, loaded: Loaded, plan: DevicePlan, work: _Work, inputs: Path, place: _Place
    ) -> None:
        self._loaded, self._plan, self._work = loaded, plan, work
        self._request, self._inputs, self._place = work.request, inputs, place

    def paint(self, index: int) -> Picture | None:
        """Picture `index`, or None when it was stopped."""
        report = self._work.clock.watch(self._work.report, index)
        self._place.stage = "text"
        texts = self._texts(self._work.report)
        loaded, request = self._loaded, self._request.single(index)
        if self._work.should_stop():
            return None
        self._place.stage = "decoding"
        clean = self._clean_start()
        self._place.stage = "denoising"
        loaded.read(self._work.report, self._plan)
        started = time.perf_counter()
        end = self._denoised(request, texts, clean, report)
        if end is None:
            return None
        self._place.stage = "decoding"
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
        schedule = make_schedule(
            request, loaded.betas, learned_variance=loaded.model.learned_variance
        )
        generator = torch.Generator("cpu").manual_seed(request.seed)
        transformer = loaded.transformer
        previews = Previews(loaded.preview, loaded.device)
        size = (request.height // 8, request.width // 8)
        shape = (1, transformer.net.config.in_channels, *size)
        start = start_latents(schedule, shape, generator, clean).to(loaded.device)
        predict = transformer.predictor(
            texts, size, variance=schedule.wants_variance, original_size=request.told_size
        )
        report(Progress(stage=Stage.DENOISING, done=0, total=schedule.steps))
        step: DenoisingStep | None = None
        for step in denoise(
            predict, schedule, start, guidance=request.guidance, generator=generator
        ):
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
