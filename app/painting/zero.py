"""Painting on ZeroGPU: a GPU that a Space has only while one decorated function runs.

The platform forks this process for the function and pickles what goes in and what it yields, so the
engine is made in the fork and lives there for as long as the platform keeps it; here nothing is
loaded. What one call yields is what the worker of `worker.py` sends (docs/decisions/0009).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from app.gallery.pictures import Gallery, PictureFile
from app.painting.runner import Keep, LocalRunner
from app.painting.worker import EngineState
from app.settings import Settings
from pipelines.catalog import Catalog
from pipelines.errors import StudioError, WorkerError, printable
from pipelines.heavy_imports import importing_diffusers
from pipelines.memory.planning import Machine
from pipelines.processes.wire import Message, error_fields, error_of
from pipelines.progress import Progress, Report, ShouldStop
from pipelines.request import GenerationRequest

DEVICE = "ZeroGPU"
# The longest that ZeroGPU lends a GPU for, and what is kept back to end well, in seconds.
LONGEST = 120
_SPARE = 5.0
# A fresh fork; reading a model in it; a picture; one step of PixArt at 1024 px with guidance.
_FRESH = 40.0
_BYTE = 1.5e-9
_PICTURE = 1.5
_STEP = 0.15
_MEGAPIXELS = 2**20
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why a call ended; what crosses from the fork keeps the class of an error and its field."""

    error: Message


News = Progress | PictureFile | Machine | Failed
Call = Callable[[GenerationRequest, int], Generator[News, None, None]]


def seconds(request: GenerationRequest, size: int) -> int:
    """For how long to ask for the GPU, for a model of `size` bytes.

    Calls that ask for less come sooner and are open to visitors with little time left.
    """
    share = request.width * request.height / _MEGAPIXELS * (1 + request.guided) / 2
    each = _PICTURE + _STEP * request.steps * max(share, 0.1)
    return min(LONGEST, round(_FRESH + size * _BYTE + request.count * each))


class ZeroRunner:
    """A `Runner` over ZeroGPU's decorator.

    The call has to be made in the context of the visitor's event, which tells the platform whose
    time it is: `JobQueue` runs a job in the context in which it was submitted.
    """

    def __init__(self, settings: Settings, spaces: Any) -> None:
        self._settings = settings
        # Only this one function gets the GPU; by a variable, gradio would wrap every handler.
        spaces.disable_gradio_auto_wrap()
        # It is told for how long the GPU is lent; the platform asks for as long.
        self._call: Call = spaces.GPU(duration=lambda _, lent: lent)(_Fork(settings).paint)
        self._lock = threading.Lock()
        self._state = EngineState(device=DEVICE)

    @property
    def state(self) -> EngineState:
        """A snapshot."""
        with self._lock:
            return self._state

    def start(self, preload: str | None = None) -> None:
        """Imports what painting needs, so that no fork has to; `preload` is looked at, not read."""
        _import()
        if preload is not None:
            try:
                self._look_at(preload)
            except StudioError as error:
                log.warning(str(error))
        self._say(phase="ready")

    def close(self) -> None:
        """Nothing is held here: the platform ends its forks with this process."""

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        """See Runner.paint. Stopping takes effect at the next step that is told.

        `upcoming` are left alone: their texts would be encoded in this visitor's time.
        Raises WorkerError with the sentence of the platform where it lends no GPU.
        """
        # A fork in the middle of an import would wait for it for ever.
        _import()
        lent = seconds(request, self._look_at(request.model))
        if should_stop():
            return
        self._say(phase="painting")
        try:
            with closing(self._call(request, lent)) as news:
                self._follow(news, report=report, keep=keep, should_stop=should_stop)
        except StudioError:
            raise
        # The platform says no with errors of gradio, which only the page imports.
        except Exception as error:
            raise _refused(error) from error
        finally:
            self._say(phase="ready")

    def _follow(
        self, news: Iterator[News], *, report: Report, keep: Keep, should_stop: ShouldStop
    ) -> None:
        for one in news:
            match one:
                case Progress():
                    report(one)
                case PictureFile():
                    keep(one)
                case Machine():
                    self._say(machine=replace(one, name=f"{DEVICE}, {one.name}"))
                case Failed():
                    raise error_of(one.error)
            if should_stop():
                return

    def _look_at(self, model_id: str) -> int:
        """The bytes of a model, hashed before the GPU is lent: a fork inherits the hash.

        Raises UnknownNameError, ModelError.
        """
        from pipelines.models import loader

        model = Catalog(user_models=self._settings.models).find(model_id)
        loader.weights_hash(model)
        return sum(size for _, size, _ in loader.fingerprint(model))

    def _say(self, **changes: Any) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)


def _import() -> None:
    """Imports what painting needs, once; a studio that is no Space never pays for it."""
    with importing_diffusers():
        import pipelines.engine  # noqa: F401


def _refused(error: Exception) -> WorkerError:
    said = printable(getattr(error, "message", None) or error, 300)
    log.warning("ZeroGPU: %s", said)
    return WorkerError(f"ZeroGPU did not paint this: {said.rstrip('.')}.", "Try again later.")


class _Fork:
    """What runs in the fork. The engine stays in it, for later calls that meet the same fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._painter: _ZeroPainter | None = None

    def paint(self, request: GenerationRequest, lent: int) -> Generator[News, None, None]:
        """Yields progress and finished files; ends before `lent` seconds are over.

        The platform would end the whole fork then.
        """
        deadline = time.monotonic() + lent - _SPARE
        news: queue.Queue[News | None] = queue.Queue()
        stop = threading.Event()
        # The engine reports by calls and this function by yields: between them runs a thread.
        thread = threading.Thread(
            target=self._work, args=(request, news, stop), name="painter", daemon=True
        )
        thread.start()
        try:
            left = request.count
            while (one := news.get()) is not None:
                left -= isinstance(one, PictureFile)
                yield one
                if time.monotonic() > deadline:
                    stop.set()
            if left and stop.is_set():
                over = StudioError(
                    "The time for which ZeroGPU lent its GPU is over.",
                    "Paint fewer pictures at once, fewer steps, or a smaller size.",
                )
                yield Failed(error=error_fields(over))
        finally:
            stop.set()
            thread.join()

    def _work(
        self, request: GenerationRequest, news: queue.Queue[News | None], stop: threading.Event
    ) -> None:
        try:
            if self._painter is None:
                self._painter = _ZeroPainter(self._settings)
            self._painter.paint(request, news.put, stop.is_set)
        except StudioError as error:
            news.put(Failed(error=error_fields(error)))
        # A seam like the worker's: a fault of ours ends the job and not the fork.
        except Exception as error:
            log.exception("an order failed")
            told = f"Painting failed through a fault of the studio ({printable(error, 160)})."
            news.put(Failed(error=error_fields(StudioError(told))))
        finally:
            news.put(None)


class _ZeroPainter:
    """The engine with what it needs. Made where the GPU is."""

    def __init__(self, settings: Settings) -> None:
        with importing_diffusers():
            from pipelines.engine import Engine

        self._catalog = Catalog(user_models=settings.models, loras=settings.loras)
        self._engine = Engine(self._catalog, inputs=settings.inputs, cache=settings.cache)
        self._runner = LocalRunner(self._engine, Gallery(settings.outputs))

    def paint(
        self, request: GenerationRequest, tell: Callable[[News], None], should_stop: ShouldStop
    ) -> None:
        """Paints, and tells what happens."""
        self._catalog.reload()
        tell(self._engine.machine)
        self._runner.paint(request, report=tell, keep=tell, should_stop=should_stop)
