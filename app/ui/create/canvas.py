"""The canvas, the status line and the result bar as HTML: pure functions of what the studio says.

The markup stands in `canvas.html` and `words.html`; here is what it says.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from app.gallery.pictures import PictureFile
from app.jobs.job import Job, JobState
from app.markup import render
from app.ui.routes import PICTURES
from lora_manager import card
from pipelines.denoising import samplers
from pipelines.progress import Stage, duration
from pipelines.text import seen_words
from pipelines.text.tokens import Tokens

if TYPE_CHECKING:
    from app.painting.worker import EngineState

Tone = Literal["idle", "busy", "good", "bad"]

_PAGE = "ui/create/canvas.html"
_WORDS = "ui/create/words.html"


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A sentence about the last thing that somebody tried; `field` is where it went wrong."""

    text: str
    field: str = ""


def columns(count: int) -> int:
    """How many columns a grid of `count` pictures has."""
    return next((n for n, most in ((1, 1), (2, 4), (3, 9), (4, 16)) if count <= most), 6)


def canvas(job: Job | None, picked: str) -> str:
    """Hint, live preview or result, always in the same box."""
    if job is None or (not job.active and not job.pictures):
        return render(_PAGE, "hint")
    request = job.request
    # A job that ended early shows what it finished; one that runs shows the places to come.
    cells = request.count if job.active else len(job.pictures)
    across = columns(cells)
    return render(
        _PAGE,
        "pictures",
        state="painting" if job.active else "result",
        width=request.width,
        height=request.height,
        across=across,
        down=-(-cells // across),
        prompt=request.prompt,
        address=PICTURES,
        cells=[_cell(job, index, picked) for index in range(cells)],
    )


def _cell(job: Job, index: int, picked: str) -> dict[str, Any]:
    """A picture, or the place of one that comes, with what is seen of it."""
    if index < len(job.pictures):
        name = job.pictures[index].name
        return {"name": name, "chosen": name == picked}
    live = index == len(job.pictures) and job.state is JobState.RUNNING
    preview = job.progress.preview if live and job.progress else None
    if preview is None:
        return {"name": "", "wait": "next" if live else "later", "preview": ""}
    data = base64.b64encode(preview).decode("ascii")
    return {"name": "", "wait": "live", "preview": data}


def status(
    job: Job | None, engine: EngineState, notice: Notice | None, training: Job | None = None
) -> str:
    """The status line with its bar. Screen readers hear each stage once, not each step.

    `training` is what has the device meanwhile.
    """
    tone, said, ticking = _words(job, engine)
    if training is not None and job is not None and job.state is JobState.WAITING:
        tone, said, ticking = "busy", "A training has the device; you are next.", ""
        if job.ahead > 1:
            said = f"A training has the device, and {job.ahead} jobs are before you."
        if training.seconds_left is not None and training.seconds_left >= 1:
            left = f"about {duration(training.seconds_left)}"
            ticking = f"{said} It takes {left}."
    if notice is not None:
        tone, said, ticking = "bad", notice.text, ""
    done = job.fraction if job is not None else None
    return render(
        _PAGE,
        "status",
        tone=tone,
        said=said,
        ticking=ticking,
        field=notice.field if notice is not None else "",
        running=job is not None and job.active,
        percent=None if done is None else round(100 * done),
    )


def _words(job: Job | None, engine: EngineState) -> tuple[Tone, str, str]:
    """(tone, sentence to be heard, sentence that ticks and is only seen)."""
    if job is None:
        return _engine_words(engine)
    if job.state is JobState.WAITING:
        if job.ahead:
            jobs = "one job" if job.ahead == 1 else f"{job.ahead} jobs"
            return "busy", f"Waiting in the queue, {jobs} ahead.", ""
        return "busy", "Waiting to begin.", ""
    if job.state is JobState.RUNNING:
        return _running_words(job, engine)
    if job.state is JobState.DONE:
        many = len(job.pictures)
        what = "Done" if many == 1 else f"{many} pictures"
        return "good", f"{what} in {_took(job.seconds)}.", ""
    kept = _kept(job)
    if job.state is JobState.STOPPED:
        return "idle", f"Stopped. {kept}".strip(), ""
    return "bad", f"{job.error or 'Painting failed.'} {kept}".strip(), ""


def _running_words(job: Job, engine: EngineState) -> tuple[Tone, str, str]:
    if job.progress is None or job.progress.stage is Stage.LOADING:
        if engine.phase in ("starting", "loading"):
            return "busy", "Loading the model; painting begins right after.", ""
        return "busy", "Getting ready to paint.", ""
    said = "Painting."
    if job.progress.pictures > 1:
        said = f"Painting picture {job.progress.picture} of {job.progress.pictures}."
    return "busy", said, job.progress.sentence()


def _engine_words(engine: EngineState) -> tuple[Tone, str, str]:
    if engine.phase in ("starting", "loading"):
        words = engine.message or "Loading the model behind the page. You can write already."
        return "busy", words, ""
    if engine.phase == "lost":
        return "bad", engine.message or "The painting process is being started again.", ""
    return "idle", "Ready.", ""


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _kept(job: Job) -> str:
    done, all_of = len(job.pictures), job.request.count
    if not done:
        return "No picture was finished." if job.state is JobState.STOPPED else ""
    verb = "is" if done == 1 else "are"
    return f"{done} of {all_of} pictures {verb} finished and kept."


def result(file: PictureFile | None, *, busy: bool, asks: bool = False) -> str:
    """What can be done with the picked picture, and its recipe; `asks` before it is deleted."""
    if file is None:
        return render(_PAGE, "no_result")
    request = file.request
    row = samplers.SAMPLERS.get(request.sampler)
    facts = [
        ("Seed", str(request.seed)),
        ("Size", f"{request.width}×{request.height}"),
        ("Sampler", row.label if row else request.sampler),
        ("Steps", str(request.steps)),
        ("Guidance", f"{request.guidance:g}" if request.guided else "off"),
        ("Time", _took(file.seconds)),
    ]
    if request.init is not None:
        facts.append(("Strength", f"{request.strength:g}"))
    if request.loras:
        facts.append(("LoRAs", card.written(request.loras)))
    if file.peak:
        facts.append(("Memory", f"{file.peak / 1e9:.1f} GB, {file.forecast / 1e9:.1f} forecast"))
    return render(
        _PAGE,
        "result",
        name=file.name,
        file=file.path.name,
        prompt=request.prompt,
        facts=facts,
        address=PICTURES,
        busy=busy,
        asks=asks and not busy,
    )


def token_count(tokens: Tokens, *, empty: bool, unseen: Sequence[str] = ()) -> str:
    """How much of the prompt the model reads, with the rest struck through, and which words it has
    never seen."""
    if empty:
        return render(_WORDS, "empty", limit=tokens.limit)
    return render(
        _WORDS,
        "count",
        used=tokens.used,
        limit=tokens.limit,
        kept=("…" if len(tokens.kept) > 60 else "") + tokens.kept[-60:],
        cut=tokens.cut[:600],
        unseen=seen_words.sentence(unseen),
    )


def sentence(text: str) -> str:
    """A plain sentence where the token count stands otherwise."""
    return render(_WORDS, "sentence", text=text)


def forecast(text: str) -> str:
    """What the next picture needs, in one line that keeps its place while it is not known."""
    return render(_WORDS, "forecast", text=text[:1].upper() + text[1:])


def examples(prompts: tuple[str, ...]) -> str:
    """Example prompts as chips."""
    return render(_WORDS, "examples", prompts=prompts)


def engine_chip(engine: EngineState) -> str:
    """The device, with a dot that says what the painting process does."""
    words = {
        "starting": "Starting",
        "loading": "Loading",
        "lost": "Restarting",
    }.get(engine.phase)
    label = engine.device or "No device yet"
    text = f"{words} · {engine.device}" if words and engine.device else words or label
    state = {"ready": "ready", "painting": "painting"}.get(engine.phase, words or "")
    title = engine.message or f"{label}: {state}".strip(": ")
    return render("ui/top.html", "engine", phase=engine.phase, text=text, title=title)


def model_chip(title: str) -> str:
    """The chosen model in the header."""
    return render("ui/top.html", "model", title=title)
