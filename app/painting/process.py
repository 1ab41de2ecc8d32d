"""The painting process: owns the engine, obeys the page's orders until the page goes away."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.gallery.pictures import Gallery, PictureFile
from app.painting.runner import LocalRunner
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.errors import StudioError, printable
from pipelines.heavy_imports import importing_diffusers
from pipelines.memory.planning import is_out_of_memory
from pipelines.processes.inside import ParentPipe
from pipelines.processes.wire import error_fields, progress_fields
from pipelines.progress import Progress
from pipelines.request import GenerationRequest, from_mapping

# Seconds in which a finished picture is written; the page waits for five.
_FAREWELL = 3.0


def main(pipe: ParentPipe, workspace: str, preload: str | None) -> None:
    """Runs in the worker process until the page goes away; loads `preload` first."""
    _PaintingProcess(pipe, Settings(workspace=Path(workspace))).run(preload)


class _PaintingProcess:
    def __init__(self, pipe: ParentPipe, settings: Settings) -> None:
        self._pipe = pipe
        self._settings = settings
        self._orders: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stopped: set[str] = set()
        self._leaving = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._lost_gpu = False

    def run(self, preload: str | None) -> None:
        """Prepares the engine, then paints order after order."""
        threading.Thread(target=self._read, daemon=True).start()
        # Here and not above: only this process may load torch.
        with importing_diffusers():
            from pipelines.engine import Engine

        catalog = Catalog(user_models=self._settings.models, loras=self._settings.loras)
        engine = Engine(
            catalog,
            inputs=self._settings.inputs,
            cache=self._settings.cache,
        )
        runner = LocalRunner(engine, Gallery(self._settings.outputs))
        machine = asdict(engine.machine)
        self._pipe.tell("phase", phase="loading", device=engine.machine.name, machine=machine)
        failure = None
        if preload is not None:
            failure = self._attempt(lambda: engine.load(preload, lambda progress: None))
        machine = asdict(engine.machine)
        self._pipe.tell("phase", phase="ready", message=str(failure or ""), machine=machine)
        while True:
            order = self._orders.get()
            self._idle.clear()
            # A model may have been installed since.
            catalog.reload()
            upcoming = [from_mapping(values) for values in order["upcoming"]]
            request = from_mapping(order["request"])
            last = self._paint(runner, order["job"], request, upcoming)
            self._idle.set()
            self._pipe.tell(**last, machine=asdict(engine.machine))
            if self._lost_gpu:
                # Nothing works in this process any more; the page starts another one.
                os._exit(1)

    def _read(self) -> None:
        for order in self._pipe.orders():
            if order["do"] == "stop":
                self._stopped.add(order["job"])
            else:
                self._orders.put(order)
        # What is finished is written to its end. A step may last longer than anybody waits.
        self._leaving.set()
        self._idle.wait(_FAREWELL)
        os._exit(0)

    def _paint(
        self,
        runner: LocalRunner,
        job: str,
        request: GenerationRequest,
        upcoming: Sequence[GenerationRequest],
    ) -> dict[str, Any]:
        """Paints, and returns the last message of the job."""

        def report(progress: Progress) -> None:
            self._pipe.tell("progress", job=job, progress=progress_fields(progress))

        def keep(file: PictureFile) -> None:
            self._pipe.tell("picture", job=job, file=file.to_json())

        failure = self._attempt(
            lambda: runner.paint(
                request,
                report=report,
                keep=keep,
                should_stop=lambda: job in self._stopped or self._leaving.is_set(),
                upcoming=upcoming,
            )
        )
        self._stopped.discard(job)
        if failure is None:
            return {"event": "done", "job": job}
        return {"event": "failed", "job": job, **error_fields(failure)}

    def _attempt(self, work: Callable[[], object]) -> StudioError | None:
        """What went wrong, as a sentence: our own fault ends the job, not the worker."""
        try:
            work()
        except StudioError as error:
            self._lost_gpu = _is_lost_gpu(error)
            return error
        except Exception as error:
            self._lost_gpu = _is_lost_gpu(error)
            logging.exception("an order failed")
            return StudioError(
                f"Painting failed through a fault of the studio ({printable(error, 160)}).",
                f"The details are in {self._settings.logs / 'worker.log'}.",
            )
        return None


def _is_lost_gpu(error: BaseException | None) -> bool:
    """True where a GPU fails by itself: CUDA then refuses everything else in the process, too."""
    while error is not None:
        if type(error).__name__ == "AcceleratorError" and not is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False
