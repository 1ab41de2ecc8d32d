"""The Jobs panel and its button as HTML: pure functions of snapshots of the jobs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.jobs.job import PAINT, Job, JobState
from app.jobs.orders import PRIORITIES
from app.markup import render
from app.ui.routes import PICTURES, THUMBS
from pipelines.progress import duration

MAX_ENDED = 20
"""How many of those that have ended are listed; `launch.py jobs list` has all."""
MAX_WAITING = 100
MAX_PICTURES = 4
_PAGE = "ui/jobs/jobs.html"
_STATES = {
    JobState.DONE: "Done",
    JobState.STOPPED: "Stopped",
    JobState.FAILED: "Failed",
    JobState.INTERRUPTED: "Interrupted",
}
_FEWEST_FOR_MOVES = 2


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What the panel is drawn from. `all_jobs` where the jobs of everybody are listed, which is
    for who may administer the studio: they pause the queue and give priorities."""

    jobs: Sequence[Job]
    paused: bool
    all_jobs: bool
    notice: str = ""


def chip(jobs: Sequence[Job], *, paused: bool = False) -> str:
    """The button in the header, with the number of jobs that run or wait."""
    active = sum(job.active for job in jobs)
    words = "no job runs or waits"
    if active:
        words = "1 job runs or waits" if active == 1 else f"{active} jobs run or wait"
    if paused:
        words += ", the queue is paused"
    running = any(job.state is JobState.RUNNING for job in jobs)
    return render(_PAGE, "chip", active=active, words=words, running=running, paused=paused)


def panel(shown: Panel) -> str:
    """The whole panel."""
    running = [job for job in shown.jobs if job.state is JobState.RUNNING]
    waiting = [job for job in shown.jobs if job.state is JobState.WAITING]
    ended = [job for job in shown.jobs if not job.active]
    orders = shown.all_jobs and len(waiting) >= _FEWEST_FOR_MOVES
    return render(
        _PAGE,
        "panel",
        notice=shown.notice,
        paused=shown.paused,
        all_jobs=shown.all_jobs,
        running=[_running(job) for job in running],
        waiting=[_waiting(job, orders=orders) for job in waiting[:MAX_WAITING]],
        more_waiting=len(waiting[MAX_WAITING:]),
        ended=[_ended(job) for job in ended[:MAX_ENDED]],
        priorities=list(PRIORITIES),
    )


def _common(job: Job) -> dict[str, Any]:
    return {"id": job.id, "kind": job.kind, "title": job.title or job.kind}


def _running(job: Job) -> dict[str, Any]:
    preview = base64.b64encode(job.preview).decode("ascii") if job.preview else ""
    told = job.progress.sentence() if job.progress is not None else "Getting ready"
    if job.stopping:
        told = "Stopping"
    fraction = job.fraction
    return _common(job) | {
        "told": told,
        "preview": preview,
        "percent": None if fraction is None else round(100 * fraction),
        "may_stop": job.may_stop,
        **_pictures(job),
    }


def _waiting(job: Job, *, orders: bool) -> dict[str, Any]:
    told = []
    if job.kind == PAINT and job.request.count > 1:
        told.append(f"{job.request.count} pictures")
    if job.seconds_left is not None and job.seconds_left >= 1:
        told.append(f"done in about {duration(job.seconds_left)}")
    return _common(job) | {
        "place": job.place,
        "told": ", ".join(told),
        "orders": orders and job.may_move,
        "priority": _priority(job.priority),
    }


def _priority(number: int) -> str:
    near = min(PRIORITIES.items(), key=lambda row: abs(row[1] - number))
    return near[0]


def _ended(job: Job) -> dict[str, Any]:
    told = _STATES[job.state]
    if job.state is JobState.DONE and job.seconds >= 1:
        told += f" in {duration(job.seconds)}"
    if job.ended is not None:
        told += f", {_clock(job.ended)}"
    return _common(job) | {
        "state": job.state.value,
        "told": told,
        "error": str(job.error) if job.error is not None else "",
        "may_retry": job.may_retry,
        **_pictures(job),
    }


def _pictures(job: Job) -> dict[str, Any]:
    """The first pictures of a job, small, with the addresses of the whole ones, and the number
    of the others. A picture that somebody took away behind the studio's back is not listed."""
    there = [file for file in job.pictures if file.path.is_file()]
    first = [
        {"small": f"{THUMBS}/{file.name}", "whole": f"{PICTURES}/{file.name}"}
        for file in there[:MAX_PICTURES]
    ]
    return {"pictures": first, "more_pictures": len(there) - len(first)}


def _clock(seconds: float) -> str:
    """When something was, by the clock of this machine; the day only where it was another one."""
    try:
        then = datetime.fromtimestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
    today = then.date() == datetime.now().date()
    return then.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
