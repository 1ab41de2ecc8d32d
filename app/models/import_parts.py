"""The parts of an imported model beside its transformer: VAE, T5, tokenizer, noise schedule.

A part is a folder in diffusers' layout. T5 and VAE may also be a single file, as other programs
keep them: the model then gets a folder with a link to it (`pipelines.models.single_files`). A T5
that is there as pickles only, and a VAE with the names of the first Stable Diffusion code, are
converted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.models.rows import ImportOptions
from app.settings import user_path
from pipelines.catalog import PARTS, Catalog
from pipelines.errors import ModelError, RequestError, printable
from pipelines.models import headers, hub_rows, local_weights, single_files
from pipelines.models.hub_store import FOLDER, HubFolder
from pipelines.progress import plain_size

if TYPE_CHECKING:
    from pipelines.models.convert import CountReport
    from pipelines.models.original_layout import Design
    from pipelines.models.weights import Weights

INDEX = "model_index.json"
SIGMA_SCALING, ALPHA_SCALING = 0.13025, 0.18215
_WEIGHTS = {"text_encoder": single_files.TEXT_WEIGHTS, "vae": single_files.VAE_WEIGHTS}
_COPIED = re.compile(
    r"config\.json|scheduler_config\.json|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|spiece\.model|[\w.-]+\.safetensors(\.index\.json)?"
)
# A second copy of the same weights, which nothing here reads.
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")
_VOCABULARIES = ("tokenizer.json", "spiece.model")
# Both VAEs have the same shapes. Where a file is called as it was published, that tells.
_SIGMA_NAME = re.compile(r"(?i)sdxl|xl.?vae")
_ALPHA_NAME = re.compile(r"(?i)ft.(mse|ema)|840000|560000|sd.?v?1")
_PIECE = 8_000_000
# What the studio does with latents and betas knows none of these.
_NEUTRAL = {"latents_mean": 0, "latents_std": 1, "shift_factor": 0}


@dataclass(frozen=True, kw_only=True)
class ImportedPart:
    """Where a part lies: a folder, or a single file. `own`: it belongs to the source itself.

    `config` is ours, for a part that the model gets a folder of its own for. `tensors` are those
    that are then converted, `names` says which, by their new names. `files` are those of a folder
    of another program that are copied; the rest of it is none of ours.
    """

    place: Path
    own: bool = False
    config: Mapping[str, Any] | None = None
    tensors: Weights | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def is_made(self) -> bool:
        """Whether the model gets a folder of its own for it."""
        return self.config is not None or bool(self.files)

    def read_config(self) -> Mapping[str, Any]:
        """Its config.json. Raises ModelError."""
        from pipelines.models.sources import read_json

        return read_json(self.place / "config.json") if self.config is None else self.config

    def size(self) -> int:
        """Its bytes. Raises ModelError where it holds what is no file of weights."""
        if (tensors := self.tensors) is not None:
            old = self.names.values()
            return sum(prod(tensors.shapes[n]) * tensors.dtypes[n].itemsize for n in old)
        if self.files:
            return sum((self.place / name).stat().st_size for name in self.files)
        files = [self.place] if self.place.is_file() else copied(self.place)
        return sum(file.stat().st_size for file in files)


Parts = Mapping[str, ImportedPart]


def find(
    source: Path, design: Design, wanted: ImportOptions, models: Path, stack: ExitStack
) -> dict[str, ImportedPart]:
    """Every part but the transformer; the scheduler may be missing.

    `stack` closes what a conversion reads. Raises RequestError, ModelError.
    """
    catalog = Catalog(user_models=models)
    parts: dict[str, ImportedPart] = {}
    if source.is_dir():
        parts |= {
            name: ImportedPart(place=source / name, own=True)
            for name in PARTS
            if name != "transformer" and (source / name).is_dir()
        }
    if wanted.vae is not None:
        parts["vae"] = _vae(_named(wanted.vae, "vae", "vae", catalog), source, design, stack)
    if wanted.text is not None:
        parts["text_encoder"] = ImportedPart(
            place=_named(wanted.text, "text_encoder", "text", catalog)
        )
    if "text_encoder" in parts:
        parts["text_encoder"] = _text(parts["text_encoder"], stack)
    if wanted.text is not None:
        parts["tokenizer"] = _tokenizer(wanted.text, parts["text_encoder"], catalog, models)
    for name, option in (("vae", "vae"), ("text_encoder", "text"), ("tokenizer", "text")):
        if name not in parts:
            raise RequestError(
                option,
                f"{printable(source.name)} has no {name.replace('_', ' ')}.",
                f"Name one with --{option}: a model's id, a folder or a file.",
            )
    return parts


def _named(text: str, part: str, option: str, catalog: Catalog) -> Path:
    """The folder or file of a part that the user names by a model's id or by a path."""
    # First, so that what an id means does not depend on where the studio was started.
    if text in {spec.id for spec in catalog}:
        return catalog.find(text).part(part).resolve()
    path = user_path(text)
    if path.is_file() and path.suffix.lower() in single_files.SUFFIXES:
        # The weights of a folder, named by themselves.
        whole = path.name == _WEIGHTS[part] and (path.parent / "config.json").is_file()
        return path.parent.resolve() if whole else path
    if not path.is_dir():
        if len(path.parts) > 1 or path.exists():
            raise RequestError(
                option, f"There is no folder or file of weights {printable(path, 200)}."
            )
        # It says which id is nearest.
        catalog.find(text)
    # A whole model, or the part by itself; T5 and its tokenizer are often in one folder.
    found_at = path / part if (path / part).is_dir() else path
    if not (found_at / "config.json").is_file():
        raise RequestError(
            option, f"{printable(path, 200)} holds no {part.replace('_', ' ')} (config.json)."
        )
    return found_at.resolve()


