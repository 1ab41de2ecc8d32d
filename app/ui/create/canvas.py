"""The canvas, the status line and the result bar as HTML: pure functions of what the studio says.

gr.HTML changes only the nodes that differ, position by position, so the shape of the markup stays
the same from the first preview to the result: nothing flickers, nothing jumps, focus stays.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from app.gallery.pictures import PictureFile
from app.jobs.job import Job, JobState
from app.ui.routes import PICTURES
from lora_manager import card
from pipelines.denoising import samplers
from pipelines.progress import Stage, duration
from pipelines.text import seen_words
from pipelines.text.tokens import Tokens

if TYPE_CHECKING:
    from app.painting.worker import EngineState

Tone = Literal["idle", "busy", "good", "bad"]

_HINT = (
    '<div class="canvas" data-state="hint"><div class="hint">'
    '<svg viewBox="0 0 96 96" aria-hidden="true">'
    '<rect x="12" y="12" width="72" height="72" rx="14"/>'
    '<circle cx="34" cy="36" r="7"/><path d="M14 70l22-20 14 12 14-16 18 20"/></svg>'
    "<p>Your pictures appear here</p>"
    "<small>Describe one, then press Generate"
    '<span class="keys"> or <kbd>Ctrl</kbd> <kbd>Enter</kbd></span></small>'
    "</div></div>"
)


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
        return _HINT
    request = job.request
    # A job that ended early shows what it finished; one that runs shows the places to come.
    cells = request.count if job.active else len(job.pictures)
    across = columns(cells)
    down = -(-cells // across)
    items = "".join(_cell(job, index, picked) for index in range(cells))
    style = f"--w:{request.width};--h:{request.height};--across:{across};--down:{down}"
    state = "painting" if job.active else "result"
    return (
        f'<div class="canvas" data-state="{state}" style="{style}">'
        f'<ul class="grid" aria-label="Pictures">{items}</ul></div>'
    )


def _cell(job: Job, index: int, picked: str) -> str:
    prompt = escape(job.request.prompt)
    if index < len(job.pictures):
        file = job.pictures[index]
        name = escape(file.name)
        chosen = file.name == picked
        return (
            f'<li><button type="button" class="picture" data-do="pick" data-name="{name}"'
            f' aria-pressed="{str(chosen).lower()}" aria-label="Picture {index + 1}: {prompt}">'
            f'<img src="{PICTURES}/{name}" alt="{prompt}" draggable="true"></button></li>'
        )
    live = index == len(job.pictures) and job.state is JobState.RUNNING
    preview = job.progress.preview if live and job.progress else None
    if preview is None:
        state, image = ("next" if live else "later"), ""
    else:
        data = base64.b64encode(preview).decode("ascii")
        state = "live"
        image = f'<img src="data:image/jpeg;base64,{data}" alt="Preview: {prompt}" class="preview">'
    return (
        f'<li><button type="button" class="picture" data-wait="{state}" disabled'
        f' aria-label="Picture {index + 1}, not finished">{image}</button></li>'
    )


def fraction(job: Job) -> float | None:
    """How much of the job is done, 0 to 1; None while that is unknown."""
    progress = job.progress
    if job.state is not JobState.RUNNING or progress is None or progress.stage is Stage.LOADING:
        return None
    within = {Stage.ENCODING: 0.0, Stage.DECODING: 0.97, Stage.SAVING: 1.0}.get(progress.stage)
    if within is None:
        within = 0.97 * progress.done / progress.total if progress.total else 0.0
    return min(1.0, (max(0, progress.picture - 1) + within) / max(1, progress.pictures))


def status(job: Job | None, engine: EngineState, notice: Notice | None) -> str:
    """The status line with its bar. Screen readers hear each stage once, not each step."""
    tone, said, ticking = _words(job, engine)
    if notice is not None:
        tone, said, ticking = "bad", notice.text, ""
    done = fraction(job) if job is not None else None
    running = job is not None and job.active
    percent = round(100 * (done or 0))
    value = f' aria-valuenow="{percent}"' if done is not None else ""
    field = f' data-field="{escape(notice.field)}"' if notice is not None and notice.field else ""
    unknown = " data-unknown" if running and done is None else ""
    heard = ' class="unseen"' if ticking else ""
    return (
        f'<div class="status" data-tone="{tone}"{field}>'
        f'<div class="bar" role="progressbar" aria-label="Progress of painting"'
        f' aria-valuemin="0" aria-valuemax="100"{value}{unknown}>'
        f'<i style="width:{percent}%"></i></div>'
        f'<p class="line"><span role="status" aria-live="polite"{heard}>{escape(said)}</span>'
        f'<span class="ticking" aria-hidden="true">{escape(ticking)}</span></p></div>'
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
        return '<div class="result" data-empty></div>'
    name = escape(file.name)
    request = file.request
    off = " disabled" if busy else ""
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
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return (
        f'<div class="result">{_question(name) if asks and not busy else _actions(file, off)}'
        f'<p class="caption"><bdi>{escape(request.prompt)}</bdi></p>'
        f'<dl class="facts">{rows}</dl></div>'
    )


def _actions(file: PictureFile, off: str) -> str:
    name = escape(file.name)
    wanted = (
        ("again", "Same again", off),
        ("more", "More like this", off),
        ("start", "Use as start", ""),
        ("ask-delete", "Delete…", off),
    )
    buttons = "".join(
        f'<button type="button" class="action" data-do="{do}" data-name="{name}"{state}>'
        f"{words}</button>"
        for do, words, state in wanted
    )
    return (
        f'<div class="actions"><a class="action" href="{PICTURES}/{name}?download=1"'
        f' download="{escape(file.path.name)}">Download</a>{buttons}</div>'
    )


def _question(name: str) -> str:
    return (
        '<div class="actions asks" role="group" aria-label="Delete this picture?">'
        "<p>Delete this picture from the disk, for good?</p>"
        f'<button type="button" class="action danger" data-do="delete" data-name="{name}">'
        "Delete</button>"
        f'<button type="button" class="action" data-do="keep" data-name="{name}">'
        "Keep it</button></div>"
    )


def token_count(tokens: Tokens, *, empty: bool, unseen: Sequence[str] = ()) -> str:
    """How much of the prompt the model reads, with the rest struck through, and which words it has
    never seen."""
    if empty:
        return f'<p class="count">The model reads up to {tokens.limit} tokens.</p>'
    told = seen_words.sentence(unseen)
    unknown = f'<p class="count" data-unseen>{escape(told)}</p>' if told else ""
    count = f"<b>{tokens.used}</b> of {tokens.limit} tokens"
    if tokens.used <= tokens.limit:
        return f'<p class="count">{count}</p>{unknown}'
    kept = tokens.kept[-60:]
    lead = "…" if len(tokens.kept) > 60 else ""
    return (
        f'<p class="count" data-over>{count}. The end is not read:</p>'
        f'<p class="cut">{lead}{escape(kept)}<del>{escape(tokens.cut[:600])}</del></p>{unknown}'
    )


def sentence(text: str) -> str:
    """A plain sentence where the token count stands otherwise."""
    return f'<p class="count" data-over>{escape(text)}</p>'


def forecast(text: str) -> str:
    """What the next picture needs, in one line that keeps its place while it is not known."""
    return f'<p class="forecast">{escape(text[:1].upper() + text[1:])}</p>'


def examples(prompts: tuple[str, ...]) -> str:
    """Example prompts as chips."""
    if not prompts:
        return ""
    chips = "".join(
        f'<button type="button" class="chip" data-example="{index}">{escape(text)}</button>'
        for index, text in enumerate(prompts)
    )
    return f'<div class="examples" role="group" aria-label="Example prompts">{chips}</div>'


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
    title = escape(engine.message or f"{label}: {state}".strip(": "))
    return (
        f'<span class="badge" title="{title}">'
        f'<i class="dot" data-phase="{escape(engine.phase)}"></i>'
        f'<span class="unseen">Device: </span>{escape(text)}</span>'
    )


def model_chip(title: str) -> str:
    """The chosen model in the header."""
    return f'<span class="badge model"><span class="unseen">Model: </span>{escape(title)}</span>'
