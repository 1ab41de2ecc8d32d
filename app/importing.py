"""A model from elsewhere -> a row of the catalog with its files, so that it paints.

The transformer is converted on the way (`pipelines.convert`), so that whatever its file was, the
studio holds safetensors in diffusers' layout. Parts that come from another model or folder are not
copied; the row says where they lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import model_rows
from app.model_rows import Wanted
from app.settings import user_path
from pipelines import files, headers, samplers, sizes
from pipelines.catalog import PARTS, ROW_FILE, Catalog, ModelSpec
from pipelines.errors import ModelError, RequestError, printable

if TYPE_CHECKING:
    from pipelines.convert import Report
    from pipelines.originals import Design
    from pipelines.sources import Source

INDEX = "model_index.json"
_SIGMA_PIPELINE = "PixArtSigmaPipeline"
# Classes that a pipeline may name. Anything else is another kind of model, or an attempt to have
# code loaded; nothing of the file is imported in either case.
_CLASSES: Mapping[str, frozenset[str]] = {
    "text_encoder": frozenset({"T5EncoderModel"}),
    "tokenizer": frozenset({"T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast"}),
    "transformer": frozenset({"PixArtTransformer2DModel", "Transformer2DModel"}),
    "vae": frozenset({"AutoencoderKL"}),
    "scheduler": frozenset(row.scheduler for row in samplers.SAMPLERS.values()),
}
_PIPELINES = ("PixArtAlphaPipeline", _SIGMA_PIPELINE)
_LIBRARIES = ("diffusers", "transformers")
_COPIED = re.compile(
    r"config\.json|scheduler_config\.json|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|spiece\.model|[\w.-]+\.safetensors(\.index\.json)?"
)
# A second copy of the same weights, which nothing here reads.
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")
_PIECE = 8_000_000
_SIGMA_SCALING, _ALPHA_SCALING = 0.13025, 0.18215
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def import_model(
    source: Path,
    models: Path,
    wanted: Wanted,
    report: Report = lambda done, total: None,
    *,
    copying: Report = lambda done, total: None,
) -> ModelSpec:
    """Makes `models`/<id> of a file or folder and returns its row.

    `report` counts the transformer's tensors, `copying` the bytes of the other parts.
    Raises RequestError, ModelError, SaveError; nothing is left in `models` then.
    """
    from pipelines import convert, loader, sources

    catalog = Catalog(user_models=models)
    model_id = free_id(source, catalog, models, wanted)
    index = _index(source)
    wish = sources.Wish(
        weights=wanted.weights,
        head_dim=wanted.head_dim,
        image_size=wanted.image_size,
        interpolation_scale=wanted.interpolation_scale,
    )
    with sources.opened(source, wish) as net:
        parts = _parts(source, catalog, wanted)
        design = _with_tokens(net.design, wanted, index, parts)
        _check_fit(design, parts)
        values = model_rows.values_of(design, source, wanted, index)
        # Of every part, also those that stay where they are: a header is read before any library.
        extent = {
            name: sum(file.stat().st_size for file in _copied(place))
            for name, (place, _) in parts.items()
        }
        places = {name: str(place) for name, (place, own) in parts.items() if not own}
        copies = {name: place for name, (place, own) in parts.items() if own}
        if wanted.in_place:
            convert.check(net, report)
            places |= _in_place(source, net, copies, wanted)
            copies = {}
        values["places"] = places
        spec = model_rows.checked(values, model_id, models)
        needed = convert.size(net, wanted.precision) + sum(extent[name] for name in copies)
        with files.whole(models / model_id, needed) as draft:
            draft.mkdir()
            if not wanted.in_place:
                convert.write_folder(net, draft, wanted.precision, report)
            if "scheduler" not in parts:
                (draft / "scheduler").mkdir()
                text = json.dumps(_SCHEDULER, indent=2) + "\n"
                (draft / "scheduler" / "scheduler_config.json").write_text(text, "utf-8")
            # Before gigabytes are copied.
            now = {name: place for name, (place, _) in parts.items()}
            loader.check(
                spec.model_copy(update={"folder": draft, "places": {**spec.places, **now}})
            )
            _copy(copies, draft, sum(extent[name] for name in copies), copying)
            (draft / ROW_FILE).write_text(model_rows.text(values), "utf-8")
    catalog.reload()
    return catalog.find(model_id)


def free_id(source: Path, catalog: Catalog, models: Path, wanted: Wanted) -> str:
    """The id that the model will have: as wanted, else made of the source's name.

    Raises RequestError.
    """
    name = source.resolve()
    if not name.exists():
        raise RequestError("path", f"There is no file or folder {printable(source, 200)}.")
    folder = name.parent if name.name == "transformer" else name
    stem = name.stem if name.is_file() else folder.name
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "imported"
    model_id = wanted.id if wanted.id is not None else made
    fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", model_id)
    if not fits or _RESERVED.fullmatch(model_id):
        raise RequestError(
            "id",
            f"“{printable(model_id)}” is not possible as a model's id.",
            "Use up to 80 letters, digits, dots, dashes and underscores.",
        )
    taken = {spec.id.casefold() for spec in catalog}
    if model_id.casefold() in taken or (models / model_id).exists():
        raise RequestError(
            "id", f"There is a model called “{model_id}” already.", "Give another name with --id."
        )
    return model_id


def _index(source: Path) -> dict[str, Any]:
    """model_index.json of a pipeline's folder, {} where there is none. Raises ModelError."""
    if not (source / INDEX).is_file():
        return {}
    from pipelines.sources import read_json

    index = read_json(source / INDEX)
    if index.get("_class_name") not in _PIPELINES:
        found = printable(index.get("_class_name"))
        raise ModelError(
            f"This is a “{found}”, and the studio paints with {' or '.join(_PIPELINES)}."
        )
    for name, value in index.items():
        if name.startswith("_") or value == [None, None] or not isinstance(value, list):
            continue
        library, cls = value if len(value) == 2 else (None, None)
        if library not in _LIBRARIES or cls not in _CLASSES.get(name, ()):
            raise ModelError(
                f"Its {INDEX} names “{printable(f'{library}.{cls}')}” as {printable(name)}, which"
                " is not loaded."
            )
    return index


