"""What can be made of LoRAs as a job: an order, checked before it is begun, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.models import baking, lora_work
from app.models.baking import BakeOptions
from lora_manager import card
from lora_manager.card import LoraUse
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, model_errors, printable

VERBS = ("merge", "resize", "losses", "compare", "bake")
"""One LoRA of several; one of a smaller rank; what each rank would lose; how far two are apart; a
model with LoRAs in its weights."""
_MAX_NAME, _MAX_TITLE = 80, 200
_HOW_MANY = {"resize": 1, "losses": 1, "compare": 2}


@dataclass(frozen=True, kw_only=True)
class LoraOrder:
    """One of `VERBS` for `uses`, whose weights count for merging and baking.

    `name`: of the LoRA that is made, or the id of the model. `rank`: None for an exact merge.
    `model`, `title` and `precision` are for baking; an empty title is made of the model's.
    """

    verb: str
    uses: tuple[LoraUse, ...]
    name: str = ""
    rank: int | None = None
    model: str = ""
    title: str = ""
    precision: str = "keep"

    @property
    def said(self) -> str:
        """What it is, on one line for people."""
        loras = card.written(self.uses)
        match self.verb:
            case "merge":
                return f"Merge {loras} into {self.name}"
            case "resize":
                return f"Make {self.name} of {loras}, of rank {self.rank}"
            case "losses":
                return f"Look what smaller ranks of {loras} lose"
            case "compare":
                return f"Compare {' and '.join(use.name for use in self.uses)}"
        return f"Bake {loras} into {printable(self.model, _MAX_NAME)}"

    def to_json(self) -> dict[str, Any]:
        """As `of_json` reads it."""
        return asdict(self) | {"uses": card.written(self.uses)}


@dataclass(frozen=True, kw_only=True)
class LoraOutcome:
    """What came of an order.

    `name`: the LoRA or model that was made; `rank` and `error` of a LoRA, the error relative to all
    its changes. `losses`: what each smaller rank would lose, in the same way. `comparison`: the
    fields of `lora_manager.algebra.Comparison`.
    """

    name: str = ""
    rank: int = 0
    error: float = 0.0
    losses: tuple[tuple[int, float], ...] = ()
    comparison: Mapping[str, Any] | None = None


def of_json(payload: Any) -> LoraOrder:
    """The order of a row that anybody may have written. Raises RequestError, ModelError."""
    values = payload if isinstance(payload, dict) else {}
    texts = {key: values.get(key) for key in ("uses", "name", "model", "title", "precision")}
    rank, verb = values.get("rank"), values.get("verb")
    plain = all(isinstance(text, str) and len(text) <= 2000 for text in texts.values())
    whole = rank is None or (isinstance(rank, int) and not isinstance(rank, bool))
    if verb not in VERBS or not plain or not whole:
        raise RequestError("loras", "This is no order for LoRAs.")
    told = {key: str(text) for key, text in texts.items()}
    with model_errors():
        uses = card.parse(told.pop("uses"))
    return _counted(LoraOrder(verb=str(verb), uses=uses, rank=rank, **told))


def checked(order: LoraOrder, catalog: Catalog, models: Path) -> LoraOrder:
    """The same, if it can be begun as far as is seen without reading numbers.

    Raises RequestError, ModelError.
    """
    order, library = _counted(order), catalog.loras
    with model_errors():
        for use in order.uses:
            library.find(use.name)
        match order.verb:
            case "merge":
                lora_work.check_merge(catalog, order.uses, order.name, order.rank)
            case "resize":
                (use,) = order.uses
                lora_work.check_resize(library, use.name, order.name, order.rank or 0)
            case "bake":
                model = catalog.find(order.model)
                baking.check(catalog, model, order.uses, models, options(order))
    return order


def options(order: LoraOrder) -> BakeOptions:
    """What is wished for the model that is baked."""
    return BakeOptions(id=order.name, title=order.title or None, precision=order.precision)


def _counted(order: LoraOrder) -> LoraOrder:
    """The same. Raises RequestError for too few or too many LoRAs, and for texts that are none."""
    many, wanted = len(order.uses), _HOW_MANY.get(order.verb)
    if not many or (wanted is not None and many != wanted):
        words = {1: "one LoRA", 2: "two LoRAs"}.get(wanted or 0, "at least one LoRA")
        raise RequestError("loras", f"This takes {words}, not {many}.")
    if len(order.name) > _MAX_NAME or len(order.title) > _MAX_TITLE:
        raise RequestError("name", "This name is too long.", "Take a shorter one.")
    lora_work.check_rank(order.rank)
    return order
