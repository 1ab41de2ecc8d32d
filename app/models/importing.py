"""A model from elsewhere -> a row of the catalog with its files, so that it paints.

The transformer is converted on the way (`pipelines.models.convert`), so that whatever its file was,
the studio holds safetensors in diffusers' layout. Parts that come from another model, folder or
file are not copied (`import_parts`); the row says where they lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.models import import_parts, rows
from app.models.import_parts import ALPHA_SCALING, INDEX, SIGMA_SCALING, Parts
from app.models.rows import ImportOptions
from pipelines import files, sizes
from pipelines.catalog import ROW_FILE, Catalog, ModelSpec
from pipelines.denoising import samplers
from pipelines.errors import ModelError, RequestError, printable
from pipelines.heavy_imports import importing_diffusers, importing_torch

if TYPE_CHECKING:
    from pipelines.models.convert import CountReport
    from pipelines.models.original_layout import Design
    from pipelines.models.sources import Source

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
    wanted: ImportOptions,
    report: CountReport = lambda done, total: None,
    *,
    copying: CountReport = lambda done, total: None,
) -> ModelSpec:
    """Makes `models`/<id> of a file or folder and returns its row.

    `report` counts the tensors that are converted, `copying` the bytes of the other parts.
    Raises RequestError, ModelError, SaveError; nothing is left in `models` then.
    """
    with importing_torch():
        from pipelines.models import convert, sources

    catalog = Catalog(user_models=models)
    model_id = free_id(source, catalog, models, wanted)
    index = _index(source)
    options = sources.ReadOptions(
        weights=wanted.weights,
        head_dim=wanted.head_dim,
        image_size=wanted.image_size,
        interpolation_scale=wanted.interpolation_scale,
    )
    with ExitStack() as stack:
        net = stack.enter_context(sources.opened(source, options))
        told = _with_tokens(net.design, wanted, index)
        parts = import_parts.find(source, told, wanted, models, stack)
        design = _with_vae(told, parts)
        import_parts.check(parts)
        _check_fit(design, parts)
        values = rows.values_of(design, source, wanted, index)
        # Of every part, also those that stay where they are: a header is read before any library.
        extent = {name: part.size() for name, part in parts.items()}
        made = {name: part for name, part in parts.items() if part.is_made}
        whole = {name: part for name, part in parts.items() if not part.is_made}
        places = {name: str(part.place) for name, part in whole.items() if not part.own}
        copies = {name: part.place for name, part in whole.items() if part.own}
        if wanted.in_place:
            convert.check(net, report)
            places |= _in_place(source, net, parts, wanted)
            copies = {}
        values["places"] = places
        spec = rows.checked(values, model_id, models)
        own = (n for n, p in made.items() if p.tensors or p.files or wanted.copy_files)
        written = [*copies, *own]
        needed = convert.size(net, wanted.precision) + sum(extent[name] for name in written)
        with files.whole(models / model_id, needed) as draft:
            draft.mkdir()
            if not wanted.in_place:
                convert.write_folder(net, draft, wanted.precision, report)
            import_parts.make(made, draft, wanted, report=report, copying=copying)
            _check_draft(spec, draft, whole)
            import_parts.copy(copies, draft, sum(extent[name] for name in copies), copying)
            (draft / ROW_FILE).write_text(rows.text(values), "utf-8")
    catalog.reload()
    return catalog.find(model_id)


def _check_draft(spec: ModelSpec, draft: Path, parts: Parts) -> None:
    """The model as it will be, before gigabytes are copied. Raises ModelError, OSError."""
    with importing_diffusers():
        from pipelines.models import loader

    if "scheduler" not in parts:
        (draft / "scheduler").mkdir()
        text = json.dumps(_SCHEDULER, indent=2) + "\n"
        (draft / "scheduler" / "scheduler_config.json").write_text(text, "utf-8")
    now = {name: part.place for name, part in parts.items()}
    loader.check(spec.model_copy(update={"folder": draft, "places": {**spec.places, **now}}))


def free_id(source: Path, catalog: Catalog, models: Path, wanted: ImportOptions) -> str:
    """The id that the model will have: as wanted, else made of the source's name.

    Raises RequestError.
    """
    try:
        name = source.resolve()
        there = name.exists()
    except (OSError, RuntimeError, ValueError):
        # Links that lead in a circle, a name that is too long or holds a zero.
        there = False
    if not there:
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
    from pipelines.models.sources import read_json

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
        # What is no text is in no list, and a list of lists could not even be looked up.
        known = isinstance(cls, str) and cls in _CLASSES.get(name, ())
        if library not in _LIBRARIES or not known:
            raise ModelError(
                f"Its {INDEX} names “{printable(f'{library}.{cls}')}” as {printable(name)}, which"
                " is not loaded."
            )
    return index


def _with_tokens(design: Design, wanted: ImportOptions, index: Mapping[str, Any]) -> Design:
    """The design with the text length that the user or the pipeline tells."""
    from pipelines.models.original_layout import SIGMA_TOKENS

    if wanted.tokens is not None:
        return replace(design, tokens=wanted.tokens)
    sigma = index.get("_class_name") == _SIGMA_PIPELINE and not design.sizes.micro_conditions
    return replace(design, tokens=SIGMA_TOKENS) if design.tokens is None and sigma else design


def _with_vae(design: Design, parts: Parts) -> Design:
    """The design with the text length that goes with its VAE, where nothing else tells it."""
    from pipelines.models.original_layout import SIGMA_TOKENS

    sigma = parts["vae"].read_config().get("scaling_factor") == SIGMA_SCALING
    if design.tokens is None and sigma and not design.sizes.micro_conditions:
        return replace(design, tokens=SIGMA_TOKENS)
    return design


def _check_fit(design: Design, parts: Parts) -> None:
    """A transformer with the text encoder and VAE that it was trained with. Raises ModelError."""
    text, vae = parts["text_encoder"].read_config(), parts["vae"].read_config()
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
    wrong = ALPHA_SCALING if design.is_sigma else SIGMA_SCALING
    if design.family.startswith("PixArt-") and vae.get("scaling_factor", ALPHA_SCALING) == wrong:
        name = "SDXL" if design.is_sigma else "Stable Diffusion 1 (sd-vae-ft-ema)"
        raise ModelError(
            f"{design.family} paints with the VAE of {name}, and this one has the scaling factor"
            f" {wrong}.",
            "Name the right one by --vae.",
        )


def _in_place(source: Path, net: Source, parts: Parts, wanted: ImportOptions) -> dict[str, str]:
    """Places of a source that stays where it is. Raises RequestError where it has to change."""
    from pipelines.models.sources import WEIGHTS

    folder = source / "transformer" if (source / "transformer").is_dir() else source
    there = (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}.index.json").is_file()
    changed = any(part.own and part.tensors for part in parts.values())
    if not source.is_dir() or net.layout != "diffusers" or not there or changed:
        raise RequestError(
            "in_place",
            f"{printable(source.name)} has to be converted, so it cannot stay in place.",
            "Leave --in-place out.",
        )
    if wanted.precision != "keep" or wanted.interpolation_scale is not None:
        raise RequestError(
            "in_place", "What stays in place is not changed, so it keeps precision and scale."
        )
    places = {name: part.place for name, part in parts.items() if part.own}
    places["transformer"] = folder
    for place in places.values():
        list(import_parts.copied(place))
    return {name: str(place.resolve()) for name, place in places.items()}
