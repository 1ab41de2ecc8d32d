"""Every way in which painting can fail, each with a sentence for people and a way out.

StudioError
├── RequestError        a value that cannot be painted (carries the field)
│   └── UnknownNameError    a name that is not in a list (says the nearest)
├── RecipeError         a picture or a text that holds no usable recipe
├── ModelError          weights that are missing, damaged or of another kind
│   └── LoraFileError       a LoRA where a model was wanted
├── DownloadError       weights that could not be fetched
├── SaveError           a picture that could not be written
├── OutOfMemoryError    the device or the machine has too little memory
├── WorkerError         a process of the studio died or could not start
├── TrainingError       a training that cannot go on
└── BusyError           too many jobs are waiting, or a folder is in use
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lora_manager.errors import LoraError, hint
from lora_manager.errors import printable as printable


class StudioError(Exception):
    """A failure that a person can read and repair.

    `message` is one sentence that names the value; `way_out` one sentence that says what to do.
    """

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.message} {self.way_out}".strip()


class RequestError(StudioError):
    """A value that cannot be painted. `field` is the name of the request's field."""

    def __init__(self, field: str, message: str, way_out: str = "") -> None:
        super().__init__(message, way_out)
        self.field = field


class UnknownNameError(RequestError):
    """A name that is not in a list; the sentence says the nearest one."""

    def __init__(self, field: str, kind: str, name: str, known: Iterable[str]) -> None:
        # Names may come from anywhere: show a short, one-line form of what was given.
        message = f"There is no {kind} called “{printable(name)}”."
        super().__init__(field, message, hint(name, known, f"There is no {kind} installed."))


class RecipeError(StudioError):
    """A picture or a text that holds no usable recipe."""


class ModelError(StudioError):
    """Weights that are missing, damaged or of another kind."""


class LoraFileError(ModelError):
    """A LoRA where a model was wanted."""


class DownloadError(StudioError):
    """Weights that could not be fetched; what has arrived is kept."""


class SaveError(StudioError):
    """A picture that could not be written."""


class OutOfMemoryError(StudioError):
    """The device or the machine has too little memory for the job."""


class WorkerError(StudioError):
    """A process of the studio, as the one that paints, died or could not start."""


class ProcessDeathError(WorkerError):
    """A process of the studio ended in the middle of its work, which can be begun again."""


class TrainingError(StudioError):
    """A training that cannot go on; what was saved before is whole."""


class BusyError(StudioError):
    """Too many jobs are waiting, or a folder is in use."""


@contextmanager
def model_errors() -> Iterator[None]:
    """LoraErrors of the block as ModelErrors: `lora_manager` is of a lower rank and has its own."""
    try:
        yield
    except LoraError as error:
        raise ModelError(error.message, error.way_out) from None


def cause_of_death(exit_code: int | None) -> str:
    """How a process ended that should have gone on, in a few words."""
    if exit_code is None:
        return "it does not answer"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    reason = ", perhaps out of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{reason}"
