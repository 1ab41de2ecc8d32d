"""A studio with everything real but the engine: gradients instead of pictures, at a chosen pace."""

from __future__ import annotations

import colorsys
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageFilter

from app.gallery.pictures import Gallery
from app.hardware import Forecasts
from app.painting.runner import Keep
from app.painting.worker import EngineState
from app.parts import assemble
from app.settings import Settings
from app.studio import Studio
from app.ui.build import build, launch_arguments
from app.ui.guards import access
from pipelines.errors import WorkerError
from pipelines.memory.planning import Machine
from pipelines.picture_record import Picture
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest

MACHINE = Machine(
    device="cpu", name="CPU", bf16=False, ram_total=16_000_000_000, ram_free=11_200_000_000
)


# What gradio hands to a handler, for somebody at the computer and for a visitor.
HERE = SimpleNamespace(request=SimpleNamespace(scope={access.ADMIN: True}))
ELSEWHERE = SimpleNamespace(request=SimpleNamespace(scope={access.ADMIN: False}))


def gradient(seed: int, width: int, height: int) -> Image.Image:
    """Two soft colours, decided by the seed."""
    tones = [colorsys.hsv_to_rgb((seed * k % 97) / 97, 0.65, 0.9) for k in (1, 7)]
    first, second = (tuple(round(255 * c) for c in tone) for tone in tones)
    tiny = Image.new("RGB", (2, 2), first)
    tiny.putpixel((1, 1), second)
    tiny.putpixel((seed % 2, 1 - seed % 2), (24, 24, 40))
    return tiny.resize((width, height), Image.Resampling.BICUBIC)


class FakeRunner:
    """Paints gradients step by step; `die_at` names the picture at which the process "dies"."""

    def __init__(self, gallery: Gallery, *, steps: int, pace: float) -> None:
        self._gallery = gallery
        self._steps = steps
        self.pace = pace
        self.die_at: int | None = None
        self.lora_hashes: tuple[tuple[str, str], ...] = ()
        self.state = EngineState()
        self._hold_behind: tuple[int, int] | None = None
        self._go = threading.Event()

    @contextmanager
    def held(self, *, picture: int = 1, step: int = 1) -> Iterator[None]:
        """While the block lasts, a job waits behind that step of that picture, both from 1.

        So a test that needs a job that still runs need not be faster than it. It can be stopped.
        """
        self._go.clear()
        self._hold_behind = (picture, step)
        try:
            yield
        finally:
            self._hold_behind = None
            self._go.set()

    def start(self, preload: str | None = None) -> None:
        self.state = EngineState(phase="ready", device="CPU", machine=MACHINE)

    def close(self) -> None:
        self._hold_behind = None
        self._go.set()

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        report(Progress(stage=Stage.ENCODING, pictures=request.count))
        for index in range(request.count):
            began = time.monotonic()
            single = request.single(index)
            picture = gradient(single.seed, single.width, single.height)
            for step in range(1, self._steps + 1):
                time.sleep(self.pace)
                if should_stop():
                    return
                if self.die_at == index and step > self._steps // 2:
                    self.die_at = None
                    self.state = EngineState(phase="starting", device="CPU", restarts=1)
                    threading.Timer(0.5, self.start).start()
                    raise WorkerError(
                        "The painting process ended in the middle of the work.", "Try again."
                    )
                report(self._progress(request, index, step, picture))
                while self._hold_behind == (index + 1, step) and not self._go.wait(0.01):
                    if should_stop():
                        return
            kept = Picture(
                image=picture,
                request=single,
                seconds=time.monotonic() - began,
                lora_hashes=self.lora_hashes,
            )
            keep(self._gallery.add(kept))

    def _progress(
        self, request: GenerationRequest, index: int, step: int, picture: Image.Image
    ) -> Progress:
        blur = 24 * (1 - step / self._steps)
        data = BytesIO()
        small = picture.resize((64, 64)).filter(ImageFilter.GaussianBlur(blur))
        small.save(data, "JPEG", quality=80)
        steps_left = self._steps - step + (request.count - index - 1) * self._steps
        return Progress(
            stage=Stage.DENOISING,
            done=step,
            total=self._steps,
            picture=index + 1,
            pictures=request.count,
            seconds_left=steps_left * self.pace,
            preview=data.getvalue(),
        )


class FakeStudio(Studio):
    """The real verbs over a `FakeRunner`."""

    def __init__(self, workspace: Path, *, steps: int = 10, pace: float = 0.02) -> None:
        settings = Settings(workspace=workspace)
        self.runner = FakeRunner(Gallery(settings.outputs), steps=steps, pace=pace)
        # Whatever else this computer does meanwhile.
        forecasts = Forecasts(lambda: 8 * 10**9)
        super().__init__(
            assemble(settings, worker=self.runner, forecasts=forecasts, remembers=False)
        )

    def __enter__(self) -> FakeStudio:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def served(studio: FakeStudio, **arguments: Any) -> Iterator[str]:
    """The page of `studio` on a free port of this machine; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = build(studio)
    demo.launch(
        prevent_thread_lock=True,
        **launch_arguments(studio, **{"host": "127.0.0.1", "port": port, **arguments}),
    )
    studio.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        demo.close(verbose=False)
        studio.close()
