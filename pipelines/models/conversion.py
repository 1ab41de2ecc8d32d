"""A released file in the original format -> diffusers' layout, in a process of its own.

The page never loads torch, a stop is obeyed at once, and what runs out of memory must not take
the studio along: so a child does the work (`pipelines.models.convert`) and tells how far it is.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from pipelines.errors import ModelError, ProcessDeathError, SaveError, StudioError, printable
from pipelines.models.hub_rows import HubSource
from pipelines.models.hub_store import HubFolder, StoredFile
from pipelines.models.transfer import Meter, StopGate
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.processes.wire import Message
from pipelines.progress import Stage


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
    size, before = file.stat().st_size, 0
    meter.begin_stage(Stage.CONVERTING, file.name, size)

    def on_event(message: Message) -> None:
        nonlocal before
        now = size * message["done"] // message["total"]
        meter.at(now, arrived=now - before)
        before = now

    spec = ChildSpec(name="pixart-convert", what=f"The process that converts {file.name}")
    child = Child.start(spec, convert, str(file), str(folder))
    try:
        # At once, and not asked first: once the gate is closed nothing more is written.
        with gate.ending(child.kill):
            child.follow(on_event)
    except ProcessDeathError as death:
        gate.check()
        raise ProcessDeathError(
            death.message, "Close other programs and try again; what has arrived is kept."
        ) from None
    finally:
        child.kill()
        child.close()
    gate.check()


def convert(pipe: ParentPipe, file: str, folder: str) -> None:
    """The child."""
    from pipelines.heavy_imports import importing_torch
    from pipelines.memory.planning import is_out_of_memory

    try:
        with importing_torch():
            from pipelines.models import convert
            from pipelines.models.sources import ReadOptions

        convert.convert(
            Path(file),
            Path(folder),
            ReadOptions(),
            report=lambda done, total: pipe.tell("progress", done=done, total=total),
        )
    except (SaveError, ModelError) as error:
        raise type(error)(error.message, _way(error)) from None
    except StudioError as error:
        raise ModelError(error.message, _way(error)) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"Converting {Path(file).name} ran out of memory.",
            "Close other programs and try again; what has arrived is kept.",
        ) from None


def _way(error: StudioError) -> str:
    """The way out of a fault of a file that nobody here has chosen."""
    if isinstance(error, SaveError):
        return "Free some space and start again; what has arrived is kept."
    return "Read it again with --check; if nothing is damaged, it was published like this."
