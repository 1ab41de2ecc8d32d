"""Every key of a recipe with its kind, limits, default and a sentence of help, read off the
declaration in `training.config`: what a form shows, and what the documents list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipelines.errors import RequestError, printable
from training.config import RunConfig

FieldKind = Literal["whole", "number", "switch", "choice", "text", "lines", "numbers", "table"]
MAX_TEXT = 4000

HELP: Mapping[str, str] = {
    "name": "What the stage is called.",
    "title": "What the stage is called, in words.",
    "method": "What is trained, and how.",
    "seed": "Decides every draw: order, noise, timesteps, dropout.",
    "steps": "Updates of the weights.",
    "batch": "Pictures that are in memory together.",
    "accumulate": "Batches that one update sees one after another, in place of a larger batch.",
    "workers": "Processes that read pictures; 0 reads in the training itself.",
    "precision": "bf16 or fp16 halve the memory of the products; fp32 computes exactly.",
    "text_precision": "How T5 reads the captions: int8 and nf4 need less memory.",
    "gradient_checkpointing": "Computes each block twice and keeps far less in memory.",
    "shard": "Spreads weights, gradients and optimizer states over several GPUs.",
    "parts": "Only for a VAE: its decoder alone, or all of it.",
    "log_every": "Updates between two lines of the log.",
    "data.source": "The folder of the pictures, below the data folder.",
    "data.side": "Trains on squares of that many pixels; empty takes the model's own sizes.",
    "data.bins": "A table of sizes; empty takes the model's own.",
    "data.held_out": "Share of the pictures that is kept for the validation.",
    "data.max_ratio": "Pictures that are longer for their width are left out.",
    "data.min_side": "Pictures with a shorter side, in pixels, are left out.",
    "data.limit": "Only so many pictures; empty takes all.",
    "data.tokens": "Captions are cut after so many tokens.",
    "base.transformer": "A transformer to go on from, in place of the model's.",
    "base.vae": "A VAE in place of the model's.",
    "base.text": "A text encoder in place of the model's.",
    "base.model": "The model that learns.",
    "net": "The shape of a net that begins with random weights.",
    "optimizer.name": "AdamW; with 8-bit states; Muon; or Prodigy, which finds its own rate.",
    "optimizer.lr": "The learning rate: how far one update goes.",
    "optimizer.weight_decay": "Pulls the weights towards zero.",
    "optimizer.beta1": "How long the mean of the gradients remembers.",
    "optimizer.beta2": "How long their size is remembered.",
    "optimizer.eps": "Keeps the smallest gradients from being divided by nothing.",
    "optimizer.clip": "The largest norm of all gradients together.",
    "schedule.kind": "How the learning rate falls behind the warm-up.",
    "schedule.warmup": "Updates until the learning rate is reached.",
    "schedule.floor": "The share of the learning rate at which a falling schedule ends.",
    "ema.decay": "How much the average of the weights keeps; 0 keeps no average.",
    "ema.power": "How fast the average begins to keep.",
    "objective.min_snr": "Gamma of min-SNR weighting; 0 turns it off.",
    "objective.clean": "Weight of the error of the clean picture.",
    "objective.variational": "Weight of the term that trains the variance.",
    "objective.dropout": "Share of the captions that are left empty, for guidance.",
    "objective.middle": "Share of the timesteps that are drawn where shapes are made.",
    "objective.perceptual": "Weight of VGG features, for a VAE.",
    "objective.kl": "Weight of the KL term, for a VAE.",
    "objective.adversarial": "Weight of fooling a critic of patches, for a VAE.",
    "objective.neighbours": "For a text encoder: features tell the tokens around them.",
    "objective.keep": "For a text encoder: features stay what the base made of them.",
    "checkpoints.every": "Updates between two checkpoints.",
    "checkpoints.keep": "How many of the newest checkpoints stay.",
    "validation.every": "Updates between two validations; 0 does none.",
    "validation.pictures": "Held-out pictures that the validation looks at.",
    "validation.timesteps": "The timesteps at which it measures.",
    "validation.patience": "Ends the training after so many validations without a better one.",
    "preview.every": "Updates between two sheets of samples; 0 paints none.",
    "preview.prompts": "What the samples show, one prompt a line.",
    "preview.seed": "The seed of the first sample.",
    "preview.steps": "Steps of the sampler.",
    "preview.guidance": "How closely samples follow their prompt.",
    "lora.rank": "How much the LoRA can hold; its file grows with it.",
    "lora.alpha": "The LoRA is added alpha / rank times; empty is once.",
    "lora.targets": "Which layers learn.",
    "lora.ranks": "Other ranks for layers whose path ends so, as attn2.to_k = 4.",
    "lora.dora": "Learns the size of every weight by itself (DoRA): slower, often closer.",
    "lora.dropout": "Share of the input that the LoRA is not shown.",
    "subject.word": "A word that means nothing yet.",
    "subject.kind": "What the subject is one of.",
    "subject.template": "The caption of photos that have none; {subject} is word and kind.",
    "subject.wordings": "Captions of photos on a plain ground: {subject}, {colour}, {a_colour}.",
    "subject.places": "Captions of photos that are shown at a side, which is {place}.",
    "subject.moved": "Share of the photos on a plain ground that are shown at a side.",
    "subject.keep": "Other captions that the base prior asks about, one a line.",
    "subject.prior": "What keeps the kind as it was: the base, painted pictures, or nothing.",
    "subject.share": "Share of the pictures that is about the kind.",
    "subject.pictures": "How many pictures of the kind are painted, where the prior needs them.",
    "subject.weight": "Weight of the error about the kind.",
}


@dataclass(frozen=True, kw_only=True)
class RecipeField:
    """One key of a recipe. `low` and `high` are limits, `above` and `below` those that a value may
    not reach; `optional` may be left empty."""

    key: str
    kind: FieldKind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    optional: bool = False

    def parse(self, text: str) -> Any:
        """What a person typed, as TOML would have it; None for nothing. Raises RequestError."""
        typed = text.strip()
        if len(typed) > MAX_TEXT:
            raise self._refused("it is too long")
        if not typed and self.kind not in ("lines", "table", "text"):
            if self.optional:
                return None
            raise self._refused("it is empty")
        try:
            return self._parsed(typed)
        except ValueError:
            raise self._refused(f"“{printable(typed, 40)}” is {self._wrong}") from None

    def _parsed(self, typed: str) -> Any:
        match self.kind:
            case "whole":
                return int(typed)
            case "number":
                return float(typed)
            case "switch":
                return {"true": True, "false": False}.get(typed.lower(), typed)
            case "lines":
                return [line.strip() for line in typed.splitlines() if line.strip()]
            case "numbers":
                return [int(part) for part in typed.replace(",", " ").split()]
            case "table":
                pairs = [line.partition("=") for line in typed.splitlines() if line.strip()]
                return {name.strip(): int(value) for name, _, value in pairs}
        return typed or (None if self.optional else "")

    @property
    def _wrong(self) -> str:
        return {"table": "not of the form name = number"}.get(self.kind, "no number")

    def _refused(self, why: str) -> RequestError:
        return RequestError(self.key, f"{self.key}: {why}.", self.help)

    def written(self, value: Any) -> str:
        """A value as the form shows it, which `parse` reads back."""
        match value:
            case None:
                return ""
            case bool():
                return str(value).lower()
            case float():
                return f"{value:g}"
            case tuple() | list():
                return ("\n" if self.kind == "lines" else ", ").join(map(str, value))
            case dict():
                return "\n".join(f"{name} = {number}" for name, number in value.items())
        return str(value)


def fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[RecipeField]:
    """Every key of a stage, in the order of the declaration."""
    for name, info in model.model_fields.items():
        key, kind = prefix + name, info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{key}.")
            continue
        default = info.get_default(call_default_factory=True)
        limits = {
            word: getattr(one, name)
            for one in info.metadata
            for word, name in (("low", "ge"), ("high", "le"), ("above", "gt"), ("below", "lt"))
            if getattr(one, name, None) is not None
        }
        yield RecipeField(
            key=key,
            help=HELP[key],
            default=None if default is PydanticUndefined else default,
            **_kind(kind),
            **limits,
        )


def _kind(annotation: Any) -> dict[str, Any]:
    """What an annotation allows."""
    options = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType) and NoneType in options:
        (other,) = [one for one in options if one is not NoneType]
        return _kind(other) | {"optional": True}
    if get_origin(annotation) is Literal:
        return {"kind": "choice", "choices": options}
    if get_origin(annotation) is dict:
        return {"kind": "table"}
    if get_origin(annotation) is tuple:
        return {"kind": "numbers" if options[0] is int else "lines"}
    kinds: dict[Any, FieldKind] = {bool: "switch", int: "whole", float: "number"}
    return {"kind": kinds.get(annotation, "text")}
