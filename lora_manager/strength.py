"""How strongly a LoRA is meant to work: alpha, wherever a file or a folder notes it.

The change of a weight is `alpha / r * up @ down`. Some files hold alpha as a tensor per layer, some
as JSON in their metadata (diffusers), PEFT's in `adapter_config.json` beside them, some nowhere;
read without it, such a LoRA works up to sixteen times too strongly or too weakly.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_manager import headers
from lora_manager.errors import LoraError, printable
from lora_manager.layouts import Change, LoraChanges

CONFIG = "adapter_config.json"
# What PEFT, and the scripts of PixArt, call the weights in a folder of theirs.
PEFT_NAMES = ("adapter_model", "pytorch_lora_weights")
METADATA = "lora_adapter_metadata"
PEFT_ALPHA = 8.0
"""What PEFT takes where nobody says it, as PixArt's own LoRA scripts do."""
_MAX_CONFIG = 2_000_000
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
# They begin by changing the weights of the model, so that theirs do not fit the model itself.
_CHANGED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class Strength:
    """What PEFT notes about ranks and alphas. The patterns name layers by the end of their path."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    dora: bool = False

    def of(self, layer: str) -> tuple[float, float]:
        """The rank that is noted for a layer, and the factor of its change."""
        rank = _looked_up(self.ranks, layer, self.r)
        alpha = _looked_up(self.alphas, layer, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


def beside(weights: Path) -> dict[str, Any] | None:
    """The `adapter_config.json` beside a file of weights, None where there is none, and where the
    file has a name of its own: then it may be anybody's. Raises LoraError."""
    file = weights.parent / CONFIG
    if weights.stem not in PEFT_NAMES or not headers.is_file(file):
        return None
    try:
        with open(file, "rb") as stream:
            text = stream.read(_MAX_CONFIG + 1)
    except OSError as error:
        raise headers.unreadable(file, error) from None
    if len(text) > _MAX_CONFIG:
        raise LoraError(f"{printable(file, 200)} is far too long.")
    return _table(text.decode("utf-8", "replace"), CONFIG)


