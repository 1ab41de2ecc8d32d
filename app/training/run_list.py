"""The trainings of a workspace as their folders tell of them: how far, which losses, which samples.

The run folder is the truth (`training.run`); jobs say only what runs now. No torch.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.training import training_order
from app.training.training_order import TrainingOrder
from pipelines.errors import RequestError, StudioError, printable
from training.config import RunConfig
from training.run import EVENTS, Run, read_config, sentence

ORDER = "order.json"
KEEP = "keep"
"""A file that asks for the end of a training, and for its result as it is."""
MOST_POINTS = 400
_MOST_BYTES = 2_000_000
_MOST_RUNS = 200
_LOG_LINES = 60
_SMOOTH = 0.9
_STEP = re.compile(r"step-([0-9]{1,12})(\.png)?")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A loss at an update."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """One stage of a run. `losses` are as they were logged, `validation` those of held-out
    pictures; `memory` are bytes by name, as the forecast of the run tells them."""

    name: str
    config: RunConfig | None
    step: int = 0
    losses: tuple[Point, ...] = ()
    validation: tuple[Point, ...] = ()
    samples: tuple[int, ...] = ()
    checkpoints: tuple[int, ...] = ()
    pictures_per_second: float = 0.0
    seconds_left: float = 0.0
    memory: tuple[tuple[str, int], ...] = ()
    log: tuple[str, ...] = ()
    finished: bool = False
    fault: str = ""

    @property
    def steps(self) -> int:
        """How many updates it is to have."""
        return self.config.steps if self.config is not None else 0


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A training: its folder below runs/, the order that the page gave, and its stages so far."""

    name: str
    changed: float
    order: TrainingOrder | None
    stages: tuple[StageFacts, ...]
    titles: tuple[str, ...] = ()

    @property
    def stage(self) -> StageFacts | None:
        """The stage that was worked on last."""
        return self.stages[-1] if self.stages else None

    @property
    def finished(self) -> bool:
        """True where every stage has its result."""
        wanted = len(self.order.recipe.stages) if self.order is not None else len(self.stages)
        return bool(self.stages) and len(self.stages) >= wanted and self.stages[-1].finished


@dataclass
class _Log:
    """What was read of a log of events so far."""

    read: int = 0
    rest: bytes = b""
    step: int = 0
    losses: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    fault: str = ""

    def take(self, data: bytes) -> None:
        """Further bytes of the log; a line that is not whole yet waits."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._event(event)

    def _event(self, event: Mapping[str, Any]) -> None:
        kind, step, loss = event.get("event"), event.get("step"), event.get("loss")
        at = step if isinstance(step, int) else self.step
        if kind == "step":
            self.step, self.told = at, dict(event)
            self.fault = ""
            if isinstance(loss, (int, float)):
                _add(self.losses, Point(step=at, loss=float(loss)))
                speed = event.get("pictures_per_second")
                self._line(f"update {at:,}: loss {loss:.4f}, {speed} pictures a second")
        elif kind == "validation" and isinstance(loss, (int, float)):
            _add(self.validation, Point(step=at, loss=float(loss)))
            self._line(f"update {at:,}: validation {loss:.4f}")
        elif kind == "memory":
            self.memory = {k: v for k, v in event.items() if isinstance(v, int) and k != "time"}
        elif kind == "failed":
            self.fault = printable(event.get("sentence", ""), 400)
            self._line(self.fault)
        elif kind in ("rollback", "resume"):
            self.step = at
            self.losses = [point for point in self.losses if point.step <= at]
            self.validation = [point for point in self.validation if point.step <= at]
        if isinstance(kind, str) and (said := _said(kind, event)):
            self._line(said)
        if kind == "checkpoint":
            self._line(f"update {at:,}: checkpoint")

    def _line(self, text: str) -> None:
        self.lines.append(printable(text, 300))
        del self.lines[:-_LOG_LINES]


def _said(kind: str, event: Mapping[str, Any]) -> str | None:
    try:
        return sentence(kind, event)
    except (KeyError, TypeError, IndexError):
        return None


def _add(points: list[Point], point: Point) -> None:
    """Keeps a curve short: every second point goes where there are too many."""
    points.append(point)
    if len(points) > 2 * MOST_POINTS:
        points[:-1] = points[:-1:2]


def smoothed(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The running mean of a curve."""
    result, mean, weight = [], 0.0, 0.0
    for point in points:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * point.loss
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        result.append(Point(step=point.step, loss=mean / weight))
    return tuple(result)