def _vae(place: Path, source: Path, design: Design, stack: ExitStack) -> ImportedPart:
    """A VAE; of a single file, its name or else the transformer's family says which it is.

    Raises RequestError where neither does.
    """
    if not place.is_file():
        return ImportedPart(place=place)
    patterns = ((_SIGMA_NAME, SIGMA_SCALING), (_ALPHA_NAME, ALPHA_SCALING))
    named = [scaling for pattern, scaling in patterns if pattern.search(place.name)]
    scaling = [SIGMA_SCALING if design.is_sigma else ALPHA_SCALING, *named][-1]
    config = single_files.vae(place, scaling)
    if not named and not _is_told(source, design):
        raise RequestError(
            "vae",
            f"“{printable(place.name)}” may be the VAE of Stable Diffusion 1 or of SDXL, and"
            f" {printable(source.name)} does not tell which it was trained with.",
            "Add --tokens 120 for PixArt-α or --tokens 300 for PixArt-Σ, or name a model or a"
            " folder by --vae.",
        )
    names = single_files.first_names(place)
    if not names:
        return ImportedPart(place=place, config=config)
    from pipelines.models import weights

    tensors = stack.enter_context(weights.opened([place]))
    return ImportedPart(place=place, config=config, tensors=tensors, names=names)


def _is_told(source: Path, design: Design) -> bool:
    """Whether it is known of which family a transformer is; below 1024 px, shapes do not tell."""
    large = design.sample_size >= 128 or design.sizes.micro_conditions
    return large or design.tokens is not None or (source / INDEX).is_file()


def _text(part: ImportedPart, stack: ExitStack) -> ImportedPart:
    """The text encoder, looked into where it is not a folder of safetensors."""
    if part.place.is_file():
        return ImportedPart(place=part.place, config=single_files.text_encoder(part.place))
    pickles = single_files.text_pickles(part.place)
    if not pickles:
        return part
    from pipelines.models import weights

    tensors = stack.enter_context(weights.opened(pickles))
    config = single_files.text_config(tensors.shapes, part.place.name)
    names = {name: name for name in single_files.text_names(tensors.shapes)}
    return replace(part, config=config, tensors=tensors, names=names)


def _tokenizer(text: str, encoder: ImportedPart, catalog: Catalog, models: Path) -> ImportedPart:
    """The tokenizer of the encoder that `text` names: beside it, else that of a model here."""
    if text in {spec.id for spec in catalog}:
        return ImportedPart(place=catalog.find(text).part("tokenizer").resolve())
    path = user_path(text)
    home = path.parent if path.is_file() else path
    near = [home / "tokenizer", home]
    if path.is_file() or encoder.place == path.resolve():
        near.append(home.parent / "tokenizer")
    config = encoder.read_config()
    for folder in chain(near, _other_tokenizers(config, catalog, models)):
        there = [name for name in _VOCABULARIES if (folder / name).is_file()]
        if folder == home and encoder.place.is_file():
            # Another program's folder, in which all its encoders lie.
            fitting = next((name for name in there if _fits(folder / name, config)), None)
            if fitting is not None:
                return ImportedPart(place=folder.resolve(), files=(fitting,))
        elif there:
            return ImportedPart(place=folder.resolve())
    source = _released("tokenizer")
    place = home / "tokenizer" if (home / "spiece.model").exists() else home
    raise RequestError(
        "text",
        f"{printable(path, 200)} has no tokenizer beside it that fits, and no model here has one.",
        f"Put spiece.model into {printable(place, 200)}: a file of 0.8 MB,"
        f" {source.folder}/spiece.model of {source.repo}.",
    )