Places = Mapping[str, tuple[Path, bool]]


def _parts(source: Path, catalog: Catalog, wanted: Wanted) -> Places:
    """Where each part but the transformer lies, and whether it belongs to the source itself."""
    parts: dict[str, tuple[Path, bool]] = {}
    if source.is_dir():
        parts |= {
            name: (source / name, True)
            for name in PARTS
            if name != "transformer" and (source / name).is_dir()
        }
    if wanted.vae is not None:
        parts["vae"] = (_named(wanted.vae, "vae", "vae", catalog), False)
    if wanted.text is not None:
        for name in ("text_encoder", "tokenizer"):
            parts[name] = (_named(wanted.text, name, "text", catalog), False)
    for name, option in (("vae", "vae"), ("text_encoder", "text"), ("tokenizer", "text")):
        if name not in parts:
            raise RequestError(
                option,
                f"{printable(source.name)} has no {name.replace('_', ' ')}.",
                f"Name one with --{option}: a model's id or a folder.",
            )
    return parts


def _named(text: str, part: str, option: str, catalog: Catalog) -> Path:
    """The folder of a part that the user names by a model's id or by a path."""
    # First, so that what an id means does not depend on where the studio was started.
    if text in {spec.id for spec in catalog}:
        return catalog.find(text).part(part).resolve()
    path = user_path(text)
    if not path.is_dir():
        if len(path.parts) > 1 or path.exists():
            raise RequestError(option, f"There is no folder {printable(path, 200)}.")
        # It says which id is nearest.
        catalog.find(text)
    # A whole model, or the part by itself; T5 and its tokenizer are often in one folder.
    found = path / part if (path / part).is_dir() else path
    marks = ("tokenizer.json", "spiece.model") if part == "tokenizer" else ("config.json",)
    if not any((found / mark).is_file() for mark in marks):
        raise RequestError(
            option, f"{printable(path, 200)} holds no {part.replace('_', ' ')} ({marks[0]})."
        )
    return found.resolve()


