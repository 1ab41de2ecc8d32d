"""What a run reads: its pictures, checked and in buckets, its frozen nets, its features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from transformers import T5EncoderModel

from pipelines.catalog import ModelSpec
from pipelines.errors import ModelError, OutOfMemoryError, RequestError, printable
from pipelines.memory.probe import has_bf16
from pipelines.models import loader
from pipelines.models.loaded import ENCODERS
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.sizes import Size, bins, nearest
from pipelines.text import text_loader
from pipelines.text.tokens import tokenize
from training.bases import Base
from training.config import RunConfig
from training.data import archives, features, lint, manifest, text_plan
from training.data.buckets import Bucket, assign, sentences
from training.data.features import FeatureStore, Precision
from training.data.manifest import Manifest, Sample
from training.data.split import split
from training.loop.devices import lent

_DEFAULT_SIDE = 512
_BEGUN: tuple[Precision, ...] = ("bf16", "fp32")


class Stopped(Exception):
    """The person asked to stop while data were prepared; what was computed is kept."""


class Sources:
    """Everything that one run reads.

    `folder` is the data folder of the command line, `cache` a folder for lists and features,
    `bases` says where frozen and starting nets lie, by name ("vae", "text", "transformer").
    `tell` gets what a person should read before the training: problems, and what is cut off.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        folder: Path,
        cache: Path,
        bases: Mapping[str, Base],
        report: Report,
        tell: Callable[[str], None],
        should_stop: ShouldStop,
    ) -> None:
        self.config = config
        self._folder, self.cache, self._bases = folder, cache, dict(bases)
        self.tell = tell
        self.report, self.should_stop = report, should_stop
        self._manifest: Manifest | None = None

    def base(self, name: str) -> Base | None:
        """Where the parts of a net lie, or None where the recipe names none."""
        return self._bases.get(name)

    # --- pictures -----------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The pictures that passed the check. Raises RequestError where none is left."""
        if self._manifest is None:
            self._manifest = self._read()
        return self._manifest

    def _read(self) -> Manifest:
        config = self.config.data
        source = (self._folder / config.source).resolve()
        if source.suffix.lower() == ".zip":
            source = self._unpacked(source)
        rules = lint.PictureRules(
            min_side=config.min_side,
            max_ratio=config.max_ratio,
            captions_required=self.config.row.data == "captions",
            near_duplicates=False,
            **self._token_rules(),
        )
        file = self.cache / "manifests" / f"{_digest(source, rules)}.jsonl"
        found = _kept(file)
        if found is None:
            found = lint.scan(source, rules, self._scanning, self.should_stop)
            if not found.complete:
                raise Stopped
            file.parent.mkdir(parents=True, exist_ok=True)
            found.write(file)
        lines = lint.table(found)
        if lines:
            self.tell(lint.as_text(lines))
            self.tell(f"{len(found.samples):,} pictures are used; the full list is in {file}.")
        if config.limit is not None:
            kept = sorted(found.samples, key=lambda s: s.id)[: config.limit]
            found = Manifest(root=found.root, samples=tuple(kept), problems=found.problems)
        if not found.samples:
            raise RequestError(
                "data",
                f"No picture in {printable(source, 200)} can be used.",
                f"The list of reasons is in {file}.",
            )
        return found

    def _token_rules(self) -> dict[str, Any]:
        """How captions are counted, where there is a tokenizer already."""
        if "text" not in self.config.row.frozen:
            return {}
        model = self.text_row
        return {
            "token_limit": model.tokens,
            "count_tokens": lambda caption: tokenize(caption, model).used,
        }

    def _scanning(self, done: int, total: int) -> None:
        self.report(Progress(stage=Stage.SCANNING, done=done, total=total))

    def _unpacked(self, archive: Path) -> Path:
        into, problems = archives.kept(archive, self.cache / "archives", self.should_stop)
        for problem in problems:
            self.tell(problem.sentence)
        if not into.exists():
            raise Stopped
        return into

    def buckets(
        self, usable: Callable[[Sample], bool] = lambda _: True
    ) -> tuple[list[Bucket], list[Bucket]]:
        """(learning, held out) in the same sizes, of the samples that are `usable`."""
        config = self.config
        learning, held = split(self.manifest, config.data.held_out, config.seed)
        learning = [s for s in learning if usable(s)]
        if not learning:
            raise RequestError("data", "No picture has what this training needs.")
        buckets = assign(learning, self._table(), minimum=config.batch)
        sizes = [bucket.size for bucket in buckets]
        if config.data.bins is not None:
            self.tell("\n".join(sentences(buckets)))
        others = [s for s in held if usable(s)]
        return buckets, assign(others, sizes, minimum=1) if others else []

    @property
    def _changes_a_model(self) -> bool:
        """Whether a model learns a little more: then at the sizes and lengths that it paints."""
        return self.config.row.goes_on_from in self.config.row.frozen

    @property
    def square(self) -> Size:
        """The size that positions and samples count from: the squarest of the recipe's."""
        return nearest(Size(1, 1), self._table())

    def _table(self) -> Sequence[Size]:
        config = self.config.data
        name = config.bins
        if name is None and config.side is None and self._changes_a_model:
            name = self._needed(self.config.row.goes_on_from).bins
        if name:
            try:
                return bins(name)
            except KeyError:
                raise RequestError(
                    "data.bins", f"There is no table of sizes called “{printable(name)}”."
                ) from None
        side = config.side or _DEFAULT_SIDE
        return (Size(side, side),)

    # --- frozen nets --------------------------------------------------------------------------

    def vae(self) -> AutoencoderKL:
        """The VAE of the recipe, in fp32. Raises RequestError, ModelError."""
        net: AutoencoderKL = self._part("vae", "vae")
        return net

    def transformer(self, dtype: torch.dtype) -> PixArtTransformer2DModel:
        """The transformer of the base, read in `dtype`. Raises RequestError, ModelError."""
        net: PixArtTransformer2DModel = self._part("transformer", "transformer", dtype)
        return net

    def unfilled_transformer(self) -> PixArtTransformer2DModel:
        """The same without its numbers. Raises RequestError, ModelError."""
        with self._faults("transformer"):
            net: PixArtTransformer2DModel = loader.unfilled(
                self._spec("transformer"), "transformer"
            )
            return net

    @property
    def text_row(self) -> ModelSpec:
        """The row that the frozen text encoder and its tokenizer are read with."""
        return self._spec("text")

    def text_encoder(self) -> T5EncoderModel:
        """The text encoder of the recipe, in fp32. Raises ModelError, RequestError."""
        net: T5EncoderModel = self._part("text", "text_encoder")
        return net

    def _part(self, name: str, part: str, dtype: torch.dtype = torch.float32) -> Any:
        """A part of the base `name`, in main memory."""
        with self._faults(name):
            return loader.part(self._spec(name), part, dtype)

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        """A fault of a base is told with its folder: it need not be a model of the catalog."""
        try:
            yield
        except ModelError as error:
            raise ModelError(
                f"The base.{name} in {self._needed(name).folder} cannot be loaded: {error.message}",
                f"Check base.{name} of the recipe.",
            ) from error

    def _spec(self, name: str) -> ModelSpec:
        base = self._needed(name)
        return ModelSpec(
            id="training",
            title="training",
            summary="",
            folder=base.folder,
            places=base.places,
            cleaning=base.cleaning,
            licence="",
            tokens=(base.tokens if self._changes_a_model else 0) or self.config.data.tokens,
            bins="128",
            size="128x128",
            max_side=4096,
        )

    def _needed(self, name: str) -> Base:
        base = self.base(name)
        if base is None:
            raise RequestError(
                f"base.{name}",
                f"The recipe names no {name} to start from.",
                f"Set base.{name} to a folder in diffusers layout, to stage:NAME or to model:ID.",
            )
        return base

    # --- features -----------------------------------------------------------------------------

    def latents(self, vae: AutoencoderKL, buckets: Sequence[Bucket]) -> FeatureStore:
        """The latents of all pictures of `buckets`; what is missing is computed."""
        digest = features.weights_digest(self._needed("vae").part("vae"))
        precision = self._latent_precision(digest)
        store = self.store(f"latents-{features.latents_id(digest, precision)}")
        with lent(vae, _device()):
            done = features.add_latents(
                store,
                vae,
                self.manifest,
                buckets,
                precision=precision,
                report=self.report,
                should_stop=self.should_stop,
            )
        if not done:
            raise Stopped
        return store

    def _latent_precision(self, digest: str) -> Precision:
        """bf16 where the recipe says so and the device multiplies it itself, else fp32.

        A set that was begun goes on as it is, also on another machine: a training that has read it
        must find the same numbers again. bf16 is looked for first, because beside it another stage
        may have made one in fp32, while no stage in bf16 makes one where fp32 is there.
        """
        if self.config.precision != "bf16":
            return "fp32"
        for begun in _BEGUN:
            name = f"latents-{features.latents_id(digest, begun)}"
            if (self.cache / "features" / name).is_dir():
                return begun
        return "bf16" if has_bf16(_device().type) else "fp32"

    def store(self, name: str) -> FeatureStore:
        """Features that were kept under `name`, by this training or another one."""
        store = FeatureStore(self.cache / "features" / name)
        if store.damaged:
            self.tell(
                f"{store.damaged} files of features were damaged and are computed again; look after"
                " the disk."
            )
        return store

    def _text_encoder_for_features(self) -> tuple[T5EncoderModel, torch.device]:
        """The frozen text encoder as it fits into this machine, and where it takes tokens."""
        model, device = self.text_row, _device()
        with self._faults("text"):
            made = text_plan.make(model, self.config.text_precision, device, _free(device))
            if made.told is not None:
                self.tell(made.told)
            try:
                net = text_loader.load(model, made.plan, self.cache / ENCODERS)
            except OutOfMemoryError as error:
                raise OutOfMemoryError(
                    error.message,
                    "Close other programs, or set text_precision = “bf16” or “int8” in the recipe.",
                ) from None
        return net, text_loader.device(made.plan)

    def texts(self, captions: Iterable[str]) -> FeatureStore:
        """The text features of all `captions`; the encoder is loaded only if some are missing."""
        model = self.text_row
        store = self.store(f"text-{features.texts_id(model, self.config.text_precision)}")
        done = features.add_texts(
            store,
            self._text_encoder_for_features,
            model,
            captions,
            report=self.report,
            should_stop=self.should_stop,
        )
        if not done:
            raise Stopped
        return store


def _kept(file: Path) -> Manifest | None:
    """The list of an earlier start; None where it is not there or damaged."""
    if not file.exists():
        return None
    try:
        return manifest.read(file)
    except RequestError:
        return None


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _free(device: torch.device) -> int:
    """Bytes of a GPU that a net can have: free ones, and those that torch keeps in hand."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)


def _digest(source: Path, rules: lint.PictureRules | None) -> str:
    """Changes with the names, sizes and times of the files below `source`."""
    # Not the function that counts tokens: its address changes with every start.
    words = replace(rules, count_tokens=None) if rules is not None else None
    digest = hashlib.sha256(f"{source}\n{words}".encode())
    # A list names pictures beside it, so those count as well.
    alone = source.is_file() and source.suffix.lower() == ".zip"
    below = source if source.is_dir() else source.parent
    files = [source] if alone else [source, *sorted(below.rglob("*"))]
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        digest.update(f"{file}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:16]
