"""What people call a LoRA, how much of it they want, and what its file says about itself."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_manager import headers, layouts, strength, targets
from lora_manager.errors import LoraError, printable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MIN_WEIGHT, MAX_WEIGHT = -4.0, 4.0
USUAL_WEIGHT = 2.0
"""What is further from 0 is possible, and asked about once more."""
MAX_USES = 8
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")

# Keys of a file's metadata, the first that says something counts. Ours come first: what a person
# typed, and the model that the studio trained on.
TITLE, TRIGGER, LICENCE = "modelspec.title", "modelspec.trigger_phrase", "modelspec.license"
BASE, NOTES = "pixart_studio.base", "pixart_studio.notes"
RUN = "pixart_studio.run"
"""Which training of the studio has made it."""
TEXTS = ("title", "trigger", "licence", "base")
"""What a file may say about itself, as the fields of a card."""
_BASES = (BASE, "ss_base_model_version", "modelspec.architecture")
_MAX_NOTES = 10


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """A LoRA that a picture is painted with. `weight`: 1 as it was trained, below 0 the opposite.

    Raises LoraError for a name that none can have and for a weight beyond -4 to 4.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.name)
        if not math.isfinite(self.weight) or not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise LoraError(
                f"The weight of the LoRA “{self.name}” is {self.weight:g}.",
                f"Take a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}; 1 is its full strength.",
            )


def check_name(name: str) -> None:
    """Raises LoraError for a name that no LoRA can have."""
    if not NAME.fullmatch(name):
        raise LoraError(
            f"“{printable(name)}” is no name of a LoRA.",
            "Take letters, digits, dots, dashes and underscores, at most 80, a letter first.",
        )


def parse(text: str) -> tuple[LoraUse, ...]:
    """The LoRAs of a text as "dog", "dog:0.8" or "dog:0.8, ink:-0.5" (commas or lines).

    Raises LoraError for bad names and weights, a name given twice, and more than MAX_USES.
    """
    items = [item.strip() for item in re.split(r"[,\n]", text)]
    items = [item for item in items if item]
    if len(items) > MAX_USES:
        raise LoraError(
            f"These are {len(items)} LoRAs at once.", f"At most {MAX_USES} can be used together."
        )
    uses: list[LoraUse] = []
    for item in items:
        name, colon, number = (part.strip() for part in item.partition(":"))
        check_name(name)
        if any(name == use.name for use in uses):
            raise LoraError(f"The LoRA “{name}” is given twice.", "Give it once, with one weight.")
        uses.append(LoraUse(name=name, weight=_weight(name, number) if colon else 1.0))
    return tuple(uses)


def _weight(name: str, number: str) -> float:
    if not _NUMBER.fullmatch(number):
        raise LoraError(
            f"The weight of the LoRA “{name}” is “{printable(number, 20)}”, which is no number.",
            f"Give a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, as {name}:0.8.",
        )
    return float(number)


def unusual(uses: Iterable[LoraUse]) -> str:
    """A sentence that names the weights beyond -2 to 2, "" where there are none."""
    far = [use for use in uses if abs(use.weight) > USUAL_WEIGHT]
    if not far:
        return ""
    be = "is" if len(far) == 1 else "are"
    return (
        f"{written(far)} {be} beyond -{USUAL_WEIGHT:g} to {USUAL_WEIGHT:g}, where most pictures"
        " fall apart."
    )


def written(uses: Iterable[LoraUse]) -> str:
    """The text that `parse` reads as `uses`."""
    return ", ".join(
        use.name if use.weight == 1 else f"{use.name}:{repr(use.weight).removesuffix('.0')}"
        for use in uses
    )


@dataclass(frozen=True, kw_only=True)
class LoraCard:
    """A LoRA as its file describes it; no tensor was read.

    `size` in bytes. `rank`: the largest. `modules`: how many layers it changes. `width`: columns of
    the attention layers that it changes, which decide whether it fits a net; 0 where it changes
    none. `base`: the model that it says it was trained on. "" where nothing is said. `is_dora`: its
    change depends on the model, so that it is neither merged nor resized.
    """

    name: str
    file: Path
    size: int
    rank: int
    modules: int
    width: int
    title: str = ""
    base: str = ""
    trigger: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()
    is_dora: bool = False


def read(file: Path, name: str) -> LoraCard:
    """The card of a safetensors file of any family, called `name`. Raises LoraError."""
    header = headers.read(file)
    shapes = {key: entry.shape for key, entry in header.tensors.items()}
    layout = layouts.sort(shapes, file.name)
    alphas = {change.alpha: 1.0 for change in layout.changes if change.alpha is not None}
    config = strength.beside(file)
    _, guesses = strength.factors(layout, alphas, header.metadata, config, file.name)
    try:
        size = file.stat().st_size
    except OSError as error:
        raise headers.unreadable(file, error) from None
    return LoraCard(
        name=name,
        file=file,
        size=size,
        rank=max(change.rank for change in layout.changes),
        modules=sum(len(change.paths) for change in layout.changes),
        width=_width(layout),
        is_dora=any(change.magnitude is not None for change in layout.changes),
        notes=(*layout.notes, *guesses, *_noted(header.metadata)),
        **texts(header.metadata),
    )


def texts(metadata: Mapping[str, str]) -> dict[str, str]:
    """title, trigger, licence and base as a file's metadata gives them: one short line each."""
    keys = {"title": (TITLE,), "trigger": (TRIGGER,), "licence": (LICENCE,), "base": _BASES}
    return {
        field: next((line for key in names if (line := short(metadata.get(key, "")))), "")
        for field, names in keys.items()
    }


def metadata(said: Mapping[str, str], notes: Iterable[str] = ()) -> dict[str, str]:
    """What `texts` gives, and notes, as metadata of a file."""
    keys = {"title": TITLE, "trigger": TRIGGER, "licence": LICENCE, "base": BASE}
    found = {key: line for field, key in keys.items() if (line := short(said.get(field, "")))}
    noted = list(notes)
    return found | ({NOTES: json.dumps(noted)} if noted else {})


def short(text: str) -> str:
    """A line for people, of at most 200 characters."""
    return printable(text, 200)


def _noted(metadata: Mapping[str, str]) -> list[str]:
    """What an import wrote down about the file that it read."""
    try:
        values = json.loads(metadata.get(NOTES, "[]"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(values, list):
        return []
    return [short(value) for value in values[:_MAX_NOTES] if isinstance(value, str)]


def _width(layout: layouts.LoraChanges) -> int:
    for kinds in (targets.ATTENTION, {"ff.net.0.proj"}, {"adaln_single.linear"}):
        counts = Counter(
            change.inside
            for change in layout.changes
            for path in change.paths
            if targets.matches(path, kinds)
        )
        if counts:
            return counts.most_common(1)[0][0]
    return 0
