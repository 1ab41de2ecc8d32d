"""The training methods, one row each: what is trained, from what, and what becomes of the result.

Whatever depends on the method reads it here, and a new method is one more row. No torch: recipes
are checked before anything heavy is loaded, and a method's own code is imported when it runs.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Data = Literal["pictures", "labels", "captions"]
Result = Literal["model", "lora", "controlnet", "part"]
Limits = Mapping[str, tuple[float, float]]

_TRANSFORMER: Limits = {
    "heads": (1, 64),
    "head_dim": (4, 256),
    "layers": (1, 64),
    "patch": (1, 8),
    "micro_conditions": (False, True),
    "interpolation_scale": (0.1, 16.0),
}
_SMALLEST_LATENTS = 64


@dataclass(frozen=True, kw_only=True)
class TrainingMethod:
    """One row. `trains` and `needs` are words for people.

    `data` is what every picture has to have. `result` is what a finished training is: a model of
    the catalog, a LoRA of the library, a ControlNet, or a part that other stages build on, which is
    published with their model; `published` names the folder of the workspace that it goes to, None
    for a part. `net` says which keys the table `net` of a recipe may have, with the least and the
    largest value. `frozen` are the bases that it reads and cannot do without, `bases` all that a
    `base.model` stands for, `goes_on_from` the base whose weights it trains further. `min_side` is
    the smallest side of its pictures, `squares` says that they have one shape, `shards` that its
    weights can be spread over processes. `verb` is the command that its recipes are for. `optional`
    are keys of a recipe that belong to this method and few others.
    """

    name: str
    title: str
    trains: str
    data: Data
    needs: str
    result: Result
    published: Literal["models", "loras"] | None
    task: str
    net: Limits
    bases: tuple[str, ...]
    goes_on_from: str
    frozen: tuple[str, ...] = ()
    min_side: int = 16
    squares: bool = False
    shards: bool = True
    verb: str = "text-to-image"
    optional: frozenset[str] = field(default_factory=frozenset)

    def load(self) -> Any:
        """The function (RunConfig, Sources) -> Task of the method; this loads torch."""
        module, _, function = self.task.partition(":")
        return getattr(importlib.import_module(module), function)


_ROWS = (
    TrainingMethod(
        name="vae",
        title="VAE",
        trains="an autoencoder between pictures and latents",
        data="pictures",
        needs="pictures; nothing is said of them",
        result="part",
        published=None,
        task="training.methods.vae:task",
        net={
            "channels": (4, 4096),
            "layers_per_block": (1, 8),
            "latent_channels": (1, 64),
            "norm_num_groups": (1, 64),
        },
        bases=("vae",),
        goes_on_from="vae",
        optional=frozenset({"parts", "objective.adversarial"}),
    ),
    TrainingMethod(
        name="text-encoder",
        title="Text encoder",
        trains="a small T5 and its tokenizer",
        data="captions",
        needs="captions; the pictures beside them are only counted",
        result="part",
        published=None,
        task="training.methods.text_encoder:task",
        net={
            "vocabulary": (64, 100_000),
            "d_model": (8, 8192),
            "d_kv": (4, 512),
            "d_ff": (8, 65_536),
            "num_layers": (1, 64),
            "num_decoder_layers": (1, 64),
            "num_heads": (1, 128),
        },
        bases=("text",),
        goes_on_from="text",
        optional=frozenset({"objective.keep"}),
    ),
    TrainingMethod(
        name="class-to-image",
        title="Class to image",
        trains="a class-conditional transformer (stage 1: what pixels look like)",
        data="labels",
        needs="pictures of at least two classes, all square",
        result="part",
        published=None,
        task="training.methods.class_to_image:task",
        net={k: v for k, v in _TRANSFORMER.items() if k != "micro_conditions"},
        # The transformer of a model knows no classes.
        bases=("vae",),
        goes_on_from="transformer",
        frozen=("vae",),
        min_side=_SMALLEST_LATENTS,
        squares=True,
    ),
    TrainingMethod(
        name="text-to-image",
        title="Text to image",
        trains="a PixArt transformer (stages 2 and 3: text and pictures, quality)",
        data="captions",
        needs="pictures with captions",
        result="model",
        published="models",
        task="training.methods.text_to_image:task",
        net=_TRANSFORMER,
        bases=("vae", "text", "transformer"),
        goes_on_from="transformer",
        frozen=("vae", "text"),
        min_side=_SMALLEST_LATENTS,
    ),
    TrainingMethod(
        name="lora",
        title="LoRA",
        trains="a small change of a model: a style, or a concept",
        data="captions",
        needs="pictures with captions",
        result="lora",
        published="loras",
        task="training.methods.lora:task",
        net={},
        bases=("vae", "text", "transformer"),
        goes_on_from="transformer",
        frozen=("vae", "text", "transformer"),
        min_side=_SMALLEST_LATENTS,
        shards=False,
        verb="lora",
        optional=frozenset({"lora"}),
    ),
    TrainingMethod(
        name="dreambooth",
        title="Dreambooth, as a LoRA",
        trains="a small change of a model that knows one subject",
        data="pictures",
        needs="3 to 30 pictures of the subject; captions where somebody has written them",
        result="lora",
        published="loras",
        task="training.methods.lora:subject_task",
        net={},
        bases=("vae", "text", "transformer"),
        goes_on_from="transformer",
        frozen=("vae", "text", "transformer"),
        min_side=_SMALLEST_LATENTS,
        shards=False,
        verb="dreambooth",
        optional=frozenset({"lora", "subject"}),
    ),
    TrainingMethod(
        name="dreambooth-net",
        title="Dreambooth, the whole net",
        trains="a whole PixArt transformer that knows one subject",
        data="pictures",
        needs="3 to 30 pictures of the subject; captions where somebody has written them",
        result="model",
        published="models",
        task="training.methods.lora:whole_task",
        net={},
        bases=("vae", "text", "transformer"),
        goes_on_from="transformer",
        frozen=("vae", "text", "transformer"),
        min_side=_SMALLEST_LATENTS,
        shards=False,
        verb="dreambooth",
        optional=frozenset({"subject"}),
    ),
)
METHODS: Mapping[str, TrainingMethod] = MappingProxyType({row.name: row for row in _ROWS})


def known(name: str) -> str:
    """`name`, if it is a method. Raises ValueError with the nearest name."""
    if name in METHODS:
        return name
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
    told = f"did you mean {near[0]}?" if near else f"the methods are {', '.join(METHODS)}"
    raise ValueError(f"there is no such method; {told}")
