"""A .zip of pictures, unpacked into a new folder. Nothing in it is trusted, nothing is executed."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from lora_manager import drafts
from pipelines.errors import RequestError, SaveError, printable
from training.data.manifest import Problem, is_inside
from training.data.readers import CAPTIONS, PICTURES, TABLES

MAX_MEMBERS = 200_000
MAX_BYTES = 50_000_000_000
MAX_RATIO = 200
"""Unpacked by packed bytes of one member; pictures, packed already, have about 1."""
_FREE_TO_PACK = 1_000_000
_MAX_DIRECTORY = 512 * MAX_MEMBERS
_CHUNK = 1 << 20
_READ_AGAIN = 2_000_000_000
"""Bytes of unpacked files that are compared with their checksums at every start: seconds."""
_KINDS = frozenset((*PICTURES, *CAPTIONS, *(Path(name).suffix for name in TABLES)))
_ARCHIVES = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst .jar".split())
_JUNK = re.compile(r"(^|/)(__MACOSX/|\.|Thumbs\.db$|desktop\.ini$)")
# Names that mean something else on Windows, and characters that no name should have.
_ODD_PART = re.compile(
    r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|.*[. ]|.*[:\x00-\x1f\x7f].*|.{241,}",
    re.IGNORECASE | re.DOTALL,
)
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, struct.error)


def unpack(
    archive: Path,
    into: Path,
    *,
    max_bytes: int = MAX_BYTES,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Problem, ...]:
    """Unpacks the pictures, captions and tables of `archive` into the new folder `into`.

    The folder is there whole or not at all; after `should_stop()` it is not there. The problems
    tell of every member that was left out. Raises RequestError for an archive that cannot be used,
    SaveError where the disk refuses.
    """
    shown = printable(archive.name)
    if into.exists():
        raise RequestError("data", f"The folder {into} is there already.", "Choose another name.")
    part = drafts.beside(into)
    problems: list[Problem] = []
    try:
        _refuse_many(archive, shown)
        with zipfile.ZipFile(archive) as opened:
            members = _chosen(opened, problems)
            into.parent.mkdir(parents=True, exist_ok=True)
            drafts.sweep(into.parent)
            _check_size(members, min(max_bytes, shutil.disk_usage(into.parent).free), shown)
            part.mkdir()
            for name, member in members.items():
                if should_stop():
                    return tuple(problems)
                if problem := _extract(opened, member, part / name):
                    problems.append(problem)
        part.rename(into)
    except _DAMAGE as error:
        raise RequestError(
            "data",
            f"“{shown}” is no archive that can be read ({printable(error, 80)}).",
            "Use a .zip file, or unpack it yourself and choose the folder.",
        ) from None
    except OSError as error:
        if error.filename == str(archive):
            raise RequestError("data", f"“{shown}” cannot be read ({error.strerror}).") from None
        raise SaveError(
            f"The archive cannot be unpacked into {into} ({error.strerror}).",
            "Free some space or choose another folder.",
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return tuple(problems)


def _refuse_many(archive: Path, shown: str) -> None:
    """Counts the members before zipfile makes an object of each. Raises RequestError."""
    with open(archive, "rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - 66_000))
        tail = stream.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise zipfile.BadZipFile("its end is missing")
        size = int.from_bytes(tail[at + 12 : at + 16], "little")
        # Large archives have a second, wider end of 56 bytes and a pointer of 20 bytes before it.
        if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07":
            at -= 76
            size = int.from_bytes(tail[at + 40 : at + 48], "little")
        where = end - len(tail) + at - size
        stream.seek(max(0, where))
        directory = stream.read(min(size, _MAX_DIRECTORY))
    if size > _MAX_DIRECTORY or directory.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise RequestError(
            "data",
            f"“{shown}” has more than {MAX_MEMBERS:,} files.",
            "Unpack it yourself and choose the folder.",
        )


def _chosen(opened: zipfile.ZipFile, problems: list[Problem]) -> dict[str, zipfile.ZipInfo]:
    """The members to unpack by their safe names; the others become problems."""
    chosen: dict[str, zipfile.ZipInfo] = {}
    taken: dict[str, str] = {}
    for member in opened.infolist():
        name = member.orig_filename.replace("\\", "/")
        if name.endswith("/") or (is_inside(name) and _JUNK.search(name)):
            continue
        code, what = _refusal(member, name)
        key = unicodedata.normalize("NFC", name).casefold()
        if not code and key in taken:
            code = "same-name"
            what = f"has the name of “{printable(taken[key])}” but for its case"
        if code:
            problems.append(_problem(name, code, what))
        else:
            taken[key] = name
            chosen[name] = member
    return chosen


def _refusal(member: zipfile.ZipInfo, name: str) -> tuple[str, str]:
    """Why `member` is left out, as a code and the end of a sentence; ("", "") if it is not."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    suffix = Path(name).suffix.lower()
    if not is_inside(name):
        return "outside", "would be written outside the folder"
    if kind not in (0, stat.S_IFREG):
        return "special", "is a link or a device and no ordinary file"
    if any(_ODD_PART.fullmatch(part) for part in name.split("/")):
        return "name", "has a name that is not safe on every system"
    if suffix in _ARCHIVES:
        return "nested", "is an archive inside the archive"
    if suffix not in _KINDS:
        return "left-out", "is neither a picture nor a caption"
    if member.flag_bits & 1:
        return "encrypted", "is encrypted"
    if member.file_size > max(_FREE_TO_PACK, MAX_RATIO * member.compress_size):
        return "bomb", f"would grow more than {MAX_RATIO} times when unpacked"
    return "", ""


