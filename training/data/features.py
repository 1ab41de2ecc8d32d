"""Latents and text features, computed once and kept: what a training reads instead of pictures.

    features/latents-<id>/00000-<digest>.safetensors    "<sample>@<size>" -> (4, h, w) float16
    features/text-<id>/00000-<digest>.safetensors       "<caption>" -> (T, C) float16

<id> is decided by everything that the numbers depend on besides the sample: the weights of the VAE
or T5, precision, crop rule, cleaning and token limit. Latents are the mode of the posterior, not
scaled, computed in float32 or under autocast in bfloat16; text, in float32, has only its valid
tokens. A file is there whole or not at all, and its name is decided
by what is in it, so an interrupted run goes on and an edited picture can never meet old features.
The metadata of a file hold a hash of each tensor, which is compared whenever that one is read: a
disk that forgets, or a copy that went wrong, is noticed. Few enough are all read at the start, so
that damaged ones are computed again at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import T5EncoderModel

from pipelines import files, pictures
from pipelines.catalog import ModelSpec
from pipelines.denoising.latents import to_tensor
from pipelines.errors import TrainingError, printable
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.sizes import Size
from pipelines.text.prompt_files import text_key
from pipelines.text.tokens import tokenize
from training.data.buckets import Bucket, crop
from training.data.manifest import Manifest, Sample

FORMAT = 1
PRECISION = "float32, kept as float16"
CROP = "cover, lanczos, centre"
_PER_FILE = 512
Precision = Literal["fp32", "bf16"]
TextPrecision = Literal["fp32", "bf16", "int8", "nf4"]
_PRECISIONS: Mapping[Precision, str] = {"fp32": PRECISION, "bf16": "bfloat16, kept as float16"}
_TOGETHER = 16
_TOGETHER_AREA = _TOGETHER * 256 * 256
"""Pixels that the VAE encodes together: in float32, each of its widest tensors takes 0.5 GB."""
_PROCESSOR_AREA = 256 * 256
"""The same on a processor, where more leaves its caches: 16 pictures of 256 px together take
twice the time of one by one (docs/benchmarks.md)."""
_TEXTS_TOGETHER = 8 * _TOGETHER
_READ_AT_START = 2_000_000_000
"""Bytes of features that are compared with their hashes before a training begins: seconds."""
_T = TypeVar("_T")


def feature_id(**facts: Any) -> str:
    """12 hex digits that change with any of the facts."""
    text = json.dumps({"format": FORMAT, "precision": PRECISION, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def latents_id(vae: str, precision: Precision) -> str:
    """The id of latents by a VAE whose weights have the digest `vae`; never one for two precisions,
    and in float32 that of all earlier versions."""
    return feature_id(kind="latents", vae=vae, crop=CROP, precision=_PRECISIONS[precision])


def texts_id(model: ModelSpec, precision: TextPrecision) -> str:
    """The id of the text features by the T5 and the tokenizer of `model`, at its token limit.

    Never one for two precisions, and in fp32 that of all earlier versions: their features stay
    valid.
    """
    computed = PRECISION if precision == "fp32" else f"{precision}, kept as float16"
    return feature_id(
        kind="text",
        encoder=weights_digest(model.part("text_encoder")),
        tokenizer=weights_digest(model.part("tokenizer")),
        cleaning=model.cleaning,
        tokens=model.tokens,
        precision=computed,
    )


def weights_digest(folder: Path) -> str:
    """SHA-256 over the files of a model's part, by name."""
    digest = hashlib.sha256()
    # A tokenizer may be a lone vocabulary.
    for file in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if file.suffix in (".safetensors", ".json"):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def latent_key(sample: Sample, bucket: Bucket) -> str:
    """The name of a picture's latents at the size of its bucket."""
    return f"{sample.id}@{bucket.size}"


def caption_key(ids: Sequence[int]) -> str:
    """The name of a text by its tokens: captions that the encoder cannot tell apart share it."""
    return text_key(ids)[:24]


class FeatureStore:
    """The features in one folder, by name; tensors are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, Path] = {}
        self._open: dict[Path, tuple[Any, dict[str, str]]] = {}
        self.damaged = 0
        """How many files were thrown away because they are not as they were written."""
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.glob("*.safetensors"))
        compares = sum(file.stat().st_size for file in found) <= _READ_AT_START
        for file in found:
            try:
                with safe_open(file, framework="pt") as tensors:
                    names, hashes = list(tensors.keys()), tensors.metadata() or {}
                    for name in names if compares else ():
                        _checked(tensors, hashes, name)
                self._places.update(dict.fromkeys(names, file))
            except SafetensorError:
                # Cut off by the system, or changed: it is computed again.
                file.unlink(missing_ok=True)
                self.damaged += 1

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the files for themselves.
        return {"_folder": self._folder, "_places": self._places, "_open": {}, "damaged": 0}

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, as float32. Raises KeyError; TrainingError for a damaged one,
        whose file is gone then, so that the next start computes it again."""
        file = self._places[name]
        try:
            if file not in self._open:
                opened = safe_open(file, framework="pt").__enter__()
                self._open[file] = (opened, opened.metadata() or {})
            return _checked(*self._open[file], name).float()
        except (SafetensorError, OSError):
            file.unlink(missing_ok=True)
        raise TrainingError(
            f"The features in {file} are damaged.",
            "Give the same command again: they are computed anew.",
        )

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors in a file of their own. Raises SaveError, TrainingError."""
        plain = {name: t.to(torch.float16).contiguous() for name, t in sorted(tensors.items())}
        for name, tensor in plain.items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(f"The features of “{printable(name)}” are not finite.")
        digest = hashlib.sha256("\n".join(plain).encode()).hexdigest()[:12]
        file = self._folder / f"{digest}.safetensors"
        hashes = {name: _hash(tensor) for name, tensor in plain.items()}
        files.write(file, save(plain, metadata=hashes))
        self._places.update(dict.fromkeys(plain, file))


def _hash(tensor: Tensor) -> str:
    """16 hex digits over the bytes of a tensor."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()[:16]


