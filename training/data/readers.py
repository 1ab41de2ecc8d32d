"""Pictures and what is written about them, in the folder layouts that people have.

Only the names are looked at here; pictures are decoded by `lint`. Nothing is ever changed. Files
and folders whose names begin with a dot are passed over.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from pipelines.errors import RequestError, printable
from training.data import tables
from training.data.manifest import Problem, is_inside, refusal
from training.data.tables import CaptionError, TableLine, Written, merge

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp")
CAPTIONS = (".txt", ".caption", ".json")
"""Files beside a picture, with its stem: the first kind that is there counts."""
TABLES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
_LISTS = (".jsonl", ".json", ".csv")
_OTHER_PICTURES = frozenset(
    ".gif .svg .tif .tiff .bmp .heic .heif .avif .psd .ico .jxl .eps .tga .dng .cr2 .nef"
    " .mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .wmv".split()
)
_WAY_OUT = "Choose a folder with PNG, JPEG or WebP pictures."
_INTERN, _SAM = "InternData", "SA1B"
_NOTHING = Written()


class DataLayout(StrEnum):
    """How pictures and captions lie on the disk; the value is the word shown to people."""

    FOLDER = "a folder of pictures, each with its caption beside it"
    TABLE = "a folder of pictures with a table of captions"
    CLASSES = "a folder for each class"
    LIST = "a list of pictures"
    INTERN = "InternData"
    SAM = "SA1B"


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureEntry:
    """A picture that was found. Paths are relative to the source's root, with slashes.

    `written` comes from a table; `caption_file` is still to be read, by `read`.
    """

    path: str
    written: Written = _NOTHING
    caption_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """What was found below `root` (absolute, without links), by path."""

    root: Path
    layout: DataLayout
    entries: tuple[PictureEntry, ...]
    problems: tuple[Problem, ...]


def find(source: Path, layout: DataLayout | None = None) -> DataSource:
    """Every picture of the folder or list `source`, in the order of their paths.

    Raises RequestError where nothing can be read or there is no picture at all.
    """
    root = _root(source)
    problems: list[Problem] = []
    with _told(root):
        layout = layout or _by_place(root)
        if layout is DataLayout.LIST:
            entries = _from_list(root, problems)
        elif layout is DataLayout.INTERN:
            entries = _from_intern(root, problems)
        elif layout is DataLayout.SAM:
            entries = _from_sam(root, problems)
        else:
            names = _walk(root, problems)
            layout = layout or _by_names(names)
            entries = _from_names(root, names, layout, problems)
    if not entries and not problems:
        raise RequestError("data", f"There is no picture in “{printable(root, 200)}”.", _WAY_OUT)
    return DataSource(
        root=root.parent if layout is DataLayout.LIST else root,
        layout=layout,
        entries=tuple(sorted(entries, key=lambda entry: entry.path)),
        problems=tuple(problems),
    )


def read(root: Path, entry: PictureEntry) -> Written:
    """All that is written about `entry`. Raises CaptionError where its file cannot be used."""
    if entry.caption_file is None:
        return entry.written
    if why := refusal(root, entry.caption_file):
        raise CaptionError(why, f"Its caption file {_REFUSALS[why]}.")
    return merge(entry.written, tables.from_file(root / entry.caption_file))


_REFUSALS = {"outside": "lies outside the folder", "missing": "is not there"}


def _root(source: Path) -> Path:
    try:
        root = source.resolve()
        str(root).encode()
        known = root.is_dir() or (root.is_file() and root.suffix.lower() in _LISTS)
    except (OSError, RuntimeError, ValueError):
        known = False
    if not known:
        zipped = source.suffix.lower() == ".zip"
        raise RequestError(
            "data",
            f"“{printable(source, 200)}” is neither a folder nor a list of pictures.",
            "Unpack the archive first." if zipped else _WAY_OUT,
        )
    return root


@contextmanager
def _told(root: Path) -> Iterator[None]:
    """Tells what the system says of the whole source in one sentence."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            "data",
            f"“{printable(error.filename or root, 200)}” cannot be read ({error.strerror}).",
            "Allow this program to read it.",
        ) from None