def _check_size(members: dict[str, zipfile.ZipInfo], limit: int, shown: str) -> None:
    total = sum(member.file_size for member in members.values())
    if total > limit:
        raise RequestError(
            "data",
            f"“{shown}” would need {total / 1e9:.1f} GB; {limit / 1e9:.1f} GB may be used.",
            "Free some space, or unpack it yourself and choose the folder.",
        )
    if not members:
        raise RequestError(
            "data", f"There is no picture in “{shown}”.", "It must hold PNG, JPEG or WebP files."
        )


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Problem | None:
    """Writes one member; never more bytes than it announced, which were counted."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as packed, open(target, "xb") as out:
            left = member.file_size
            while left > 0 and (chunk := packed.read(min(_CHUNK, left))):
                out.write(chunk)
                left -= len(chunk)
            # Reading to the end compares the checksum.
            if left or packed.read(1):
                raise zipfile.BadZipFile("its length is not what it says")
    except (*_DAMAGE, RuntimeError) as error:
        target.unlink(missing_ok=True)
        return _problem(member.orig_filename, "unreadable", f"is damaged ({printable(error, 80)})")
    except OSError as error:
        # The name of a file may be that of another one's folder; a full disk ends it all.
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise
        return _problem(member.orig_filename, "name", f"cannot be written ({error.strerror})")
    return None


def _problem(name: str, code: str, what: str) -> Problem:
    path = name.encode(errors="replace").decode()
    return Problem(path=path, code=code, sentence=f"“{printable(name)}” {what}.", rejected=True)


def kept(
    archive: Path, folder: Path, should_stop: Callable[[], bool] = lambda: False
) -> tuple[Path, tuple[Problem, ...]]:
    """The unpacked `archive` below `folder`, unpacked once; the problems of this time.

    Where a file is lost or damaged since, all are unpacked again.

    After `should_stop()` the folder that is returned is not there. Raises RequestError, SaveError.
    """
    try:
        stat = archive.stat()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            "data", f"“{printable(archive.name)}” cannot be unpacked ({error.strerror})."
        ) from None
    words = f"{archive.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    into = folder / hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:16]
    drafts.sweep(folder)
    if into.exists():
        if _is_as_unpacked(archive, into):
            return into, ()
        shutil.rmtree(into, ignore_errors=True)
    return into, unpack(archive, into, should_stop=should_stop)


def _is_as_unpacked(archive: Path, into: Path) -> bool:
    """Whether the files in `into` are those of `archive`: by their checksums, very many by size."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _chosen(opened, [])
            deep = sum(member.file_size for member in members.values()) <= _READ_AGAIN
            return all(
                _is_same(opened, member, into / name, deep=deep) for name, member in members.items()
            )
    except (*_DAMAGE, OSError):
        # Nothing can be unpacked from it any more; what is there is all that there is.
        return True


def _is_same(opened: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path, *, deep: bool) -> bool:
    try:
        if file.stat().st_size != member.file_size:
            return False
        if not deep:
            return True
        crc = 0
        with open(file, "rb") as stream:
            while block := stream.read(_CHUNK):
                crc = zlib.crc32(block, crc)
        return crc == member.CRC
    except OSError:
        return not _can_be_read(opened, member)


def _can_be_read(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a file that is not there could be unpacked at all."""
    try:
        with opened.open(member) as packed:
            while packed.read(_CHUNK):
                continue
    except (*_DAMAGE, RuntimeError, OSError):
        return False
    return True
