"""What is loaded now, and the one way from a request to pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lora_manager.card import LoraUse
from pipelines.catalog import Catalog
from pipelines.denoising import active_loras
from pipelines.errors import OutOfMemoryError
from pipelines.memory import forecast, model_numbers, out_of_memory, planning
from pipelines.memory.available_memory import Supply
from pipelines.memory.measured import measured
from pipelines.memory.planning import DevicePlan, Machine, MemoryRequest
from pipelines.models import loader
from pipelines.models.loaded import Loaded, free
from pipelines.picture_job import PictureJob, PictureWork, StageMark
from pipelines.picture_record import Picture
from pipelines.progress import Clock, Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest
from pipelines.text import text_loader

# Often enough to see every step, seldom enough to cost nothing.
_LOOK = 0.02


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
        """False where loading the model ran out of memory."""
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
        picture of seed + i to the last bit. Where the memory runs out, the same picture is
        begun again in the next cheaper way, and says so. The texts of `upcoming` are encoded along
        with this one's where the text encoder has to be loaded for it. Ends early once
        `should_stop()` is true. Raises StudioError.
        """
        memory_request = _memory_request(request)
        about = model_numbers.of(self._catalog.find(request.model))
        plan = planning.plan(self._machine_now(request.model), about, memory_request)
        self._refuse(request, plan, report)
        work = PictureWork(
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
        self, work: PictureWork, plan: DevicePlan, index: int
    ) -> Picture | out_of_memory.MemoryShortage | None:
        """One picture, None when it was stopped, or where the memory ran out.

        Whatever holds tensors ends with this call, so that they can be freed behind it.
        """
        mark = StageMark()
        try:
            with torch.inference_mode():
                request = work.request
                loaded = self._open(request.model, plan, work.report, request.loras)
                with measured(loaded.device, before=self._supply.empty, every=_LOOK) as peak:
                    made = PictureJob(loaded, plan, work, self._inputs, mark).paint(index)
                if made is None:
                    return None
                return replace(made, peak=_whole(peak.bytes, plan), forecast=plan.peak)
        except OutOfMemoryError as error:
            # Known before anything was tried.
            return out_of_memory.MemoryShortage(stage="main memory", told=error)
        except Exception as error:
            if not planning.is_out_of_memory(error):
                raise
        return out_of_memory.MemoryShortage(stage=mark.stage, told=None)

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
