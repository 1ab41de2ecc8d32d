"""One file from the hub to the disk: resumed, checked, whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipelines.errors import DownloadError, printable
from pipelines.models.hub import Hub, PassingError
from pipelines.models.hub_store import StoredFile
from pipelines.progress import Stage

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_WINDOW = 8.0


class Cancelled(Exception):
    """A person asked to stop; what has arrived is kept."""


class StopGate:
    """Lets bytes through until it is closed. Closing wakes whoever waits for something slow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._end: Callable[[], None] | None = None

    def close(self) -> None:
        """After this returns, nothing more is written."""
        with self._lock:
            self._closed.set()
            end = self._end
        if end is not None:
            with suppress(OSError):
                end()

    def check(self) -> None:
        """Raises Cancelled once the gate is closed."""
        if self._closed.is_set():
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Waits, or raises Cancelled as soon as the gate is closed."""
        if self._closed.wait(seconds):
            raise Cancelled

    @contextmanager
    def through(self) -> Iterator[None]:
        """Around every change on disk."""
        with self._lock:
            self.check()
            yield

    @contextmanager
    def ending(self, end: Callable[[], None] | None) -> Iterator[None]:
        """While the block runs, closing the gate calls `end`."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    @contextmanager
    def listening(self, response: httpx.Response) -> Iterator[None]:
        """While a response is read, closing the gate ends its connection."""
        stream = response.extensions.get("network_stream")
        line: Any = stream.get_extra_info("socket") if stream is not None else None

        def end() -> None:
            # Not the method of an SSLSocket, which would forget its state under the reader.
            socket.socket.shutdown(line, socket.SHUT_RDWR)

        with self.ending(end if line is not None else None):
            yield


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where a download stands. `speed` in bytes per second, None while nothing is known.

    A conversion is counted by itself: `done` of `total` are then its bytes.
    """

    file: str
    file_done: int
    file_total: int
    done: int
    total: int
    speed: float | None
    stage: Stage

    @property
    def checking(self) -> bool:
        """Whether what is there is read again."""
        return self.stage is Stage.CHECKING

    @property
    def seconds_left(self) -> float | None:
        """An estimate for all that is left."""
        return (self.total - self.done) / self.speed if self.speed else None


class Meter:
    """Counts bytes of all files; read by another thread than the one that counts."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._lock = threading.Lock()
        self._before = self._now = 0
        self._arrived = 0
        self._file, self._file_total = "", 0
        self._stage, self._checking = Stage.DOWNLOADING, False
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def begin(self, file: str, total: int) -> None:
        """The next file."""
        with self._lock:
            self._before += self._now
            self._file, self._file_total, self._now = file, total, 0

    def begin_stage(self, stage: Stage, file: str, total: int) -> None:
        """Something else than downloading, of `total` bytes, that is counted from nothing."""
        with self._lock:
            self._stage, self._checking = stage, False
            self._file, self._file_total, self._total = file, total, total
            self._before = self._now = self._arrived = 0
            self._marks = deque([(self._clock(), 0)])

    def at(self, done: int, *, arrived: int = 0, checking: bool = False) -> None:
        """`done` bytes of the file are there; `arrived` of them came just now."""
        with self._lock:
            self._now, self._checking = done, checking
            self._arrived += arrived
            now = self._clock()
            if now - self._marks[-1][0] > 0.2:
                self._marks.append((now, self._arrived))
            while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW:
                self._marks.popleft()

    def read(self) -> Reading:
        """The state now."""
        with self._lock:
            start, counted = self._marks[0]
            span = self._clock() - start
            moved = self._arrived - counted
            # The first files are tiny: what they take says nothing.
            known = span > 1 or (span > 0.3 and moved > 1_000_000)
            return Reading(
                file=self._file,
                file_done=self._now,
                file_total=self._file_total,
                done=min(self._before + self._now, self._total),
                total=self._total,
                speed=moved / span if known and moved else None,
                stage=Stage.CHECKING if self._checking else self._stage,
            )


