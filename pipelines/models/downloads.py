"""Downloading a model: what is needed, what is there already, how much is left, and the doing.

`make_plan` asks the hub (once: later plans of the same files need no network), `carry_out` fetches.
Both may take long, so the work runs in a thread of its own (`attendance`) and the caller's thread
reports and stops it: a stop is obeyed within a second, also while the network is silent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.cancellation import OnReading, cancellable
from pipelines.errors import BusyError, DownloadError, printable
from pipelines.models import conversion, hub_rows, hub_store, parts
from pipelines.models.hub import Hub, PassingError
from pipelines.models.hub_rows import HubSource, Known
from pipelines.models.hub_store import HubFolder, Record, StoredFile
from pipelines.models.transfer import Meter, Reading, StopGate, Transfer, is_whole
from pipelines.progress import Progress, ShouldStop, Stage, plain_size

MARGIN = 64_000_000
"""Bytes that a download leaves free on the disk."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of a plan. `there` counts its bytes that have arrived already."""

    source: HubSource
    commit: str
    entry: StoredFile
    there: int

    @property
    def left(self) -> int:
        """Bytes to fetch."""
        return self.entry.size - self.there


@dataclass(frozen=True, kw_only=True)
class DownloadPlan:
    """What a download would do. `found` are parts that are used where they lie."""

    model: Known
    items: tuple[PlannedFile, ...]
    found: Mapping[str, Path]

    @property
    def total(self) -> int:
        """Bytes of all files of the model that lie, or will lie, in the hub's folder."""
        return sum(item.entry.size for item in self.items)

    @property
    def left(self) -> int:
        """Bytes to fetch."""
        return sum(item.left for item in self.items)

    @property
    def originals(self) -> tuple[PlannedFile, ...]:
        """The files in the original format that are converted as soon as they have arrived."""
        if not self.model.paints:
            return ()
        return tuple(item for item in self.items if item.entry.path == item.source.file)

    @property
    def spare(self) -> int:
        """Bytes that converting takes beside all files, at most, until the originals are gone."""
        return sum(item.entry.size for item in self.originals)


def make_plan(
    model: Known,
    store: HubFolder,
    hub: Hub,
    *,
    found: Mapping[str, Path] | None = None,
    check: bool = False,
    report: OnReading = lambda reading: None,
    should_stop: ShouldStop = lambda: False,
) -> DownloadPlan | None:
    """What it takes to have `model`; None where a person stopped.

    `found` names parts that lie elsewhere; what is in the hub's folder comes first. `check` reads
    every file that is there and plans the damaged ones again. Raises DownloadError.
    """

    def work(gate: StopGate, meter: Meter) -> DownloadPlan:
        used = {s.part: (found or {}).get(s.part) for s in model.parts if not store.place(s)}
        in_place = {part: folder for part, folder in used.items() if folder is not None}
        listings: dict[tuple[str, str], Mapping[str, StoredFile]] = {}
        items: list[PlannedFile] = []
        for source in model.parts:
            if source.part in in_place:
                continue
            record = _described(source, store, hub, listings, gate)
            if check:
                record = _checked(source, record, store, gate, meter)
            if _forgotten(source, record, store, gate):
                record = _described(source, store, hub, listings, gate)
            items += _items(source, record, store)
        return DownloadPlan(model=model, items=tuple(items), found=in_place)

    meter = Meter(model.size)
    return cancellable(lambda gate: work(gate, meter), meter, report, should_stop)


def carry_out(
    plan: DownloadPlan,
    store: HubFolder,
    hub: Hub,
    *,
    settle: Callable[[Path], Path] = lambda place: place,
    report: OnReading = lambda reading: None,
    should_stop: ShouldStop = lambda: False,
) -> bool:
    """Fetches what `plan` lacks, converts it and installs the model. False where a person stopped.

    `settle` makes a folder of each place that was found, right before the model is installed.
    Raises DownloadError, ModelError where a file cannot be converted, and BusyError where another
    process downloads from the same repository.
    """
    repos = {item.source.repo for item in plan.items}
    meter = Meter(plan.total)

    def work(gate: StopGate) -> bool:
        _fetch_all(plan, store, hub, gate, meter)
        for item in plan.originals:
            conversion.into_diffusers(item.source, item.commit, store, gate, meter)
        with gate.through():
            _install(plan, store, settle)
        return True

    with alone(store, repos):
        plan = replace(plan, items=tuple(i for i in plan.items if not _is_converted(i, store)))
        _sweep(plan, store)
        _check_space(plan, store)
        try:
            return bool(cancellable(work, meter, report, should_stop))
        finally:
            _sweep(plan, store)


