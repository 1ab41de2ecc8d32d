"""What a studio is made of, and how the parts are put together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from app import hosting
from app.gallery import thumbnails
from app.gallery.exports.export_jobs import ExportJobs
from app.gallery.index import GalleryIndex, IndexedPicture
from app.gallery.pictures import Gallery
from app.hardware import Forecasts
from app.jobs import table
from app.jobs.exports import ExportOrder
from app.jobs.queue import PAINTER, JobQueue
from app.jobs.store import JobStore
from app.models.download_jobs import ModelJobs
from app.models.import_jobs import ImportJobs
from app.models.lora_export_jobs import LoraExportJobs
from app.models.lora_work_jobs import LoraWorkJobs
from app.models.store import ModelStore
from app.painting.runner import Lender, Runner
from app.painting.worker import EngineState, WorkerRunner
from app.painting.zero import ZeroRunner
from app.settings import Settings
from app.training.training_jobs import TrainingJobs
from lora_manager import drafts
from pipelines.catalog import Catalog


class PaintingProcess(Runner, Protocol):
    """A `Runner` that is started and ended with the studio, and says what it does."""

    @property
    def state(self) -> EngineState: ...
    def start(self, preload: str | None = None) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StudioParts:
    """The parts of one studio. Nothing of them runs before the studio is started."""

    settings: Settings
    catalog: Catalog
    gallery: Gallery
    index: GalleryIndex
    forecasts: Forecasts
    store: JobStore
    worker: PaintingProcess
    jobs: JobQueue
    models: ModelJobs
    imports: ImportJobs
    exports: ExportJobs
    lora_exports: LoraExportJobs
    trainings: TrainingJobs
    lora_work: LoraWorkJobs


def assemble(
    settings: Settings,
    *,
    worker: PaintingProcess | None = None,
    forecasts: Forecasts | None = None,
    remembers: bool = True,
) -> StudioParts:
    """The parts for a workspace. Another `worker` may paint than the process of a studio; jobs do
    not outlive a studio that does not remember."""
    catalog = Catalog(user_models=settings.models, loras=settings.loras)
    gallery = Gallery(settings.outputs)
    index = GalleryIndex(
        settings.outputs, settings.index, lambda names: thumbnails.forget(names, settings.thumbs)
    )
    store = JobStore(settings.jobs)
    worker = worker or _worker(settings, store)

    def find(order: ExportOrder, owner: str) -> Sequence[IndexedPicture]:
        seen = None if order.everybodys else jobs.pictures(owner)
        if order.names is None:
            return index.search(order.query, only=seen).entries
        named = set(order.names)
        return index.search(only=named if seen is None else named & seen).entries

    kinds = table.kinds(settings, models_changed=lambda: models.refresh(), find=find)
    jobs = JobQueue(
        worker,
        store if remembers else None,
        gallery,
        kinds=kinds,
        lend=worker.lent if isinstance(worker, Lender) else nullcontext,
        # On ZeroGPU a job needs the visitor who has asked for it: whose time it is.
        resumes=not isinstance(worker, ZeroRunner),
        runs=False,
    )
    models = ModelJobs(ModelStore(settings), jobs, catalog.reload)
    return StudioParts(
        settings=settings,
        catalog=catalog,
        gallery=gallery,
        index=index,
        forecasts=forecasts or Forecasts(),
        store=store,
        worker=worker,
        jobs=jobs,
        models=models,
        imports=ImportJobs(jobs),
        exports=ExportJobs(settings.exports, jobs),
        lora_exports=LoraExportJobs(jobs),
        trainings=TrainingJobs(settings, jobs),
        lora_work=LoraWorkJobs(jobs, catalog, settings.models),
    )


def _worker(settings: Settings, store: JobStore) -> PaintingProcess:
    """A process of its own, or on ZeroGPU the function that gets the GPU."""
    spaces = hosting.zero_gpu()
    if spaces is not None:
        return ZeroRunner(settings, spaces)

    def born(process: int) -> None:
        # Should this studio be killed, the next one waits for the end of its painting process.
        if store.held:
            store.note(PAINTER, drafts.writer(process))

    return WorkerRunner(settings, born)
