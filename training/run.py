"""The run folder, which is the truth of a training: config, events, checkpoints, previews, result.

config.json       the resolved recipe of this run
events.jsonl      one JSON object per line: start, step, validation, checkpoint, skipped, end
checkpoints/      step-00000500/ ..., whole or not there
previews/         step-00000500.png ...
result/           the trained parts in diffusers layout, written last
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from pipelines import files
from pipelines.errors import BusyError, RequestError, SaveError, printable
from training.config import RunConfig, differences

CONFIG = "config.json"
EVENTS = "events.jsonl"
DATA = "data.txt"
STOP = "stop"
_PARTS = ("checkpoints", "previews")
MAX_CONFIG_BYTES = 1_000_000


class Run:
    """One run folder. Made or reopened by `open_run`; only the main process writes into it."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def previews(self) -> Path:
        """Folder of the sample pictures."""
        return self.folder / "previews"

    def preview(self, step: int) -> Path:
        """The file of the sample pictures of an update."""
        return self.previews / f"step-{step:08d}.png"

    @property
    def result(self) -> Path:
        """Folder of the trained parts."""
        return self.folder / "result"

    @property
    def is_finished(self) -> bool:
        """True once the result is whole."""
        return (self.result / "training.json").is_file()

    @property
    def finished_step(self) -> int:
        """The update at which a finished run ended; patience counts as the end of all."""
        try:
            told = json.loads((self.result / "training.json").read_text("utf-8"))
            return int(told["step"]) if told["reason"] == "finished" else 2**62
        except (OSError, ValueError, KeyError, TypeError):
            return -1

    def hold_data(self, digest: str) -> None:
        """Remembers the pictures that the run began with. Raises RequestError for others."""
        file = self.folder / DATA
        if not file.exists() or not _has_begun(self.folder):
            files.write(file, (digest + "\n").encode())
        elif file.read_text("utf-8", errors="replace").strip() != digest:
            raise RequestError(
                "data",
                f"The pictures or captions are not those that {self.folder} began with.",
                "Put them back, or choose another --run folder.",
            )

    def event(self, kind: str, **values: Any) -> None:
        """Appends one event. Raises SaveError."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values})
        try:
            with open(self.folder / EVENTS, "ab+") as stream:
                # A line that was torn by a power cut must not swallow this one.
                if stream.tell() and not _ends_with_newline(stream):
                    stream.write(b"\n")
                stream.write(line.encode() + b"\n")
        except OSError as error:
            raise SaveError(
                f"The log of the run in {self.folder} cannot be written ({error.strerror})."
            ) from None

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events so far, of one kind if asked; a torn line is left out."""
        try:
            text = (self.folder / EVENTS).read_text("utf-8", errors="replace")
        except OSError:
            return []
        found = []
        for line in text.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and (kind is None or event.get("event") == kind):
                found.append(event)
        return found

    def asked_to_stop(self) -> bool:
        """True where somebody left a file called `stop` in the folder."""
        return (self.folder / STOP).exists()


# The events that a person should hear of while the training runs.
_SAID = {
    "damaged": "{sentence}",
    "resume": "It goes on behind update {step}.",
    "rollback": "It went back to update {step} and goes on with half the learning rate.",
    "skipped": "Update {step} was skipped: its numbers are not finite (samples: {samples}).",
    "unpainted": "The sample sheet of update {step} was not painted, the memory ran out; the"
    " training goes on.",
    "world": "It was begun with {before} processes and goes on with {now}: pictures come in another"
    " order.",
}


def sentence(kind: str, values: Mapping[str, Any]) -> str | None:
    """What is told of an event; None where nothing is."""
    if kind not in _SAID:
        return None
    shown = {name: v if name != "samples" else ", ".join(v[:5]) for name, v in values.items()}
    return _SAID[kind].format(**shown)


def _ends_with_newline(stream: Any) -> bool:
    stream.seek(-1, os.SEEK_END)
    return bool(stream.read(1) == b"\n")


def open_run(folder: Path, config: RunConfig) -> Run:
    """Makes the run folder, or reopens it for the same recipe: that is how a run is resumed.

    Raises RequestError for the folder of another recipe (the differences are named), SaveError
    where the folder cannot be written.
    """
    file = folder / CONFIG
    if file.exists():
        changed = differences(read_config(folder), config)
        # One that was refused, or cut off before its first step, holds nobody to what it was.
        if changed and _has_begun(folder):
            raise RequestError(
                "run",
                f"{folder} holds a run of another recipe ({'; '.join(changed[:4])}).",
                "Choose another folder with --run, or use the recipe that it was started with.",
            )
    elif folder.is_dir() and any(map(_is_foreign, folder.iterdir())):
        raise RequestError(
            "run",
            f"{folder} is not empty and holds no run.",
            "Choose a new folder with --run.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write(file, (config.model_dump_json(indent=1) + "\n").encode())
        for part in _PARTS:
            (folder / part).mkdir(exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"The run folder {folder} cannot be made ({error.strerror}).", "Choose another folder."
        ) from None
    (folder / STOP).unlink(missing_ok=True)
    return Run(folder, config)


def _has_begun(folder: Path) -> bool:
    """Whether anything was learned, or made to learn from."""
    quiet = (CONFIG, DATA, EVENTS, STOP)
    return any(entry.name not in quiet and _is_foreign(entry) for entry in folder.iterdir())


def _is_foreign(entry: Path) -> bool:
    """True for what a start that was cut off cannot have left."""
    if entry.name in _PARTS:
        return any(entry.iterdir()) if entry.is_dir() else True
    return entry.name != ".lock" and not entry.name.endswith(".part")


def read_config(folder: Path) -> RunConfig:
    """The recipe of a run folder. Raises RequestError."""
    file = folder / CONFIG
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise RequestError("run", f"{file} is too large.")
        return RunConfig.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RequestError("run", f"{file} cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        reason = printable(error.errors()[0]["msg"], 120)
        raise RequestError("run", f"{file} is not the recipe of a run ({reason}).") from None


def is_first_process() -> bool:
    """False in the further processes of one training; launchers number them in $RANK."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the folder against a second training. Raises BusyError, SaveError.

    The first process holds it for all. The system lets go of the lock when that process ends,
    however it ends.
    """
    if not is_first_process():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"Another training is using {folder}.", "Wait for it, or choose another --run folder."
        ) from None
    except OSError as error:
        raise SaveError(f"The run folder {folder} cannot be used ({error.strerror}).") from None
    try:
        yield
    finally:
        lock.release()
