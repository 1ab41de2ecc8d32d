"""A training that is being prepared: its photos, their captions and crops, and what was filled in.

It lies in a folder of its own until somebody takes it away, so a reload, or a studio that was
started again, finds it as it was. A run that is begun from it gets photos of its own.

trainings/ID/preparation.json
trainings/ID/originals/0001.jpg   as they came, upright or not
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.settings import make_folder
from lora_manager import drafts
from pipelines import files, pictures
from pipelines.errors import RequestError, SaveError, printable
from training import recipes
from training.data import archives, lint, tables
from training.data.manifest import Manifest
from training.data.readers import CAPTIONS, PICTURES

Kind = Literal["subject", "style", "scratch"]
RECIPES: dict[str, str] = {"subject": "dreambooth", "style": "lora-style", "scratch": "nano"}
"""The recipe that each kind begins with."""
MOST_PHOTOS = 1000
MOST_CAPTION = 4000
THUMB = 320
_ID = re.compile(r"[0-9a-f]{12}")
_FILE = re.compile(r"[0-9]{4}\.(png|jpg|webp)")
_MOST_BYTES = 5_000_000
_TEXTS = (".txt", ".caption")
_FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_MAGIC = {".png": (0, b"\x89PNG"), ".jpg": (0, b"\xff\xd8\xff"), ".webp": (8, b"WEBP")}
_WAY_OUT = "Drop PNG, JPEG or WebP pictures, or a .zip of them."
_Text = Annotated[str, StringConstraints(max_length=200)]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Crop(_Kept):
    """The part of a photo that is trained on: its centre, as shares of width and height, and how
    much closer than the whole."""

    x: float = Field(default=0.5, ge=0, le=1)
    y: float = Field(default=0.5, ge=0, le=1)
    zoom: float = Field(default=1.0, ge=1, le=8)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part in pixels, within the picture."""
        wide, high = round(width / self.zoom), round(height / self.zoom)
        left = min(max(0, round(self.x * width - wide / 2)), width - wide)
        top = min(max(0, round(self.y * height - high / 2)), height - high)
        return left, top, left + wide, top + high


class Photo(_Kept):
    """A photo that was brought. `title` is the name that it came with; sizes are in pixels, as it
    is seen, turned upright. `notes` say what is odd about it."""

    file: str = Field(pattern=f"^{_FILE.pattern}$")
    title: _Text
    digest: _Text
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    caption: str = Field(default="", max_length=MOST_CAPTION)
    crop: Crop | None = None
    notes: tuple[str, ...] = ()


