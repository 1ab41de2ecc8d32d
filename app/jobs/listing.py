"""The jobs of a database as another process lists them: read from their rows alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from app.jobs.job import ACTIVE, PAINT, JobState
from app.jobs.kinds import Lane, count_of
from app.jobs.rows import JobRow, clamped, json_of
from app.jobs.turns import Claim, Turns
from pipelines.errors import printable

_MAX_TITLE = 80


@dataclass(frozen=True, kw_only=True)
class ListedJob:
    """A job as a list shows it.

    `owner` is a hash: the name itself would let whoever reads it in as that owner. `place` counts
    from 1 among those that wait for the same lane. `done` of `total` counts pictures, whose names
    `pictures` are, or what the stage of another kind counts.
    """

    id: str
    kind: str
    owner: str
    state: str
    title: str
    model: str
    priority: int
    place: int | None
    created: float
    started: float | None
    ended: float | None
    stage: str
    done: int
    total: int
    pictures: tuple[str, ...]
    error: str | None

    @property
    def active(self) -> bool:
        """True while it waits or runs."""
        return self.state in ACTIVE

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        times = {name: _time(getattr(self, name)) for name in ("created", "started", "ended")}
        return asdict(self) | times


def listed(rows: Sequence[JobRow], lanes: Mapping[str, Lane]) -> list[ListedJob]:
    """What runs, what waits in its order as far as the rows tell, then what ended, the last
    first. `lanes` are those of the kinds."""
    running = [row for row in rows if row.state == JobState.RUNNING]
    ended = [row for row in rows if row.state not in ACTIVE]
    ended.sort(key=lambda row: row.ended or 0.0, reverse=True)
    turn = _in_turn([row for row in rows if row.state == JobState.WAITING], running)
    told = [_listed(row, None) for row in running]
    places: Counter[Lane | None] = Counter()
    for row in turn:
        lane = lanes.get(row.kind)
        places[lane] += 1
        told.append(_listed(row, places[lane]))
    return told + [_listed(row, None) for row in ended]


def _in_turn(waiting: list[JobRow], running: Sequence[JobRow]) -> list[JobRow]:
    turns = Turns()
    for row in running:
        turns.had(Claim(owner=row.owner, client=row.client))
    waiting.sort(key=lambda row: (not row.resumed, -row.priority, row.position))
    groups: dict[tuple[bool, int], list[JobRow]] = {}
    for row in waiting:
        groups.setdefault((not row.resumed, -row.priority), []).append(row)
    return [
        row
        for group in groups.values()
        for row in turns.order(group, lambda one: Claim(owner=one.owner, client=one.client))
    ]


def _listed(row: JobRow, place: int | None) -> ListedJob:
    payload, result, progress = (
        told if isinstance(told := json_of(text), dict) else {}
        for text in (row.payload, row.result, row.progress)
    )
    pictures = result.get("pictures")
    listed = pictures if isinstance(pictures, list) else []
    names = [one.get("name") for one in listed if isinstance(one, dict)]
    counts = {"done": progress.get("done"), "total": progress.get("total")}
    if row.kind == PAINT:
        counts = {"done": len(names), "total": payload.get("count")}
    done, total = (count_of(n) or 0 for n in counts.values())
    return ListedJob(
        id=printable(row.id, 40),
        kind=printable(row.kind, 20),
        owner=hashlib.sha256(row.owner.encode("utf-8", "replace")).hexdigest()[:8],
        state=printable(row.state, 20),
        title=printable(result.get("title") or payload.get("prompt", ""), _MAX_TITLE),
        model=printable(payload.get("model", ""), _MAX_TITLE),
        priority=clamped(row.priority),
        place=place,
        created=row.created,
        started=row.started,
        ended=row.ended,
        stage=printable(progress.get("stage", ""), 40),
        done=done,
        total=total,
        pictures=tuple(printable(name, _MAX_TITLE) for name in names),
        error=printable(row.error, 300) if row.error else None,
    )


def _time(seconds: float | None) -> str | None:
    """As ISO 8601, by the clock of this place; None also for what is no time."""
    try:
        return datetime.fromtimestamp(seconds).isoformat() if seconds is not None else None
    except (ValueError, OverflowError, OSError):
        return None