def _checked(opened: Any, hashes: Mapping[str, str], name: str) -> Tensor:
    """A tensor of an open file with its `hashes`. Raises SafetensorError for a damaged one."""
    tensor: Tensor = opened.get_tensor(name)
    # Files of earlier versions hold no hashes.
    known = hashes.get(name)
    if known is not None and known != _hash(tensor):
        raise SafetensorError(f"{name} is damaged")
    return tensor


def add_latents(
    store: FeatureStore,
    vae: AutoencoderKL,
    manifest: Manifest,
    buckets: Sequence[Bucket],
    *,
    precision: Precision = "fp32",
    report: Report,
    should_stop: ShouldStop,
) -> bool:
    """Computes the latents that are missing; False where it was stopped. Raises StudioError.

    `vae` is in float32; `precision` bf16 computes its convolutions in bfloat16, on tensors whose
    channels come before their pixels: some processors are several times slower on the other order.
    """
    wanted = [(s, b) for b in buckets for s in b.samples if latent_key(s, b) not in store]
    device = next(vae.parameters()).device

    def encode(together: list[tuple[Sample, Bucket]]) -> dict[str, Tensor]:
        tensors = [to_tensor(crop(pictures.load(manifest.file(s)), b.size)) for s, b in together]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            modes = vae.encode(torch.cat(tensors).to(device)).latent_dist.mode().float().cpu()
        return {latent_key(s, b): m for (s, b), m in zip(together, modes, strict=True)}

    work = _FeatureWork(
        items=wanted,
        kind=lambda pair: pair[1].size,
        together=lambda pair: pictures_together(pair[1].size, device),
        encode=encode,
    )
    return _add(store, work, _PER_FILE, "pictures", report, should_stop)


def pictures_together(size: Size, device: torch.device) -> int:
    """How many pictures of `size` are encoded at a time: on a processor as many as are fastest, on
    a GPU as many as go into its memory."""
    area = _PROCESSOR_AREA if device.type == "cpu" else _TOGETHER_AREA
    return max(1, min(_TOGETHER, area // (size.width * size.height)))


def add_texts(
    store: FeatureStore,
    load_encoder: Callable[[], tuple[T5EncoderModel, torch.device]],
    model: ModelSpec,
    captions: Iterable[str],
    *,
    report: Report,
    should_stop: ShouldStop,
) -> bool:
    """Computes the text features that are missing; False where it was stopped.

    The encoder, which may be large, is loaded only if there is something to compute; with it comes
    the device that it takes tokens on.
    """
    found = {caption_key(ids): ids for c in captions for ids in [tokenize(c, model).ids]}
    wanted = sorted((n for n in found if n not in store), key=lambda n: (len(found[n]), n))
    if not wanted:
        return True
    encoder, device = load_encoder()

    def encode(together: list[str]) -> dict[str, Tensor]:
        ids = torch.tensor([found[name] for name in together], device=device)
        embeds = encoder(ids).last_hidden_state.float().cpu()
        return dict(zip(together, embeds, strict=True))

    work = _FeatureWork(
        items=wanted,
        kind=lambda name: len(found[name]),
        together=lambda _: _TEXTS_TOGETHER,
        encode=encode,
    )
    return _add(store, work, 8 * _PER_FILE, "captions", report, should_stop)


def text_bytes(encoder: T5EncoderModel, tokens: int) -> int:
    """What `encoder` needs where it computes features of captions of up to `tokens` tokens.

    Its weights, and at the widest place of a block the residual, its norm, and five tensors of the
    feed-forward layer, whose gate takes several to compute.
    """
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    shape = encoder.config
    row = (2 * shape.d_model + 5 * shape.d_ff) * encoder.dtype.itemsize
    return weights + _TEXTS_TOGETHER * tokens * row


@dataclass(frozen=True, kw_only=True)
class _FeatureWork(Generic[_T]):
    """Items to encode; neighbours of one kind go together, as many as `together` says of them."""

    items: Sequence[_T]
    kind: Callable[[_T], object]
    together: Callable[[_T], int]
    encode: Callable[[list[_T]], dict[str, Tensor]]


def _add(
    store: FeatureStore,
    work: _FeatureWork[_T],
    per_file: int,
    note: str,
    report: Report,
    should_stop: ShouldStop,
) -> bool:
    """Encodes and keeps, a file at a time; False where it was stopped."""
    kept: dict[str, Tensor] = {}
    done = 0
    for group in _groups(work.items, work.kind, work.together):
        if should_stop():
            break
        with torch.inference_mode():
            kept.update(work.encode(group))
        done += len(group)
        if len(kept) >= per_file:
            store.add(kept)
            kept = {}
        report(Progress(stage=Stage.FEATURES, done=done, total=len(work.items), note=note))
    if kept:
        store.add(kept)
    return done == len(work.items)


def _groups(
    items: Iterable[_T], kind: Callable[[_T], object], most: Callable[[_T], int]
) -> Iterator[list[_T]]:
    """Neighbours of one kind, at most `most` together, which the kind decides."""
    group: list[_T] = []
    for item in items:
        if group and (len(group) >= most(group[0]) or kind(group[0]) != kind(item)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
