"""What a person asks for: one frozen value from the form, the command line, the API and the file.

Limits and defaults live here and in the tables it reads; everybody else derives from them. The
same value, as JSON, is the recipe inside every picture.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ValidationError, model_validator

from lora_manager.card import LoraUse
from lora_manager.errors import LoraError
from pipelines import lora_fit, sizes
from pipelines.catalog import Catalog, Cleaning, ModelSpec
from pipelines.denoising import samplers
from pipelines.errors import RequestError, printable
from pipelines.field_spec import RequestField, fields_of
from pipelines.memory import model_numbers
from pipelines.request_fields import RequestFields
from pipelines.request_values import (
    MAX_ORIGINAL,
    MAX_PROMPT,
    MAX_SEED,
    MIN_ORIGINAL,
    lora_uses,
)
from pipelines.text import styles

NEW_SEED_BITS = 32
"""New seeds are drawn from this range: short enough to read aloud."""


def is_visible(text: str) -> bool:
    """True where `text` has a character that a reader would see."""
    return any(unicodedata.category(c)[0] not in "CZ" for c in text)


class GenerationRequest(RequestFields):
    """Everything that decides the pixels. Picture i of `count` is painted with `seed` + i.

    Build it with `complete`, which fills the defaults of model and sampler and checks the limits
    that depend on them; the bare constructor checks only what a field can know by itself.
    `approximate` allows what changes the picture a little, where memory runs out
    otherwise. `loras` are added to the model with their weights. `original_size` ("WxH" in pixels)
    is what a model with size conditions is told about the picture that it imagines, None for the
    size that is painted. `clean_caption` cleans the texts as the authors do (`captions`) instead
    of only putting them in lower case. `tau_at_start` is SA-Solver's: its noise is decided where a
    step begins, as diffusers does, instead of where it ends, as the authors do. A recipe that does
    not say was painted by a studio that could do neither as the authors.
    """

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_painted(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "tau_at_start" in values:
            return values
        return {**values, "tau_at_start": _tau_matters(values)}

    @model_validator(mode="after")
    def _seeds_fit(self) -> Self:
        if self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(f"seed {self.seed} and {self.count} pictures pass the largest seed")
        return self

    @property
    def guided(self) -> bool:
        """True where classifier-free guidance is computed."""
        return self.guidance > samplers.GUIDANCE_OFF

    @property
    def told_size(self) -> tuple[int, int] | None:
        """The original size as a net is told it, (height, width), None for that of the picture."""
        if self.original_size is None:
            return None
        told = sizes.parse(self.original_size)
        return told.height, told.width

    @property
    def cleaning(self) -> Cleaning:
        """How prompt and negative prompt are cleaned."""
        return "authors" if self.clean_caption else "lower"

    @property
    def texts(self) -> list[str]:
        """What the model reads: [negative, prompt], or [prompt] without guidance."""
        prompt, negative = styles.find(self.style).apply(self.prompt, self.negative)
        return [negative, prompt] if self.guided else [prompt]

    def recipe(self) -> dict[str, Any]:
        """The request as JSON that earlier versions read, too, where they can paint it."""
        values = self.model_dump(mode="json")
        for row in FIELDS.values():
            silent = not row.required and not row.spec.always_written
            if silent and getattr(self, row.names[0]) == row.default:
                del values[row.names[0]]
        if self.tau_at_start == _tau_matters(values):
            del values["tau_at_start"]
        return values

    def single(self, index: int) -> GenerationRequest:
        """The request that paints picture `index` of this one alone."""
        return self.model_copy(update={"seed": self.seed + index, "count": 1})


FIELDS: dict[str, RequestField] = fields_of(GenerationRequest)
"""The fields by the names that the doors use, in the order of the command line."""
_BY_NAME = {name: row for row in FIELDS.values() for name in row.names}


def _tau_matters(values: Mapping[str, Any]) -> bool:
    """Whether SA-Solver adds noise, so that the pixels depend on where tau is read."""
    row = samplers.SAMPLERS.get(str(values.get("sampler")))
    return row is not None and row.orders and values.get("eta", FIELDS["eta"].default) != 0


def new_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbits(NEW_SEED_BITS)


def complete(values: Mapping[str, Any], catalog: Catalog) -> GenerationRequest:
    """`values` (None or absent = default) as a checked request.

    `values` may hold `size` as text instead of `width` and `height`. Raises RequestError with the
    field's name, UnknownNameError for names that are in no list.
    """
    given = {name: value for name, value in values.items() if value is not None}
    _check_prompt(given.get("prompt"), given.get("negative", ""))
    model = catalog.find(str(given.get("model") or catalog.default.id))
    given["loras"] = _found_loras(given.get("loras", ""), catalog, model)
    distilled = catalog.distilled_by(given["loras"])
    row = samplers.find(str(given.get("sampler") or distilled or model.sampler))
    # A model's own steps and guidance were chosen for its own sampler.
    own = row.id == model.sampler
    defaults: dict[str, Any] = {
        "steps": model.steps if own and model.steps is not None else row.steps,
        "guidance": model.guidance if own and model.guidance is not None else row.guidance,
        "tau_at_start": False,
        "clean_caption": model.cleaning == "authors",
    }
    seed = given.get("seed", "")
    given["seed"] = new_seed() if isinstance(seed, str) and not seed.strip() else seed
    size = sizes.parse(str(given.pop("size"))) if "size" in given else model.default_size
    defaults |= {"width": size.width, "height": size.height}
    merged = defaults | given | {"model": model.id, "sampler": row.id}
    merged["style"] = styles.find(str(merged.get("style", styles.NO_STYLE))).name
    if "size" in values or "width" in given or "height" in given:
        _check_size(merged, model.max_side)
    merged["original_size"] = _original_size(merged.get("original_size"), model)
    request = from_mapping(merged)
    samplers.check(row, steps=request.steps, guidance=request.guidance)
    if request.init is not None and not row.from_picture:
        raise RequestError("sampler", f"{row.label} cannot start from a picture.")
    return request


def from_mapping(values: Mapping[str, Any]) -> GenerationRequest:
    """A request from a plain mapping. Raises RequestError with one sentence per first fault."""
    try:
        return GenerationRequest.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "seed"
        raise RequestError(field, _sentence(field, first, values)) from None
    except LoraError as error:
        raise RequestError("loras", error.message, error.way_out) from None


def _check_prompt(prompt: Any, negative: Any) -> None:
    for field, text in (("prompt", prompt), ("negative", negative)):
        if isinstance(text, str) and len(text) > MAX_PROMPT:
            raise RequestError(
                field,
                f"The {field} has {len(text):,} characters; the limit is {MAX_PROMPT:,}.",
            )
    if not isinstance(prompt, str) or not is_visible(prompt):
        raise RequestError("prompt", "The prompt is empty.", "Write what the picture should show.")


def _found_loras(value: Any, catalog: Catalog, model: ModelSpec) -> tuple[LoraUse, ...]:
    """The LoRAs that are asked for, all of which are there and fit. Raises RequestError."""
    try:
        uses: tuple[LoraUse, ...] = lora_uses(value)
        for use in uses:
            lora_fit.check(catalog.loras.find(use.name), model, catalog)
    except LoraError as error:
        raise RequestError("loras", error.message, error.way_out) from None
    except ValidationError:
        raise RequestError("loras", f"“{printable(value, 40)}” names no LoRAs.") from None
    return uses


def _check_size(values: Mapping[str, Any], max_side: int) -> None:
    try:
        size = sizes.Size(int(values["width"]), int(values["height"]))
    except (TypeError, ValueError, OverflowError):
        shown = f"{printable(values['width'], 20)}x{printable(values['height'], 20)}"
        raise RequestError("size", f"“{shown}” is not a size.") from None
    sizes.check(size, max_side)


def _original_size(value: Any, model: ModelSpec) -> str | None:
    """As a request holds it; None where nothing was said. Raises RequestError."""
    if value is None or not str(value).strip():
        return None
    try:
        told = sizes.parse(str(value))
    except RequestError:
        raise RequestError("original_size", _unfit(FIELDS["original_size"], value)) from None
    if not all(MIN_ORIGINAL <= side <= MAX_ORIGINAL for side in (told.width, told.height)):
        raise RequestError("original_size", _unfit(FIELDS["original_size"], value))
    if not model_numbers.knows_sizes(model):
        raise RequestError(
            "original_size",
            f"“{model.id}” was not trained with size conditions, so it has no original size.",
            "Leave the original size empty.",
        )
    return str(told)


def _unfit(row: RequestField, value: Any) -> str:
    """The field's own sentence for a value that it cannot have."""
    return row.spec.fault.format(value=printable(value, 40))


def _sentence(field: str, fault: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The pydantic fault as one sentence with the value and the limits."""
    row = _BY_NAME.get(field)
    if row is None:
        return f"“{printable(field, 40)}” is not a setting of a picture."
    kind, limits = fault["type"], fault.get("ctx") or {}
    # A side of the size is named by itself.
    name = row.noun if len(row.names) == 1 else field
    shown = printable(values.get(field), 40)
    if field == "seed" and kind == "value_error":
        return f"{str(fault['msg']).removeprefix('Value error, ').capitalize()} ({MAX_SEED})."
    if kind == "missing":
        return f"The {name} is missing."
    if row.spec.fault:
        return _unfit(row, values.get(field))
    bounds = row.bounds
    sampler = samplers.SAMPLERS.get(str(values.get("sampler")))
    if field == "steps" and sampler is not None:
        # The limits that the sampler sets are the ones that matter.
        bounds = (str(sampler.min_steps), str(sampler.max_steps))
    if bounds and (limits or kind.startswith(("int", "float", "finite"))):
        what = "a whole number" if row.type is int else "a number"
        return f"The {name} must be {what} from {bounds[0]} to {bounds[1]}, not “{shown}”."
    return f"“{shown}” is not a valid {name}."