def _by_place(root: Path) -> DataLayout | None:
    """The layouts that are told by names of folders or by being no folder."""
    if root.is_file():
        return DataLayout.LIST
    if _intern_lists(root):
        return DataLayout.INTERN
    return DataLayout.SAM if _sam_base(root) is not None else None


def _by_names(names: list[str]) -> DataLayout:
    if any(posixpath.basename(name).lower() in TABLES for name in names):
        return DataLayout.TABLE
    pictures = [name for name in names if _suffix(name) in PICTURES]
    beside = _beside(names)
    if any(_stem(name) in beside for name in pictures):
        return DataLayout.FOLDER
    in_folders = bool(pictures) and all("/" in name for name in pictures)
    return DataLayout.CLASSES if in_folders else DataLayout.FOLDER


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _beside(names: list[str]) -> dict[str, str]:
    """The caption file of each stem that has one."""
    found: dict[str, str] = {}
    for kind in reversed(CAPTIONS):
        found.update((_stem(name), name) for name in names if _suffix(name) == kind)
    return found


def _walk(root: Path, problems: list[Problem], below: str = "") -> list[str]:
    """Paths of the regular files below `root / below`, sorted; problems of the rest are added."""
    names: list[str] = []
    folders = [below]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as listing:
                items = [item for item in listing if not item.name.startswith(".")]
        except OSError as error:
            if folder == below:
                raise
            problems.append(_problem(folder, "unreadable", f"cannot be read ({error.strerror})"))
            continue
        for item in items:
            name = f"{folder}/{item.name}" if folder else item.name
            try:
                if item.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif problem := _not_usable(root, item, name):
                    problems.append(problem)
                elif item.is_file():
                    names.append(name)
            except OSError as error:
                problems.append(_problem(name, "unreadable", f"cannot be read ({error.strerror})"))
    return sorted(names)


def _not_usable(root: Path, item: os.DirEntry[str], name: str) -> Problem | None:
    """What is wrong with the name or the kind of a file that would be used."""
    suffix = _suffix(name)
    if suffix in _OTHER_PICTURES:
        return _problem(name, "unsupported", "is of a kind that is not read")
    is_folder = item.is_dir()
    if suffix not in (*PICTURES, *CAPTIONS, *_LISTS) and not is_folder:
        return None
    if item.is_symlink():
        why = refusal(root, name)
        if why and (why == "outside" or not is_folder):
            return _problem(name, why, f"is a link that {_LINKS[why]}")
    if not is_inside(name) or not _is_unicode(name):
        return _problem(name, "name", "has a name that is not safe on every system")
    if is_folder or item.is_file():
        return None
    return _problem(name, "unreadable", "is no ordinary file")


_LINKS = {"outside": "leads out of the folder", "missing": "leads nowhere"}


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(name: str, code: str, what: str, *, rejected: bool = True) -> Problem:
    path = name.encode(errors="replace").decode()
    return Problem(path=path, code=code, sentence=f"“{printable(name)}” {what}.", rejected=rejected)


def _from_names(
    root: Path, names: list[str], layout: DataLayout, problems: list[Problem]
) -> list[PictureEntry]:
    """The pictures among `names` with the captions of tables, of files beside them, or a label."""
    written: dict[str, Written] = {}
    pictures = [name for name in names if _suffix(name) in PICTURES]
    if layout is DataLayout.TABLE:
        for name in names:
            if posixpath.basename(name).lower() in TABLES:
                folder = PurePosixPath(name).parent.as_posix()
                _add_rows(root, name, "" if folder == "." else folder, written, problems)
    beside = {} if layout is DataLayout.CLASSES else _beside(names)
    entries = []
    for name in dict.fromkeys((*pictures, *written)):
        if _suffix(name) in _OTHER_PICTURES:
            continue
        of_table = written.get(name, _NOTHING)
        if layout is DataLayout.CLASSES:
            of_table = Written(label=PurePosixPath(name).parent.name or None)
        beside_it = None if of_table.captions else beside.get(_stem(name))
        entries.append(PictureEntry(path=name, written=of_table, caption_file=beside_it))
    return entries


