"""A released file in the original format -> diffusers' layout, in a process of its own.

The page never loads torch, a stop is obeyed at once, and what lacks memory must not take the studio
along: so a child does the work (`pipelines.models.convert`) and tells how far it is.
Child -> parent: {"event": "progress" | "failed" | "done", ...}.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipelines.errors import (
    ModelError,
    SaveError,
    StudioError,
    WorkerError,
    cause_of_death,
    printable,
)
from pipelines.models.hub_rows import HubSource
from pipelines.models.hub_store import HubFolder, StoredFile
from pipelines.models.transfer import Meter, StopGate
from pipelines.progress import Stage

Message = dict[str, Any]


def into_diffusers(
    source: HubSource, commit: str, store: HubFolder, gate: StopGate, meter: Meter
) -> None:
    """Converts a file of a repository that has arrived whole, and deletes it.

    The record then names the files that were made, with their hashes, in place of it. Raises
    ModelError for a file that cannot be converted, SaveError, WorkerError, Cancelled.
    """
    base, folder = store.commit(source.repo, commit), store.converted(source, commit)
    file = base / source.file
    try:
        _apart(file, folder, gate, meter)
        made = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        total = sum(path.stat().st_size for path in made)
        meter.begin_stage(Stage.CHECKING, source.file, total)
        entries = {}
        for path in made:
            meter.begin(source.file, total)
            entry = _described(path, path.relative_to(base).as_posix(), gate, meter)
            entries[entry.path] = entry
    except OSError as error:
        raise SaveError(
            f"What was converted into {folder} cannot be read ({printable(error.strerror)}).",
            "Look after the disk, and start again.",
        ) from None
    with gate.through():
        record = store.record(source.repo, commit)
        record.chosen[source.file] = list(entries)
        record.entries.pop(source.file, None)
        record.entries.update(entries)
        store.keep(record)
        with suppress(OSError):
            # What stays is swept away by the next download or removal.
            file.unlink()


def _described(file: Path, name: str, gate: StopGate, meter: Meter) -> StoredFile:
    """What the record says of a file, as the hub would describe it."""
    digest, done = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            gate.check()
            digest.update(block)
            done += len(block)
            meter.at(done, checking=True)
    return StoredFile(path=name, size=done, sha256=digest.hexdigest(), whole=True)


def _apart(file: Path, folder: Path, gate: StopGate, meter: Meter) -> None:
    """Runs the child to its end."""
    # The child counts tensors; as shares of the file they say enough.
    size = file.stat().st_size
    meter.begin_stage(Stage.CONVERTING, file.name, size)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=main, args=(theirs, str(file), str(folder)), name="pixart-convert", daemon=True
    )
    try:
        with _without_interrupts():
            process.start()
    except OSError as error:
        ours.close()
        raise WorkerError(
            f"The process that converts {file.name} could not be started ({error.strerror})."
        ) from None
    finally:
        theirs.close()
    try:
        with gate.ending(process.kill):
            last = _followed(ours, size, meter)
            process.join()
    finally:
        ours.close()
        process.kill()
        process.join()
    gate.check()
    if last is None:
        raise WorkerError(
            f"The process that converts {file.name} ended unexpectedly"
            f" ({cause_of_death(process.exitcode)}).",
            "Close other programs and try again; what has arrived is kept.",
        )
    if last["event"] == "failed":
        kind = SaveError if last["kind"] == SaveError.__name__ else ModelError
        raise kind(last["message"], last["way_out"])


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A child that is started here is deaf to Ctrl+C from its first moment on.

    It reaches every process of a terminal, and the parent decides what it means.
    """
    if os.name != "posix":
        yield
        return
    # Otherwise started along with the child, which undoes the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _followed(connection: Connection, size: int, meter: Meter) -> Message | None:
    """The child's last word, None where it died without one."""
    before = 0
    try:
        while True:
            message: Message = json.loads(connection.recv_bytes())
            if message["event"] != "progress":
                return message
            now = size * message["done"] // message["total"]
            meter.at(now, arrived=now - before)
            before = now
    except (EOFError, OSError):
        return None


def main(connection: Connection, file: str, folder: str) -> None:
    """The child."""
    # Where there is no mask.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from pipelines.memory.planning import before_torch, is_out_of_memory

    def tell(**message: Any) -> None:
        try:
            connection.send_bytes(json.dumps(message).encode())
        except OSError:
            # The parent is gone; what was begun is taken away on the way out.
            raise SystemExit(1) from None

    def report(done: int, total: int) -> None:
        tell(event="progress", done=done, total=total)

    try:
        before_torch()
        from pipelines.models import convert
        from pipelines.models.sources import ReadOptions

        convert.convert(Path(file), Path(folder), ReadOptions(), report=report)
    except StudioError as error:
        tell(event="failed", kind=type(error).__name__, message=error.message, way_out=_way(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        words = f"The memory does not suffice to convert {Path(file).name}."
        way_out = "Close other programs and try again; what has arrived is kept."
        tell(event="failed", kind="ModelError", message=words, way_out=way_out)
    else:
        tell(event="done")


def _way(error: StudioError) -> str:
    """The way out of a fault of a file that nobody here has chosen."""
    if isinstance(error, SaveError):
        return "Free some space and start again; what has arrived is kept."
    return "Read it again with --check; if nothing is damaged, it was published like this."
