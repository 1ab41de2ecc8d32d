"""What was downloaded, on disk: `<models>/hub`. The files are the truth, records describe them.

hub/<owner>--<name>/<commit>/...        files of a repository at one commit
hub/<owner>--<name>/<commit>/download.json   what the hub said of them, and which are whole
hub/<owner>--<name>/<commit>/<file>/transformer   a file in the original format, converted
hub/<owner>--<name>/revisions.json      the commit that "main" named at the first download
hub/installed/<id>.json                 where the parts of a model lie
hub/.locks/                             held by whoever writes: one for each repository, one more
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines import files
from pipelines.errors import BusyError, DownloadError, SaveError, printable
from pipelines.models import hub_rows, parts, single_files
from pipelines.models.hub_rows import HubSource, Known

FOLDER = "hub"
RECORD = "download.json"
INSTALLED = "installed"
_REVISIONS = "revisions.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_RECORD = 2_000_000
_MAX_SIZE = 2**40
# A few small files are written meanwhile.
_SETTLING_SECONDS = 30

_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def is_safe(path: str) -> bool:
    """Whether a name from outside may become a file below a folder, on every system."""
    if not 0 < len(path) <= 300 or path.count("/") > 10:
        return False
    if any(not c.isprintable() or c in '\\:*?"<>|' for c in path):
        return False
    return all(
        part not in ("", ".", "..") and part[-1] not in " ." and not _DEVICE.fullmatch(part)
        for part in path.split("/")
    )


class StoredFile(BaseModel):
    """One file as the hub describes it. `sha256` for large files, `blob` (git's) for small ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: Annotated[int, Field(strict=True, ge=0, le=_MAX_SIZE)]
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    blob: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    etag: str | None = Field(default=None, max_length=300)
    whole: bool = False


class Record(BaseModel):
    """What is known of a commit: the chosen files of the folders that were asked for."""

    model_config = ConfigDict(extra="forbid")

    repo: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    chosen: dict[str, list[str]] = {}
    entries: dict[str, StoredFile] = {}


class Installed(BaseModel):
    """Where the parts of a model lie. Paths inside the hub's folder are relative to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    places: dict[str, Path]
    commits: dict[str, str] = {}


class HubFolder:
    """The folder of downloads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repo(self, repo: str) -> Path:
        """The folder of a repository."""
        return self.root / repo.replace("/", "--")

    def commit(self, repo: str, commit: str) -> Path:
        """The folder of a repository's files at one commit."""
        return self.repo(repo) / commit

    def lock(self, repo: str) -> Path:
        """The file that whoever writes into a repository's folder holds."""
        return self.root / ".locks" / f"{self.repo(repo).name}.lock"

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Held for a moment while it is settled which model reads which part.

        Raises BusyError, DownloadError.
        """
        file = self.root / ".locks" / "settling.lock"
        lock = FileLock(file, timeout=_SETTLING_SECONDS, thread_local=False, is_singleton=False)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise BusyError(
                f"{self.root} is in use by another window or process.", "Try again."
            ) from None
        except OSError as error:
            raise _unwritable(self.root, error) from None
        try:
            yield
        finally:
            lock.release()

    def pinned(self, source: HubSource) -> str | None:
        """The commit that `source` is read at; None where "main" was never asked for."""
        if source.revision != hub_rows.MAIN:
            return source.revision
        kept = _read(self.repo(source.repo) / _REVISIONS)
        commit = json.loads(kept).get(hub_rows.MAIN) if kept and _is_table(kept) else None
        return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None

    def pin(self, repo: str, commit: str) -> None:
        """Writes down which commit "main" names from now on."""
        self._write(self.repo(repo) / _REVISIONS, json.dumps({hub_rows.MAIN: commit}))

    def record(self, repo: str, commit: str) -> Record:
        """What is known of a commit; a damaged record counts as none."""
        kept = _read(self.commit(repo, commit) / RECORD)
        with suppress(ValidationError):
            if kept:
                record = Record.model_validate_json(kept)
                if record.repo == repo and record.commit == commit and _is_sound(record):
                    return record
        return Record(repo=repo, commit=commit)

    def keep(self, record: Record) -> None:
        """Writes a record. Raises DownloadError."""
        file = self.commit(record.repo, record.commit) / RECORD
        self._write(file, record.model_dump_json(exclude_defaults=True, indent=1))

    def converted(self, source: HubSource, commit: str) -> Path:
        """The folder that a file in the original format is converted to; its name is the file's."""
        return self.commit(source.repo, commit) / Path(source.file).stem

    def place(self, source: HubSource) -> Path | None:
        """Where a part lies that was downloaded whole, or None.

        A folder; a file, where it is one in the original format that was not converted.
        """
        commit = self.pinned(source)
        if commit is None:
            return None
        record = self.record(source.repo, commit)
        chosen = record.chosen.get(source.key[2])
        base = self.commit(source.repo, commit)
        if chosen is None or not all(self._is_there(base, record.entries[p]) for p in chosen):
            return None
        if source.file:
            made = self.converted(source, commit) / source.part
            return base / source.file if source.file in chosen else made
        return base / source.folder if source.folder else base

    def _is_there(self, base: Path, entry: StoredFile) -> bool:
        try:
            return entry.whole and (base / entry.path).stat().st_size == entry.size
        except OSError:
            return False

    def installed(self) -> Iterator[Installed]:
        """The models that were downloaded; what cannot be read is left out."""
        for file in sorted((self.root / INSTALLED).glob("*.json")):
            kept = _read(file)
            with suppress(ValidationError):
                if kept:
                    row = Installed.model_validate_json(kept)
                    if row.id == file.stem and row.id in hub_rows.known():
                        yield row

    def places(self, row: Installed) -> dict[str, Path]:
        """The folders of the parts of an installed model."""
        return {part: self.root / place for part, place in row.places.items()}

    def lacks(self, row: Installed) -> str | None:
        """Why an installed model cannot be used, in a few words, or None."""
        places = self.places(row)
        model = hub_rows.known()[row.id]
        for source in model.parts:
            place = places.get(source.part)
            name = source.part.replace("_", " ")
            if place is None:
                return f"its {name} is missing"
            if source.file and place.is_file():
                if model.paints:
                    return f"its {name} is still in the original format"
                continue
            if reason := single_files.lost_link(place, source.part):
                return f"its {name} {reason}"
            if reason := parts.missing(place, source.part):
                return f"its {name} in {place}: {reason}"
        return None

    def install(self, model: Known, places: Mapping[str, Path], commits: dict[str, str]) -> None:
        """Writes down where the parts of a model lie. Raises DownloadError."""
        inside = {
            part: place.relative_to(self.root) if place.is_relative_to(self.root) else place
            for part, place in places.items()
        }
        row = Installed(id=model.id, places=inside, commits=commits)
        self._write(self.root / INSTALLED / f"{model.id}.json", row.model_dump_json(indent=1))

    def uninstall(self, model_id: str) -> None:
        """Takes the record of a model away."""
        with suppress(FileNotFoundError):
            (self.root / INSTALLED / f"{model_id}.json").unlink()

    def _write(self, file: Path, text: str) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write(file, text.encode())
        except SaveError as error:
            raise DownloadError(
                error.message, "Free some space or choose another --workspace."
            ) from None
        except OSError as error:
            raise _unwritable(file.parent, error) from None


def fault(place: Path, part: str) -> str | None:
    """Why the folder `place` cannot be used as `part`, in a few words, or None."""
    return single_files.lost_link(place, part) or parts.missing(place, part)


def _unwritable(folder: Path, error: OSError) -> DownloadError:
    return DownloadError(
        f"The folder {folder} cannot be written ({printable(error.strerror)}).",
        "Choose another --workspace.",
    )


def _is_sound(record: Record) -> bool:
    """A record may have been edited by hand or by an attacker: its names are checked again."""
    named = {path for paths in record.chosen.values() for path in paths}
    return named <= set(record.entries) and all(
        path == entry.path and is_safe(path) and bool(entry.sha256 or entry.blob)
        for path, entry in record.entries.items()
    )


def _read(file: Path) -> str | None:
    try:
        if not file.is_file() or file.stat().st_size > _MAX_RECORD:
            return None
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _is_table(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def erase(store: HubFolder, repo: str, commit: str, names: set[str]) -> int:
    """Deletes files of a commit and the folders that they leave empty. Returns the bytes freed.

    Symlinks are removed and never followed; nothing outside the commit's folder is touched.
    """
    base = store.commit(repo, commit)
    freed = 0
    for name in sorted(names):
        if not is_safe(name):
            continue
        for file in (base / name, base / f"{name}.part"):
            if not file.parent.resolve().is_relative_to(base.resolve()):
                continue
            with suppress(OSError):
                size = 0 if file.is_symlink() else file.stat().st_size
                file.unlink()
                freed += size
    record = store.record(repo, commit)
    left = {key: paths for key, paths in record.chosen.items() if not names & set(paths)}
    kept = {path for paths in left.values() for path in paths}
    entries = {path: entry for path, entry in record.entries.items() if path in kept}
    if left:
        store.keep(Record(repo=repo, commit=commit, chosen=left, entries=entries))
    _remove_empty(base)
    with suppress(OSError):
        if not left and not _has_files(base):
            shutil.rmtree(base)
        if not any(entry.is_dir() for entry in store.repo(repo).iterdir()):
            shutil.rmtree(store.repo(repo))
    return freed


def sweep(store: HubFolder, source: HubSource, commit: str) -> int:
    """Deletes what a conversion that was cut short has left: whatever of it no record names.

    The source's repository has to be locked. Returns the bytes freed.
    """
    base, folder = store.commit(source.repo, commit), store.converted(source, commit)
    known = store.record(source.repo, commit).chosen.get(source.file, [])
    left = [
        path
        for path in base.glob(f".{folder.name}.*")
        if path.suffix in (".part", ".old") and path.is_dir()
    ]
    if not any(name.startswith(f"{folder.name}/") for name in known):
        left.append(folder)
    elif source.file not in known:
        left += [base / source.file, base / f"{source.file}.part"]
    freed = 0
    for path in left:
        with suppress(OSError):
            inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
            size = sum(file.stat().st_size for file in inside if file.is_file())
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            freed += size
    return freed


def _has_files(base: Path) -> bool:
    """Whether anything but our record is left."""
    return any(name != RECORD for _, _, names in os.walk(base, followlinks=False) for name in names)


def _remove_empty(base: Path) -> None:
    for folder, _, _ in os.walk(base, topdown=False, followlinks=False):
        if Path(folder) != base:
            with suppress(OSError):
                os.rmdir(folder)
