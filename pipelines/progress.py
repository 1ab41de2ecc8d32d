"""One shape for the progress of everything that takes time, and one way to ask for a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum


class Stage(StrEnum):
    """What is being done now; the value is the word shown to people."""

    DOWNLOADING = "downloading"
    CHECKING = "checking what has arrived"
    CONVERTING = "converting to diffusers' layout"
    TENSORS = "converting the transformer"
    COPYING = "copying the rest"
    BAKING = "baking the transformer"
    LOADING = "loading the model"
    ENCODING = "encoding the prompt"
    DENOISING = "painting"
    DECODING = "decoding"
    SAVING = "saving"
    SCANNING = "checking the pictures"
    INDEXING = "reading new pictures"
    FEATURES = "computing features"
    PREPARING = "measuring one step"
    TRAINING = "training"
    VALIDATING = "validating"
    PREVIEWING = "painting samples"


_BYTES = (Stage.DOWNLOADING, Stage.CHECKING, Stage.CONVERTING, Stage.COPYING)
_COUNTED = (Stage.TENSORS, Stage.BAKING, Stage.SCANNING, Stage.FEATURES, Stage.TRAINING)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a job stands.

    `done` of `total` counts the steps of the stage, or its bytes; `picture` of `pictures` counts
    from 1.
    `seconds_left` is an estimate for the whole job, None while nothing is known.
    `preview` is a small JPEG of the unfinished picture, or None; `note` a few words more.
    """

    stage: Stage
    done: int = 0
    total: int = 0
    picture: int = 1
    pictures: int = 1
    seconds_left: float | None = None
    preview: bytes | None = None
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """How much of the whole job is done, 0 to 1; None while that is unknown."""
        if self.stage is Stage.LOADING:
            return None
        share = self.done / self.total if self.total else 0.0
        if self.stage is Stage.SAVING and self.total:
            # An export: what it counts are the pictures.
            return min(1.0, share)
        if self.stage in _BYTES + _COUNTED and not self.total:
            return None
        within = {Stage.ENCODING: 0.0, Stage.DENOISING: 0.97 * share, Stage.DECODING: 0.97}
        within[Stage.SAVING] = 1.0
        done = max(0, self.picture - 1) + within.get(self.stage, share)
        return min(1.0, done / max(1, self.pictures))

    def sentence(self) -> str:
        """The status line, e.g. "Picture 2 of 4: step 7 of 20, about 3 s left"."""
        if self.stage is Stage.DENOISING and self.total:
            words = f"step {self.done} of {self.total}"
        elif self.stage in _BYTES and self.total:
            words = f"{self.stage}, {plain_size(self.done)} of {plain_size(self.total)}"
        elif self.stage in _COUNTED and self.total:
            words = f"{self.stage}, {self.done:,} of {self.total:,}"
        else:
            words = str(self.stage)
        if self.pictures > 1 and self.stage is not Stage.LOADING:
            words = f"picture {self.picture} of {self.pictures}: {words}"
        if self.seconds_left is not None and self.seconds_left >= 1:
            words += f", about {duration(self.seconds_left)} left"
        if self.note:
            words += f" ({self.note})"
        return words[0].upper() + words[1:]


Report = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


def duration(seconds: float) -> str:
    """`seconds` as people say it: "3 s", "2 min 5 s", "1 h 4 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain_size(size: int, *, exact: bool = True) -> str:
    """`size` as people say it: "334.6 MB", "about 19 GB"."""
    about = "" if exact else "about "
    if size < 1000:
        return f"{about}{size} bytes"
    number, unit = next(
        (size / 1000**i, unit)
        for i, unit in enumerate(("kB", "MB", "GB", "TB"), start=1)
        if size < 999.5 * 1000**i or unit == "TB"
    )
    return f"{about}{number:.0f} {unit}" if number >= 99.5 else f"{about}{number:.1f} {unit}"


class Clock:
    """Estimates the time left of a job from the steps done so far."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = time.perf_counter()

    def watch(self, report: Report, index: int) -> Report:
        """`report` for picture `index`, with the picture's number and the time left filled in."""

        def fill(progress: Progress) -> None:
            left = None
            if progress.stage is Stage.DENOISING and not index + progress.done:
                # Loading happens once and says nothing about what is left.
                self._started = time.perf_counter()
            share = progress.done / progress.total if progress.total else 0.0
            if progress.stage is Stage.DECODING:
                share = 1.0
            done = (index + share) / self._count
            if done > 0:
                left = (time.perf_counter() - self._started) * (1 / done - 1)
            report(replace(progress, picture=index + 1, pictures=self._count, seconds_left=left))

        return fill