def of_metadata(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What diffusers noted in a file about its transformer, without prefix; None for nothing."""
    text = metadata.get(METADATA)
    if not text:
        return None
    values = _table(text, METADATA)
    for prefix in ("transformer.", "unet."):
        own = {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
        if own:
            return own
    own = {key: value for key, value in values.items() if "." not in key}
    return own or None


def _table(text: str, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise LoraError(f"The {what} of the LoRA is damaged.", "Download it again.")
    return values


def parsed(values: Mapping[str, Any], file: str) -> Strength:
    """The checked numbers of a PEFT configuration. Raises LoraError for other kinds of adapters."""
    shown = f"“{printable(file)}”"
    kind = values.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise LoraError(
            f"{shown} is a {printable(kind, 20)} of PEFT, which is not read.", "Take a plain LoRA."
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_STARTS):
        raise LoraError(
            f"{shown} was begun by {printable(start, 20)}, so it fits no model but its own.",
            "Convert it to a plain LoRA with PEFT.",
        )
    rank = _number(values.get("r", 8), "r", shown)
    ranks = _pattern(values.get("rank_pattern"), "rank_pattern", shown)
    if any(value < 1 for value in (rank, *ranks.values())):
        raise LoraError(f"{shown} notes a rank below 1.")
    return Strength(
        r=int(rank),
        alpha=_number(values.get("lora_alpha", PEFT_ALPHA), "lora_alpha", shown),
        rslora=bool(values.get("use_rslora")),
        ranks=ranks,
        alphas=_pattern(values.get("alpha_pattern"), "alpha_pattern", shown),
        dora=bool(values.get("use_dora")),
    )


def _number(value: Any, field: str, shown: str) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    # Whole numbers beyond 10^308 are none that a float can hold.
    if not plain or not -1e9 <= value <= 1e9:
        raise LoraError(f"{shown} notes {printable(value, 20)} as {field}, which is no number.")
    return float(value)


def _pattern(values: Any, field: str, shown: str) -> dict[str, float]:
    """PEFT reads the names as regular expressions; plain names are what trainers write, and an
    expression from a stranger may run for ever."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise LoraError(f"{shown} notes no table as {field}.")
    found: dict[str, float] = {}
    for key, value in values.items():
        name = key.removesuffix("$").replace("\\.", ".")
        if not _PLAIN.fullmatch(name.removeprefix("^")):
            raise LoraError(
                f"{shown} names layers by “{printable(key)}” in {field}, which is not read.",
                "Convert it with PEFT: only whole names of layers are read.",
            )
        found.setdefault(name, _number(value, field, shown))
    return found


def _looked_up(pattern: Mapping[str, float], layer: str, otherwise: float) -> float:
    """The first entry of `pattern` that names `layer`, as PEFT's `get_pattern_key` finds it."""
    if not pattern:
        return otherwise
    steps = layer.split(".")
    names = {f"^{layer}", *(".".join(steps[n:]) for n in range(len(steps)))}
    present = [name for name in names if name in pattern]
    if not present:
        return otherwise
    if len(present) == 1:
        return pattern[present[0]]
    return next(value for name, value in pattern.items() if name in names)


def factors(
    layout: LoraChanges,
    alphas: Mapping[str, float],
    metadata: Mapping[str, str],
    config: Mapping[str, Any] | None,
    file: str,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """What the change of each layer (by its name in the file) is multiplied by, and notes.

    `alphas`: the alpha tensors by their keys. `config`: the adapter_config.json beside the file.
    Taken is, in this order: alpha tensors; metadata; that configuration; 8 for files as PixArt's
    own scripts write them, which note it nowhere; else the rank, so that the factor is 1.
    """
    noted = [change for change in layout.changes if change.alpha is not None]
    if noted:
        found = {c.name: alphas[c.alpha] / c.rank for c in noted if c.alpha is not None}
        missing = len(layout.changes) - len(noted)
        found |= {c.name: 1.0 for c in layout.changes if c.alpha is None}
        note = f"{missing} of its layers do not say their strength (alpha): taken as their rank."
        return found, ((note,) if missing else ())
    values = of_metadata(metadata)
    if values is None and layout.family in ("peft", "script", "bare", "stacked"):
        values = dict(config) if config is not None else None
    if values is not None:
        strength = parsed(values, file)
        if strength.dora and any(change.magnitude is None for change in layout.changes):
            raise LoraError(
                f"“{printable(file)}” is a DoRA, and some of its layers have no magnitudes; it is"
                " not whole."
            )
        return {c.name: _factor(strength, c, file) for c in layout.changes}, ()
    return _guessed(layout)


def _factor(strength: Strength, change: Change, file: str) -> float:
    rank, factor = strength.of(change.name)
    if rank != change.rank:
        raise LoraError(
            f"“{printable(file)}” has the rank {change.rank} in “{change.name}”, and its"
            f" configuration says {rank:g}.",
            "The two do not belong together; take both from the same place.",
        )
    return factor


def _guessed(layout: LoraChanges) -> tuple[dict[str, float], tuple[str, ...]]:
    family, ranks = layout.family, {change.name: change.rank for change in layout.changes}
    if family in ("script", "stacked") or (family == "peft" and layout.every_matrix):
        note = (
            "It does not say its strength (alpha): taken as 8, which the training script of PixArt"
            " never changes. Try other weights if it is too strong or too weak."
        )
        if family == "script":
            # An option of that script leaves no trace in its files.
            weak = math.sqrt(Counter(ranks.values()).most_common(1)[0][0])
            note = (
                "It does not say its strength (alpha): taken as 8, as PixArt's script has it, and"
                f" without rsLoRA. If it was trained with --use_rslora it is {weak:.3g} times too"
                " weak: docs/loras.md says what to do."
            )
        return {name: PEFT_ALPHA / rank for name, rank in ranks.items()}, (note,)
    if family in ("peft", "underscored"):
        where = f" ({CONFIG} is missing)" if family == "peft" else ""
        note = f"It does not say its strength (alpha){where}: taken as its rank."
        return dict.fromkeys(ranks, 1.0), (note,)
    # Without a word, alpha is the rank for diffusers and ComfyUI alike.
    return dict.fromkeys(ranks, 1.0), ()