class Preparation(_Kept):
    """What was filled in so far. `settings` are keys of the recipe with what was typed for them;
    `left_out` says why files were not taken; `runs` are the trainings that were begun from it."""

    id: str = Field(pattern=f"^{_ID.pattern}$")
    kind: Kind = "subject"
    base: _Text = ""
    word: _Text = "sks"
    subject: _Text = ""
    template: str = Field(default="a photo of {subject}", max_length=400)
    trigger: _Text = ""
    name: _Text = ""
    recipe: _Text = ""
    data: str = Field(default="", max_length=4096)
    settings: dict[str, str] = Field(default_factory=dict)
    photos: tuple[Photo, ...] = ()
    left_out: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How it is listed."""
        return self.name or f"{self.word} {self.subject}".strip() or self.id

    @property
    def caption(self) -> str:
        """The caption of a photo that has none of its own; "" where every photo needs its own."""
        if self.kind != "subject":
            return ""
        return self.template.replace("{subject}", f"{self.word} {self.subject}".strip())

    def photo(self, file: str) -> Photo:
        """The photo `file`. Raises RequestError."""
        for one in self.photos:
            if one.file == file:
                return one
        raise RequestError("photo", "This photo is not there any more.")

    def with_photo(self, changed: Photo) -> Preparation:
        """The same with another state of one photo."""
        kept = [changed if one.file == changed.file else one for one in self.photos]
        return self.model_copy(update={"photos": tuple(kept)})


class Preparations:
    """The preparations of one studio, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.changing = threading.RLock()
        """Held from reading one to keeping what was changed of it: photos come one by one while
        others, and other browser tabs, change the rest."""

    def new(self, kind: Kind, base: str = "") -> Preparation:
        """Begins one. Raises SaveError."""
        return self.save(Preparation(id=secrets.token_hex(6), kind=kind, base=base))

    def get(self, name: str) -> Preparation:
        """The one called `name`. Raises RequestError where it is not there, or damaged."""
        file = self._folder(name) / "preparation.json"
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise RequestError("training", f"{file} is too large.")
            return Preparation.model_validate_json(file.read_bytes())
        except OSError:
            raise RequestError("training", "This preparation is not there any more.") from None
        except ValidationError as error:
            reason = printable(error.errors()[0]["msg"], 80)
            raise RequestError("training", f"{file} is damaged ({reason}).") from None

    def all(self) -> list[Preparation]:
        """Every one that can be read, the newest first."""
        found: list[tuple[float, Preparation]] = []
        for file in self.root.glob("*/preparation.json"):
            try:
                found.append((file.stat().st_mtime, self.get(file.parent.name)))
            except (OSError, RequestError):
                continue
        return [one for _, one in sorted(found, key=lambda pair: -pair[0])]

    def save(self, changed: Preparation) -> Preparation:
        """Keeps it. Raises SaveError."""
        folder = make_folder(self.root / changed.id)
        with writing(folder):
            files.write(folder / "preparation.json", changed.model_dump_json(indent=1).encode())
        return changed

    def change(self, made_id: str, /, **values: object) -> Preparation:
        """Keeps other values. Raises RequestError for those that cannot be, SaveError."""
        try:
            with self.changing:
                before = self.get(made_id)
                return self.save(Preparation.model_validate(before.model_dump() | values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RequestError(where, f"{where}: {printable(first['msg'], 120)}.") from None

    def remove(self, name: str) -> None:
        """Deletes it with its photos. Raises RequestError."""
        shutil.rmtree(self._folder(name), ignore_errors=True)

    def copy(self, name: str) -> Preparation:
        """Another one with the same photos and values. Raises RequestError, SaveError."""
        before = self.get(name)
        made = before.model_copy(update={"id": secrets.token_hex(6), "runs": (), "name": ""})
        folder = make_folder(self.root / made.id)
        with writing(folder):
            if (originals := self._folder(name) / "originals").is_dir():
                shutil.copytree(originals, folder / "originals")
        return self.save(made)

    def _folder(self, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise RequestError("training", "This is no name of a preparation.")
        return self.root / name

    # --- photos -------------------------------------------------------------------------------

    def add(
        self, name: str, title: str, file: Path, should_stop: Callable[[], bool] = lambda: False
    ) -> Preparation:
        """Takes a photo, or the photos and captions of a .zip or a folder; what cannot be used is
        said in `left_out`. The file itself is left as it is. Raises RequestError, SaveError."""
        self.get(name)
        folder = self._folder(name)
        # What a studio that was killed had begun to take.
        drafts.sweep(folder)
        if file.is_dir():
            return self._take(name, file, should_stop)
        if Path(title).suffix.lower() == ".zip":
            unpacked = drafts.beside(folder / "arrived")
            try:
                problems = archives.unpack(file, unpacked, should_stop=should_stop)
                said = [problem.sentence for problem in problems]
                return self._take(name, unpacked, should_stop, said)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
        if Path(title).suffix.lower() in _TEXTS:
            return self._caption(name, title, file)
        staged = make_folder(drafts.beside(folder / "arrived"))
        try:
            with writing(folder):
                shutil.copyfile(file, staged / _plain(title, file))
            return self._take(name, staged, should_stop)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _caption(self, name: str, title: str, file: Path) -> Preparation:
        """Takes the caption of a photo that came before it: browsers bring one file at a time."""
        shown = printable(Path(title).name, 80)
        try:
            texts = tables.from_file(file).captions
        except tables.CaptionError as error:
            raise RequestError("captions", f"“{shown}”: {error}") from None
        with self.changing:
            made = self.get(name)
            same = [one for one in made.photos if Path(one.title).stem == Path(title).stem]
            if not same:
                said = f"“{shown}” is the caption of no photo that is here."
                raise RequestError("captions", said, "Drop it together with its photo.")
            # Of two that are called so, from two folders, the one that has just come.
            photo = ([one for one in same if not one.caption] or same)[-1]
            text, notes = _caption(texts)
            changed = {"caption": text, "notes": (*photo.notes, *notes)}
            return self.save(made.with_photo(photo.model_copy(update=changed)))

    def _take(
        self, name: str, source: Path, stop: Callable[[], bool], said: Sequence[str] = ()
    ) -> Preparation:
        """Looks at everything in the folder `source` and keeps copies of what can be used; `said`
        was left out of it before."""
        try:
            found = lint.scan(source, lint.PictureRules(min_side=16), should_stop=stop)
        except RequestError as error:
            none = "no picture" in error.message
            why = " ".join([*said[:3], error.message, _WAY_OUT]) if none else str(error)
            raise RequestError("photos", why.replace(str(source), "what you dropped")) from None
        with self.changing:
            return self._kept(self.get(name), source, found, said)

    def _kept(
        self, made: Preparation, source: Path, found: Manifest, said: Sequence[str]
    ) -> Preparation:
        originals = make_folder(self.root / made.id / "originals")
        photos = list(made.photos)
        left_out = [*said, *(p.sentence for p in found.problems if p.rejected)]
        notes: dict[str, list[str]] = {}
        for problem in found.problems:
            if not problem.rejected and problem.code != "no-caption":
                notes.setdefault(problem.path, []).append(problem.sentence)
        known = {one.digest for one in photos}
        for sample in found.samples:
            if len(photos) >= MOST_PHOTOS:
                left_out.append(f"There are more than {MOST_PHOTOS:,} photos; the rest stays out.")
                break
            if sample.id in known:
                left_out.append(f"“{printable(sample.path)}” is there already.")
                continue
            data = (source / sample.path).read_bytes()
            number = 1 + max((int(one.file[:4]) for one in photos), default=0)
            with Image.open(BytesIO(data)) as opened:
                suffix = _FORMATS[opened.format or "PNG"]
            target = originals / f"{number:04d}.{suffix}"
            with writing(originals):
                files.write(target, data)
            caption, cut = _caption(sample.captions)
            photos.append(
                Photo(
                    file=target.name,
                    title=printable(Path(sample.path).name, 200),
                    digest=sample.id,
                    width=sample.width,
                    height=sample.height,
                    caption=caption,
                    notes=(*notes.get(sample.path, ()), *map(_noted, sample.notes), *cut),
                )
            )
        changed = {"photos": tuple(photos), "left_out": (*made.left_out, *left_out)[-50:]}
        return self.save(made.model_copy(update=changed))

    def drop(self, name: str, file: str) -> Preparation:
        """Takes a photo away. Raises RequestError, SaveError."""
        with self.changing:
            made = self.get(name)
            gone = made.photo(file)
            left = tuple(one for one in made.photos if one != gone)
            changed = self.save(made.model_copy(update={"photos": left}))
        (self._folder(name) / "originals" / file).unlink(missing_ok=True)
        return changed

    def picture(self, name: str, file: str) -> bytes:
        """A photo as it will be seen in the training, small, as WebP. Raises RequestError."""
        photo = self.get(name).photo(file)
        small = _cropped(self._read(name, photo), photo)
        small.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
        out = BytesIO()
        small.save(out, "WEBP", quality=84)
        return out.getvalue()

    def _read(self, name: str, photo: Photo) -> Image.Image:
        return pictures.load(self._folder(name) / "originals" / photo.file)

    def write(self, name: str, target: Path) -> None:
        """Writes what is trained on into the new folder `target`. Raises RequestError, SaveError.

        A run has photos of its own: later crops and captions must not change what it reads.
        """
        made = self.get(name)
        make_folder(target)
        with writing(target):
            for photo in made.photos:
                self._written(self._folder(name) / "originals", target, photo)

    def _written(self, originals: Path, target: Path, photo: Photo) -> None:
        stem, original = Path(photo.file).stem, originals / photo.file
        if photo.crop is None:
            shutil.copyfile(original, target / photo.file)
        else:
            # Cropping must not lose what a format would.
            cropped = pictures.png(_cropped(pictures.load(original), photo))
            files.write(target / f"{stem}.png", cropped)
        if caption := photo.caption.strip():
            files.write(target / f"{stem}.txt", (caption + "\n").encode())


def _cropped(picture: Image.Image, photo: Photo) -> Image.Image:
    return picture if photo.crop is None else picture.crop(photo.crop.box(*picture.size))


def _caption(texts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The caption that is kept of those that a photo has, and what is to be said of it."""
    text = texts[0] if texts else ""
    if len(text) <= MOST_CAPTION:
        return text, ()
    said = f"Its caption had {len(text):,} characters; the first {MOST_CAPTION:,} are kept."
    return text[:MOST_CAPTION], (said,)


def _noted(code: str) -> str:
    return lint.MEANINGS.get(code, code).capitalize() + "."


def _plain(title: str, file: Path) -> str:
    """A name for a file that came, whatever it was called; a picture ends as one."""
    stem, suffix = os.path.splitext(Path(title.replace("\\", "/")).name)
    with open(file, "rb") as stream:
        head = stream.read(12)
    if suffix.lower() not in (*PICTURES, *CAPTIONS):
        found = [kind for kind, (at, magic) in _MAGIC.items() if head[at:].startswith(magic)]
        suffix = found[0] if found else suffix
    stem = re.sub(r"[^\w .()-]+", "-", stem).strip(" .-")[:100]
    return f"{stem or 'photo'}{re.sub(r'[^a-z0-9.]', '', suffix.lower())[:8] or '.bin'}"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in a sentence that a folder cannot be written. Raises SaveError."""
    try:
        yield
    except OSError as error:
        reason = printable(error.strerror or error, 120)
        raise SaveError(
            f"{folder} cannot be written ({reason}).", "Free some space, or move it."
        ) from None


def recipe_names() -> list[str]:
    """The recipes that train a model from scratch."""
    found = []
    for name in recipes.names():
        last = recipes.read(recipes.find(name)).stages[-1]
        if last.row.verb == "text-to-image":
            found.append(name)
    return found