def as_progress(reading: Reading) -> Progress:
    """A reading in the one shape of progress, in bytes."""
    # Short, so that a terminal of 80 columns shows all of it: the part, not the file.
    note = reading.file.split("/")[0]
    if reading.speed and reading.stage is Stage.DOWNLOADING:
        note = f"{plain_size(int(reading.speed))}/s, {note}"
    return Progress(
        stage=reading.stage,
        done=reading.done,
        total=reading.total,
        seconds_left=None if reading.checking else reading.seconds_left,
        note=note,
    )


# --- planning ---------------------------------------------------------------------------------


def _described(
    source: HubSource,
    store: HubFolder,
    hub: Hub,
    listings: dict[tuple[str, str], Mapping[str, StoredFile]],
    gate: StopGate,
) -> Record:
    """The record of the source's commit with the files of its folder chosen."""
    key = source.file or source.folder
    commit = store.pinned(source)
    if commit is not None:
        record = store.record(source.repo, commit)
        if key in record.chosen:
            return record
    asked = (source.repo, commit or source.revision)
    if asked not in listings:
        commit, listings[asked] = _ask(hub, *asked, gate)
        if source.revision == hub_rows.MAIN and store.pinned(source) is None:
            with gate.through():
                store.pin(source.repo, commit)
    entries = listings[asked]
    commit = commit or store.pinned(source)
    assert commit is not None
    record = store.record(source.repo, commit)
    names = _chosen(source, entries)
    record.chosen[key] = names
    for name in names:
        record.entries.setdefault(name, entries[name])
    with gate.through():
        store.keep(record)
    return record


def _ask(
    hub: Hub, repo: str, revision: str, gate: StopGate
) -> tuple[str, Mapping[str, StoredFile]]:
    for turn in range(hub.patience.tries):
        gate.check()
        try:
            return hub.listing(repo, revision)
        except PassingError as fault:
            gate.check()
            if turn + 1 == hub.patience.tries or turn >= 2:
                raise fault.error from None
            gate.wait(min(fault.wait or hub.patience.pause * 2**turn, hub.patience.longest_pause))
    raise AssertionError("the last try returns or raises")


def _chosen(source: HubSource, entries: Mapping[str, StoredFile]) -> list[str]:
    """The paths in the repository that make up the part. Raises DownloadError."""
    if source.file:
        names: list[str] = [source.file] if source.file in entries else []
    else:
        prefix = f"{source.folder}/" if source.folder else ""
        inside = {
            path.removeprefix(prefix)
            for path in entries
            if path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        }
        names = [f"{prefix}{name}" for name in parts.choose(source.part, inside) or ()]
    if not names:
        where = source.file or source.folder or "it"
        raise DownloadError(
            f"{source.repo} does not hold what is needed: “{printable(where)}” is not there, "
            "or not as safetensors.",
            "Check HF_ENDPOINT.",
        )
    for name in names:
        limit = parts.max_bytes(name.rsplit("/", 1)[-1])
        size = entries[name].size
        if limit is not None and size > limit:
            raise DownloadError(
                f"{name} of {source.repo} is listed with {plain_size(size)}, which is too large.",
                "Check HF_ENDPOINT.",
            )
    return names


def _items(source: HubSource, record: Record, store: HubFolder) -> Iterator[PlannedFile]:
    base = store.commit(source.repo, record.commit)
    for name in record.chosen[source.file or source.folder]:
        entry = record.entries[name]
        there = entry.size
        if _size(base / name) != entry.size:
            there = min(_size(base / f"{name}.part") or 0, entry.size)
            entry = entry.model_copy(update={"whole": False})
        yield PlannedFile(source=source, commit=record.commit, entry=entry, there=there)


def _checked(
    source: HubSource, record: Record, store: HubFolder, gate: StopGate, meter: Meter
) -> Record:
    """The record after every file of the part was read; damaged ones are to be fetched again."""
    base = store.commit(source.repo, record.commit)
    for name in record.chosen[source.file or source.folder]:
        entry = record.entries[name]
        meter.begin(name, entry.size)
        if _size(base / name) is not None and not is_whole(base / name, entry, gate, meter):
            with gate.through(), suppress(OSError):
                (base / name).unlink()
            record.entries[name] = entry.model_copy(update={"whole": False, "etag": None})
    with gate.through():
        store.keep(record)
    return record