def _with_tokens(design: Design, wanted: Wanted, index: Mapping[str, Any], parts: Places) -> Design:
    """The design with the text length that the user, the pipeline or the VAE tells."""
    from pipelines.originals import SIGMA_TOKENS
    from pipelines.sources import read_json

    if wanted.tokens is not None:
        return replace(design, tokens=wanted.tokens)
    scaling = read_json(parts["vae"][0] / "config.json").get("scaling_factor")
    sigma = index.get("_class_name") == _SIGMA_PIPELINE or scaling == _SIGMA_SCALING
    if design.tokens is None and sigma and not design.sizes.micro_conditions:
        return replace(design, tokens=SIGMA_TOKENS)
    return design


def _check_fit(design: Design, parts: Places) -> None:
    """A transformer with the text encoder and VAE that it was trained with. Raises ModelError."""
    from pipelines.sources import read_json

    text = read_json(parts["text_encoder"][0] / "config.json")
    vae = read_json(parts["vae"][0] / "config.json")
    net = design.sizes
    if text.get("d_model") != net.caption_channels:
        raise ModelError(
            f"The transformer reads texts of {net.caption_channels} channels, and this text encoder"
            f" gives {printable(text.get('d_model'))}.",
            "Name the one it was trained with by --text.",
        )
    latent = vae.get("latent_channels", 4)
    if latent != net.in_channels:
        raise ModelError(
            f"The transformer paints {net.in_channels} latent channels, and this VAE has"
            f" {printable(latent)}.",
            "Name the one it was trained with by --vae.",
        )
    if net.patch != sizes.MULTIPLE // 8 or net.out_channels not in (latent, 2 * latent):
        raise ModelError(
            f"The transformer has patches of {net.patch} and {net.out_channels} output channels;"
            f" the studio paints with patches of 2 and {latent} or {2 * latent}."
        )
    wrong = _ALPHA_SCALING if design.is_sigma else _SIGMA_SCALING
    if design.family.startswith("PixArt-") and vae.get("scaling_factor", _ALPHA_SCALING) == wrong:
        name = "SDXL" if design.is_sigma else "Stable Diffusion 1 (sd-vae-ft-ema)"
        raise ModelError(
            f"{design.family} paints with the VAE of {name}, and this one has the scaling factor"
            f" {wrong}.",
            "Name the right one by --vae.",
        )


def _in_place(
    source: Path, net: Source, copies: Mapping[str, Path], wanted: Wanted
) -> dict[str, str]:
    """Places of a source that stays where it is. Raises RequestError where it has to change."""
    from pipelines.sources import WEIGHTS

    folder = source / "transformer" if (source / "transformer").is_dir() else source
    there = (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}.index.json").is_file()
    if not source.is_dir() or net.layout != "diffusers" or not there:
        raise RequestError(
            "in_place",
            f"{printable(source.name)} has to be converted, so it cannot stay in place.",
            "Leave --in-place out.",
        )
    if wanted.precision != "keep" or wanted.interpolation_scale is not None:
        raise RequestError(
            "in_place", "What stays in place is not changed, so it keeps precision and scale."
        )
    places = {"transformer": folder, **copies}
    for place in places.values():
        list(_copied(place))
    return {name: str(place.resolve()) for name, place in places.items()}


def _copy(copies: Mapping[str, Path], folder: Path, total: int, report: Report) -> None:
    """Copies parts, in pieces so that it can be followed and stopped. Raises OSError."""
    done = 0
    for name, place in copies.items():
        (folder / name).mkdir()
        for file in _copied(place):
            with open(file, "rb") as source, open(folder / name / file.name, "xb") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    done += len(piece)
                    report(done, total)


def _copied(folder: Path) -> Iterator[Path]:
    """The files of a part that are read; pickles, code and second copies stay behind."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{printable(folder, 200)} cannot be read ({error.strerror}).") from None
    for file in found:
        if not file.is_file() and not file.is_dir():
            # A pipe or a device would be waited for without end.
            raise ModelError(f"{printable(file, 200)} is no file.", "Remove it.")
        if _COPIED.fullmatch(file.name) and not _VARIANT.search(file.name) and file.is_file():
            if file.suffix == ".safetensors":
                headers.read(file)
            yield file