def _add_rows(
    root: Path, table: str, folder: str, written: dict[str, Written], problems: list[Problem]
) -> None:
    """Adds what the table at `table` says of pictures below `folder` to `written`."""
    for row in tables.rows(root / table, table):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        path = _path_of(root, row, folder)
        if why := refusal(root, path):
            what = f"names “{printable(row.name)}” in line {row.line}, which {_REFUSALS[why]}"
            problems.append(_problem(table, why, what))
        elif not _is_unicode(path):
            problems.append(_problem(table, "name", f"names a file in line {row.line} oddly"))
        else:
            written[path] = merge(written.get(path, _NOTHING), row.written)


def _path_of(root: Path, row: TableLine, folder: str) -> str:
    """The path that a table means, relative to `root`; an absolute one inside it is made so."""
    # Tables made on Windows are read everywhere.
    name = row.name.replace("\\", "/")
    if name.startswith(f"{root.as_posix()}/"):
        return name[len(root.as_posix()) + 1 :]
    if name.startswith("/"):
        return name
    return (PurePosixPath(folder) / name).as_posix()


def _from_list(file: Path, problems: list[Problem]) -> list[PictureEntry]:
    written: dict[str, Written] = {}
    _add_rows(file.parent, file.name, "", written, problems)
    return [PictureEntry(path=path, written=found) for path, found in written.items()]


def _intern_lists(root: Path) -> list[Path]:
    """The lists of a folder laid out as PixArt's InternData, as they are named in the wild."""
    for base in (root / _INTERN, root):
        if _images_of(root, base) is not None:
            lists = sorted(base.glob("partition*/*.json")) or [base / "data_info.json"]
            if found := [file for file in lists if file.is_file()]:
                return found
    return []


def _images_of(root: Path, base: Path) -> Path | None:
    places = (base / "InternImgs", root / "InternImgs")
    return next((place for place in places if place.is_dir()), None)


def _from_intern(root: Path, problems: list[Problem]) -> list[PictureEntry]:
    """Entries of data_info.json: path, prompt, height, width, ratio and perhaps sharegpt4v."""
    written: dict[str, Written] = {}
    base = root / _INTERN if (root / _INTERN).is_dir() else root
    images = _images_of(root, base) or root
    for file in _intern_lists(root):
        name = file.relative_to(root).as_posix()
        if why := refusal(root, name):
            problems.append(_problem(name, why, _REFUSALS[why]))
        else:
            _add_rows(root, name, images.relative_to(root).as_posix(), written, problems)
    return [PictureEntry(path=path, written=found) for path, found in written.items()]


def _sam_base(root: Path) -> Path | None:
    return next(
        (b for b in (root / _SAM, root) if (b / "images").is_dir() and (b / "captions").is_dir()),
        None,
    )


def _from_sam(root: Path, problems: list[Problem]) -> list[PictureEntry]:
    """images/NAME.jpg with captions/NAME.txt; partition/part*.txt choose the names, if there."""
    base = _sam_base(root) or root
    folder = base.relative_to(root).as_posix()
    prefix = "" if folder == "." else f"{folder}/"
    images = _walk(root, problems, f"{prefix}images")
    by_stem = defaultdict(list)
    for image in images:
        if _suffix(image) in PICTURES:
            by_stem[_stem(image).removeprefix(f"{prefix}images/")].append(image)
    parts = sorted(base.glob("partition/part*.txt"))
    wanted = list(_part_names(root, parts, problems)) if parts else list(by_stem)
    entries = []
    for name in dict.fromkeys(wanted):
        stem = _stem(name) if _suffix(name) in PICTURES else name
        if stem not in by_stem:
            problems.append(_problem(name, "missing", "is named by a partition and is not there"))
        for image in by_stem.get(stem, []):
            caption = f"{prefix}captions/{stem}.txt"
            there = refusal(root, caption) != "missing"
            entries.append(PictureEntry(path=image, caption_file=caption if there else None))
    return entries


def _part_names(root: Path, parts: list[Path], problems: list[Problem]) -> Iterator[str]:
    for file in parts:
        name = file.relative_to(root).as_posix()
        if why := refusal(root, name):
            problems.append(_problem(name, why, _REFUSALS[why]))
            continue
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            while line := stream.readline(4096):
                if line.strip():
                    yield line.strip()