def _fits(vocabulary: Path, config: Mapping[str, Any]) -> bool:
    """Whether a vocabulary is one of the encoder, as `loader.check` asks of a model's."""
    from pipelines.text import tokens

    try:
        tokenizer = tokens.read_tokenizer(vocabulary)
    except ModelError:
        return False
    size: int = tokenizer.get_vocab_size(with_added_tokens=True)
    ends = tokenizer.encode("").ids == [config["eos_token_id"]]
    return ends and size <= config["vocab_size"]


def _other_tokenizers(config: Mapping[str, Any], catalog: Catalog, models: Path) -> Iterator[Path]:
    """Tokenizers of the same encoder: of models that can be used, then of what is on the disk."""
    for spec in catalog:
        with suppress(ModelError):
            theirs = ImportedPart(place=spec.part("text_encoder")).read_config()
            if all(theirs.get(key) == config.get(key) for key in ("d_model", "vocab_size")):
                yield spec.part("tokenizer")
    like = _released("text_encoder").like
    if all(config.get(key) == value for key, value in like.items()):
        source = _released("tokenizer")
        for place in (HubFolder(models / FOLDER).place(source), local_weights.look().place(source)):
            if place is not None:
                yield place


def _released(part: str) -> hub_rows.HubSource:
    return next(s for s in hub_rows.known()["alpha-1024"].parts if s.part == part)


def check(parts: Parts) -> None:
    """Refuses what a configuration asks for and nothing here would do. Raises ModelError."""
    vae = parts["vae"].read_config()
    for key, neutral in _NEUTRAL.items():
        value = vae.get(key)
        numbers = value if isinstance(value, list) else [value]
        if value is not None and any(number != neutral for number in numbers):
            raise ModelError(
                f"This VAE shifts or scales its latents by {key} ({printable(value, 40)}), as that"
                " of no PixArt does.",
                "Name the one that the model was trained with by --vae.",
            )
    if "scheduler" not in parts:
        return
    from pipelines.models.sources import read_json

    betas = read_json(parts["scheduler"].place / "scheduler_config.json")
    if betas.get("trained_betas") is not None:
        raise ModelError("Its scheduler has betas of its own (trained_betas), as no PixArt has.")
    if betas.get("rescale_betas_zero_snr"):
        raise ModelError(
            "Its scheduler rescales its betas (rescale_betas_zero_snr), which is not done here."
        )


def make(
    parts: Parts, draft: Path, wanted: ImportOptions, *, report: CountReport, copying: CountReport
) -> None:
    """Makes the folders that the model gets of its own. Raises RequestError, OSError."""
    from pipelines.models import convert

    for name, part in parts.items():
        folder = draft / name
        for file in part.files:
            folder.mkdir(exist_ok=True)
            # Too small for a bar of its own.
            _pieces(part.place / file, folder / file, lambda done: None)
        if part.config is None:
            continue
        if part.tensors is not None:
            single_files.describe(folder, part.config)
            convert.write_tensors(part.tensors, part.names, folder / _WEIGHTS[name], report)
        elif wanted.copy_files:
            single_files.describe(folder, part.config)
            _copy_file(part.place, folder / _WEIGHTS[name], copying)
        else:
            _link(part, folder, _WEIGHTS[name])


def _link(part: ImportedPart, folder: Path, name: str) -> None:
    assert part.config is not None
    try:
        single_files.put(part.place, folder, name, part.config)
    except OSError as error:
        raise RequestError(
            "copy",
            f"No link to {printable(part.place, 200)} can be made ({error.strerror}).",
            f"Add --copy to have its {plain_size(part.place.stat().st_size)} copied.",
        ) from None


def _copy_file(source: Path, target: Path, report: CountReport) -> None:
    total = source.stat().st_size
    _pieces(source, target, lambda done: report(done, total))


def copy(places: Mapping[str, Path], folder: Path, total: int, report: CountReport) -> None:
    """Copies folders of parts, in pieces so that it can be followed and stopped. Raises OSError."""
    before = 0
    for name, place in places.items():
        (folder / name).mkdir()
        for file in copied(place):
            start = before
            _pieces(file, folder / name / file.name, lambda done, s=start: report(s + done, total))
            before += file.stat().st_size


def _pieces(source: Path, target: Path, told: Any) -> None:
    done = 0
    with open(source, "rb") as reading, open(target, "xb") as writing:
        while piece := reading.read(_PIECE):
            writing.write(piece)
            done += len(piece)
            told(done)


def copied(folder: Path) -> Iterator[Path]:
    """The files of a part that are read; pickles, code and second copies stay behind."""
    try:
        there = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{printable(folder, 200)} cannot be read ({error.strerror}).") from None
    for file in there:
        if not file.is_file() and not file.is_dir():
            # A pipe or a device would be waited for without end.
            raise ModelError(f"{printable(file, 200)} is no file.", "Remove it.")
        if _COPIED.fullmatch(file.name) and not _VARIANT.search(file.name) and file.is_file():
            if file.suffix == ".safetensors":
                headers.read(file)
            yield file