def _forgotten(source: HubSource, record: Record, store: HubFolder, gate: StopGate) -> bool:
    """Whether a part that was converted is no longer whole: its original is then fetched anew."""
    chosen = record.chosen[source.key[2]]
    if not source.file or source.file in chosen or store.place(source) is not None:
        return False
    del record.chosen[source.file]
    for name in chosen:
        record.entries.pop(name, None)
    with gate.through():
        store.keep(record)
    return True


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


# --- doing ------------------------------------------------------------------------------------


def _fetch_all(
    plan: DownloadPlan, store: HubFolder, hub: Hub, gate: StopGate, meter: Meter
) -> None:
    # Small files first: what is wrong with a repository shows early.
    for item in sorted(plan.items, key=lambda item: item.entry.size):
        repo, entry = item.source.repo, item.entry
        target = store.commit(repo, item.commit) / entry.path
        meter.begin(entry.path, entry.size)

        def keep(changed: StoredFile, repo: str = repo, commit: str = item.commit) -> None:
            record = store.record(repo, commit)
            record.entries[changed.path] = changed
            store.keep(record)

        if not entry.whole:
            # A file that is there but not noted came just before the process was killed.
            if not is_whole(target, entry, gate, meter):
                Transfer(hub, gate, meter, keep).fetch(repo, item.commit, entry, target)
            with gate.through():
                kept = store.record(repo, item.commit).entries.get(entry.path, entry)
                keep(kept.model_copy(update={"whole": True}))
        meter.at(entry.size)


def _install(plan: DownloadPlan, store: HubFolder, settle: Callable[[Path], Path]) -> None:
    with store.settling():
        places = {part: settle(place) for part, place in plan.found.items()}
        for source in plan.model.parts:
            found = places.get(source.part)
            place = found or store.place(source)
            reason = "files are missing" if place is None else None
            if place is not None and not (place.is_file() and source.file):
                reason = hub_store.fault(place, source.part)
            if place is None or reason:
                where = f"in {printable(found, 200)}" if found else f"of {source.repo}"
                raise DownloadError(
                    f"The {source.label} {where} cannot be used: {reason}.",
                    f"Try: launch.py models download {plan.model.id} --check",
                )
            places[source.part] = place
        commits = {item.source.repo: item.commit for item in plan.items}
        store.install(plan.model, places, commits)


def _is_converted(item: PlannedFile, store: HubFolder) -> bool:
    """Whether an original of a plan was converted by somebody else since the plan was made."""
    place = store.place(item.source) if item.entry.path == item.source.file else None
    return place is not None and place.is_dir()


def _sweep(plan: DownloadPlan, store: HubFolder) -> None:
    """Takes away what a conversion that was stopped, now or earlier, has left."""
    for item in plan.items:
        if item.source.file:
            hub_store.sweep(store, item.source, item.commit)


def _check_space(plan: DownloadPlan, store: HubFolder) -> None:
    """Raises DownloadError where the disk cannot hold what is left."""
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(store.root).free
    except OSError as error:
        raise DownloadError(
            f"The folder {store.root} cannot be made ({printable(error.strerror)}).",
            "Choose another --workspace.",
        ) from None
    needed = plan.left + plan.spare
    if needed and free < needed + MARGIN:
        why = " to be fetched and converted" if plan.spare else ""
        raise DownloadError(
            f"{plan.model.id} needs {plain_size(needed)} more{why}, and the disk of {store.root} "
            f"has {plain_size(free)} left.",
            "Free some space, or choose a --workspace on another disk.",
        )


@contextmanager
def alone(store: HubFolder, repos: set[str]) -> Iterator[None]:
    """Keeps other processes and threads away from the repositories. Raises BusyError."""
    held: list[FileLock] = []
    try:
        for repo in sorted(repos):
            file = store.lock(repo)
            file.parent.mkdir(parents=True, exist_ok=True)
            # Not one object per path and process: two threads of the page are two downloads too.
            lock = FileLock(file, timeout=0, thread_local=False, is_singleton=False)
            lock.acquire()
            held.append(lock)
        yield
    except Timeout:
        raise BusyError(
            f"{repo} is in use by another download, in another window or process.",
            "Wait until it has ended, or stop it.",
        ) from None
    except OSError as error:
        raise DownloadError(
            f"The folder {store.root} cannot be written ({printable(error.strerror)}).",
            "Choose another --workspace.",
        ) from None
    finally:
        for lock in held:
            lock.release()