class Transfer:
    """One file on its way to `target`; `target` + ".part" is what has arrived."""

    def __init__(
        self, hub: Hub, gate: StopGate, meter: Meter, keep: Callable[[StoredFile], None]
    ) -> None:
        self._hub, self._gate, self._meter, self._keep = hub, gate, meter, keep

    def fetch(self, repo: str, commit: str, entry: StoredFile, target: Path) -> None:
        """Downloads `entry`, goes on where an earlier try ended, checks it and puts it in place.

        Raises DownloadError, Cancelled.
        """
        part = target.with_name(f"{target.name}.part")
        for damaged in (False, True):
            with _disk(part):
                part.parent.mkdir(parents=True, exist_ok=True)
                digest, there = self._start(part, entry)
            digest = self._arrive(repo, commit, entry, part, digest, there)
            if digest.hexdigest() == (entry.sha256 or entry.blob):
                with _disk(part), self._gate.through():
                    part.replace(target)
                    _sync_folder(target.parent)
                return
            with _disk(part), self._gate.through():
                part.unlink()
            if damaged:
                raise DownloadError(
                    f"{entry.path} of {repo} arrived damaged twice.",
                    "A proxy or a failing disk may change it; try another connection.",
                )

    def _start(self, part: Path, entry: StoredFile) -> tuple[Any, int]:
        """The digest over what is there already."""
        digest, there = fresh_digest(entry), 0
        if part.is_symlink() or (part.exists() and not part.is_file()):
            with self._gate.through():
                part.unlink()
        size = part.stat().st_size if part.exists() else 0
        if size > entry.size:
            with self._gate.through():
                part.unlink()
            size = 0
        if size:
            with open(part, "rb") as stream:
                while block := stream.read(1 << 20):
                    self._gate.check()
                    digest.update(block)
                    there += len(block)
                    self._meter.at(there, checking=True)
        return digest, there

    def _arrive(
        self, repo: str, commit: str, entry: StoredFile, part: Path, digest: Any, there: int
    ) -> Any:
        """Fetches until all bytes are there; returns their digest."""
        patience, failures, tagged = self._hub.patience, 0, True
        with _disk(part), open(part, "ab", buffering=0) as out:
            while there < entry.size:
                before, tag = there, entry.etag if tagged else None
                asked = entry.model_copy(update={"etag": tag})
                try:
                    with self._hub.open(repo, commit, asked, start=there) as response:
                        entry = self._note(entry, response)
                        if there and tag and entry.etag != tag and response.status_code == 200:
                            # Servers of one storage may have different tags for the same bytes:
                            # from now on the hash alone decides whether they are the same.
                            tagged = False
                            continue
                        with self._gate.listening(response):
                            if not _continues(response, there, entry, repo):
                                with self._gate.through():
                                    out.truncate(0)
                                digest, there = fresh_digest(entry), 0
                            if response.status_code != 416:
                                for chunk in response.iter_raw():
                                    there = self._take(chunk, out, digest, there, entry)
                    if there < entry.size:
                        raise PassingError(_short(entry, repo))
                except PassingError as fault:
                    self._gate.check()
                    # Bytes that came are a reason for hope; a server that sends them in vain,
                    # starting over each time, is none.
                    failures = 0 if there > before else failures + 1
                    if failures >= patience.tries:
                        raise fault.error from None
                    pause = fault.wait or patience.pause * 2 ** max(0, failures - 1)
                    self._gate.wait(min(pause, patience.longest_pause))
            os.fsync(out.fileno())
        return digest

    def _take(self, chunk: bytes, out: Any, digest: Any, there: int, entry: StoredFile) -> int:
        if there + len(chunk) > entry.size:
            raise _lie(entry, "sends more")
        with self._gate.through():
            written = 0
            while written < len(chunk):
                written += out.write(chunk[written:])
        digest.update(chunk)
        there += len(chunk)
        self._meter.at(there, arrived=len(chunk))
        return there

    def _note(self, entry: StoredFile, response: httpx.Response) -> StoredFile:
        """Keeps the tag of the file, so that a later start goes on with the same bytes only."""
        etag = response.headers.get("etag", "")
        if response.status_code in (200, 206) and 0 < len(etag) <= 300 and etag != entry.etag:
            entry = entry.model_copy(update={"etag": etag})
            with self._gate.through():
                self._keep(entry)
        return entry


def _continues(response: httpx.Response, there: int, entry: StoredFile, repo: str) -> bool:
    """Whether the answer goes on at `there`; False where it starts over. Raises for lies."""
    if response.status_code == 416:
        return False
    if response.status_code == 206:
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[3]) != entry.size:
            raise _lie(entry, "sends another size")
        if int(match[1]) != there:
            raise PassingError(_short(entry, repo))
        return True
    kind = response.headers.get("content-type", "")
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) != entry.size:
        if kind.startswith("text/html"):
            raise DownloadError(
                f"A web page came instead of {entry.path}: a proxy or a login page is in between.",
                "Open the hub in a browser first, or check HTTPS_PROXY.",
            )
        raise _lie(entry, "sends another size")
    return there == 0


def _short(entry: StoredFile, repo: str) -> DownloadError:
    return DownloadError(
        f"{entry.path} of {repo} ends too early.", "Try again; what has arrived is kept."
    )


def _lie(entry: StoredFile, how: str) -> DownloadError:
    return DownloadError(
        f"The hub lists {entry.path} with {entry.size:,} bytes but {how}.",
        "A proxy may change it; try another connection.",
    )


def fresh_digest(entry: StoredFile) -> Any:
    """SHA-256 for large files; git's SHA-1 of the blob for small ones."""
    if entry.sha256:
        return hashlib.sha256()
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(f"blob {entry.size}\0".encode())
    return digest


def is_whole(file: Path, entry: StoredFile, gate: StopGate, meter: Meter) -> bool:
    """Whether a file on disk is, byte for byte, what the hub described. Raises Cancelled."""
    digest, done = fresh_digest(entry), 0
    try:
        if file.stat().st_size != entry.size:
            return False
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                gate.check()
                digest.update(block)
                done += len(block)
                meter.at(done, checking=True)
    except OSError:
        return False
    return bool(digest.hexdigest() == (entry.sha256 or entry.blob))


@contextmanager
def _disk(file: Path) -> Iterator[None]:
    """Maps faults of the disk to sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DownloadError(
                f"There is no space left on the disk for {file}.",
                "Free some space and start again; what has arrived is kept.",
            ) from None
        raise DownloadError(
            f"{file} cannot be written ({printable(error.strerror)}).",
            "Choose another --workspace.",
        ) from None


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