class RunList:
    """The runs below `root`. Any thread may use it; logs are read on from where they were."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._logs: OrderedDict[Path, _Log] = OrderedDict()

    def names(self) -> list[str]:
        """The runs, the last changed first."""
        found = []
        try:
            entries = list(os.scandir(self.root))
        except OSError:
            return []
        for entry in entries:
            if not training_order.NAME.fullmatch(entry.name) or not entry.is_dir():
                continue
            folder = Path(entry.path)
            if (folder / ORDER).is_file() or _stages(folder):
                found.append((_changed(folder), entry.name))
        return [name for _, name in sorted(found, reverse=True)][:_MOST_RUNS]

    def all(self) -> list[RunFacts]:
        """What is known of every run."""
        return [self.get(name) for name in self.names()]

    def get(self, name: str) -> RunFacts:
        """What is known of a run. Raises RequestError."""
        folder = self.folder(name)
        if not folder.is_dir():
            raise RequestError("training", f"There is no training “{printable(name, 80)}”.")
        with self._lock:
            stages = tuple(self._stage(stage) for stage in _stages(folder))
        order = read_order(folder)
        titles = tuple(s.name for s in order.recipe.stages) if order is not None else ()
        return RunFacts(
            name=name, changed=_changed(folder), order=order, stages=stages, titles=titles
        )

    def folder(self, name: str) -> Path:
        """The folder of a run. Raises RequestError for what is no name."""
        if not training_order.NAME.fullmatch(name):
            raise RequestError("training", "This is no name of a training.")
        return self.root / name

    def sheet(self, name: str, stage: str, step: int) -> Path:
        """The file of the sample pictures of an update. Raises RequestError."""
        if not training_order.NAME.fullmatch(stage):
            raise RequestError("training", "This is no name of a stage.")
        file = self.folder(name) / stage / "previews" / f"step-{step:08d}.png"
        if file.is_symlink() or not file.is_file():
            raise RequestError("training", "There are no such samples.")
        return file

    def _stage(self, folder: Path) -> StageFacts:
        log = self._read(folder / EVENTS)
        try:
            config: RunConfig | None = read_config(folder)
        except RequestError:
            config = None
        speed, left = log.told.get("pictures_per_second"), log.told.get("seconds_left")
        return StageFacts(
            name=folder.name,
            config=config,
            step=log.step,
            losses=tuple(log.losses),
            validation=tuple(log.validation),
            samples=_numbers(folder / "previews"),
            checkpoints=_numbers(folder / "checkpoints"),
            pictures_per_second=float(speed) if isinstance(speed, (int, float)) else 0.0,
            seconds_left=float(left) if isinstance(left, (int, float)) else 0.0,
            memory=tuple(log.memory.items()),
            log=tuple(log.lines),
            finished=config is not None and Run(folder, config).finished_step >= config.steps,
            fault=log.fault,
        )

    def _read(self, file: Path) -> _Log:
        """The log up to its last whole line."""
        log = self._logs.setdefault(file, _Log())
        self._logs.move_to_end(file)
        while len(self._logs) > _MOST_RUNS:
            self._logs.popitem(last=False)
        try:
            if file.stat().st_size < log.read:
                log = self._logs[file] = _Log()
            with open(file, "rb") as stream:
                stream.seek(log.read)
                data = stream.read(50_000_000)
        except OSError:
            return log
        log.read += len(data)
        log.take(data)
        return log


def _stages(folder: Path) -> list[Path]:
    """The folders of the stages that were begun, in their order."""
    return sorted(file.parent for file in folder.glob("[0-9][0-9]-*/config.json"))


def _changed(folder: Path) -> float:
    files = [folder / ORDER, *(stage / EVENTS for stage in _stages(folder))]
    times = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _numbers(folder: Path) -> tuple[int, ...]:
    """The updates that files or folders are called after."""
    try:
        found = (_STEP.fullmatch(name) for name in os.listdir(folder))
        return tuple(sorted(int(match[1]) for match in found if match))
    except OSError:
        return ()


def read_order(folder: Path) -> TrainingOrder | None:
    """What the page has ordered; None for a training of the command line, or a damaged file."""
    file = folder / ORDER
    try:
        if file.stat().st_size > _MOST_BYTES:
            return None
        return training_order.of_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, RecursionError, StudioError):
        return None
