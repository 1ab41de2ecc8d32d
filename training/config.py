"""What a training can be told: RunConfig, its parts and its limits.

Every number has its limits, so that a typing error is a sentence before the training and not a
fault after an hour. `training.recipes` reads it from files.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.errors import UnknownNameError, printable
from training.adapter_config import LoraConfig, SubjectConfig
from training.methods import table
from training.methods.table import TrainingMethod
from training.recipe_table import RecipeTable

STAGE_PREFIX = "stage:"

MODEL_PREFIX = "model:"

Scalar = bool | int | float | str | tuple[int, ...]


class DataConfig(RecipeTable):
    """Which pictures, and at which sizes.

    `source` is a path below the data folder of the command line. `bins` names a table of
    presets/sizes.toml, `side` asks for squares of that many pixels instead. `held_out` is the
    share of pictures kept for validation. `max_ratio` and `min_side` refuse pictures, `limit` takes
    only so many. `tokens` is the length at which captions are cut.
    """

    source: str
    side: int | None = Field(default=None, ge=16, le=4096)
    bins: str | None = None
    held_out: float = Field(default=0.02, ge=0, le=0.5)
    max_ratio: float = Field(default=4.0, ge=1, le=100)
    min_side: int = Field(default=16, ge=1, le=4096)
    limit: int | None = Field(default=None, ge=1)
    tokens: int = Field(default=120, ge=4, le=512)

    @model_validator(mode="after")
    def _one_size(self) -> DataConfig:
        if self.side is not None and self.bins is not None:
            raise ValueError("give either side or bins, not both")
        if self.side is not None and self.side % 16:
            raise ValueError("side must be a multiple of 16")
        return self


class BaseConfig(RecipeTable):
    """What the run starts from and reads.

    Each is a folder in diffusers layout, `stage:NAME` for an earlier stage, or `model:ID` for a
    model of the catalog. `model`, an id of the catalog, stands for all of them that the method uses
    and that have no entry of their own. Without a transformer (or a VAE, or a text encoder) of its
    own kind a run begins with random weights of the shape that `net` gives.
    """

    transformer: str | None = None
    vae: str | None = None
    text: str | None = None
    model: str | None = Field(default=None, min_length=1, max_length=80)


class OptimizerConfig(RecipeTable):
    """`lr` is that of one update; `clip` the largest norm of all gradients together."""

    name: Literal["adamw", "adamw8bit", "muon", "prodigy"] = "adamw"
    lr: float = Field(default=1e-4, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    clip: float = Field(default=1.0, gt=0, le=1e6)


class ScheduleConfig(RecipeTable):
    """The learning rate over the updates: `warmup` updates up, then `kind` down to `floor` x lr."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)
    floor: float = Field(default=0.0, ge=0, le=1)


class EmaConfig(RecipeTable):
    """Average of the weights; `decay` 0 keeps none. Warm-up: 1 - (1 + n)^-power until `decay`."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    power: float = Field(default=0.75, gt=0, le=1)


class ObjectiveConfig(RecipeTable):
    """What is minimised.

    `min_snr` is gamma of min-SNR weighting (arXiv 2303.09556), 0 turns it off; `clean` the largest
    weight of the error of the clean picture, which is added to that of the noise (0: not at all;
    without a limit, both together are the error of the velocity, arXiv 2202.00512); `variational`
    the weight of the term that trains the variance half (arXiv 2102.09672), 0 leaves it
    untrained; `dropout` the share of captions (or labels) that are replaced by the empty one;
    `middle` the share of timesteps that are drawn around those where things take shape (see
    `training.loop.rng.drawn`), the others evenly. `perceptual`, `kl` and `adversarial` (the weight
    of fooling a critic of patches, 0: there is none) belong to the VAE. For a text
    encoder, `neighbours` weighs that every feature tells the tokens around it, `keep` that features
    stay what `base.text` made of them.
    """

    min_snr: float = Field(default=0.0, ge=0, le=100)
    clean: float = Field(default=0.0, ge=0, le=1000)
    variational: float = Field(default=1.0, ge=0, le=10)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    middle: float = Field(default=0.0, ge=0, le=1)
    perceptual: float = Field(default=0.0, ge=0, le=100)
    kl: float = Field(default=1e-6, ge=0, le=1)
    adversarial: float = Field(default=0.0, ge=0, le=10)
    neighbours: float = Field(default=0.0, ge=0, le=100)
    keep: float = Field(default=0.0, ge=0, le=1000)

    @property
    def weights(self) -> dict[str, float]:
        """What `Diffusion.losses` takes."""
        return {"min_snr": self.min_snr, "clean": self.clean, "variational": self.variational}


class CheckpointConfig(RecipeTable):
    """Every how many updates, and how many of the newest stay besides the best."""

    every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1, le=1000)


class ValidationConfig(RecipeTable):
    """Every how many updates (0: never), on how many held-out pictures; `patience` stops early."""

    every: int = Field(default=500, ge=0)
    pictures: int = Field(default=64, ge=1, le=100_000)
    timesteps: tuple[int, ...] = (100, 350, 600, 850)
    patience: int | None = Field(default=None, ge=1)


class PreviewConfig(RecipeTable):
    """Sample pictures with fixed seeds every so many updates (0: never).

    In `prompts` {subject} is word and kind of a subject, {kind} the kind alone.
    """

    every: int = Field(default=0, ge=0)
    prompts: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=20, ge=2, le=200)
    guidance: float = Field(default=4.5, ge=0, le=30)


class RunConfig(RecipeTable):
    """One run, resolved: what the run folder keeps as config.json.

    `batch` counts pictures per process and micro-batch; one update sees batch x accumulate x
    processes pictures. `shard` spreads weights, gradients and optimizer states over the processes.
    `text_precision` is how a frozen T5 computes the features of the captions: in fp32, or with less
    memory and other numbers. `parts` "decoder" leaves the encoder of a VAE as it is, so that its
    latents stay valid.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    title: str = Field(default="", max_length=120)
    method: Annotated[str, AfterValidator(table.known)]
    seed: int = Field(default=0, ge=0, lt=2**32)
    steps: int = Field(ge=1, le=100_000_000)
    batch: int = Field(default=8, ge=1, le=65_536)
    accumulate: int = Field(default=1, ge=1, le=4096)
    workers: int = Field(default=0, ge=0, le=64)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    text_precision: Literal["fp32", "bf16", "int8", "nf4"] = "fp32"
    gradient_checkpointing: bool = False
    shard: bool = False
    parts: Literal["all", "decoder"] = "all"
    log_every: int = Field(default=20, ge=1)
    data: DataConfig
    base: BaseConfig = BaseConfig()
    net: dict[str, Scalar] = Field(default_factory=dict)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    preview: PreviewConfig = PreviewConfig()
    lora: LoraConfig = LoraConfig()
    subject: SubjectConfig = SubjectConfig()

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        if self.precision == "fp16" and self.optimizer.name == "muon":
            raise ValueError("fp16 scales gradients for one optimizer only; use bf16 with muon")
        if self.shard and (self.optimizer.name != "adamw" or self.precision == "fp16"):
            raise ValueError("shard goes with adamw in bf16 or fp32")
        row, begun = self.row, self.row.goes_on_from in self.bases
        if self.parts == "decoder" and ("parts" not in row.optional or not begun):
            raise ValueError("parts = decoder needs the method vae and a base.vae to go on from")
        if self.objective.adversarial and "objective.adversarial" not in row.optional:
            raise ValueError("objective.adversarial belongs to the method vae")
        if "objective.keep" in row.optional:
            if self.objective.keep and not begun:
                raise ValueError("objective.keep needs a base.text whose features are kept")
            if self.net and begun:
                raise ValueError("base.text has a shape of its own; leave net out")
        self._check_adapter(row, begun)
        if row.squares and self.data.bins is not None:
            raise ValueError(f"{row.name} trains on squares; give data.side")
        if self.data.side is not None and self.data.side < row.min_side:
            raise ValueError(f"data.side must be at least {row.min_side} for a transformer")
        if not self.validation.timesteps:
            raise ValueError("validation.timesteps is empty")
        if any(not 0 <= t < 1000 for t in self.validation.timesteps):
            raise ValueError("validation timesteps lie between 0 and 999")
        return self

    def _check_adapter(self, row: TrainingMethod, begun: bool) -> None:
        """Raises ValueError for tables that the method does not read, or cannot do without."""
        # Not by what was given: the file of a run gives everything.
        given = {"lora": self.lora != LoraConfig(), "subject": self.subject != SubjectConfig()}
        for name, is_given in given.items():
            if is_given and name not in row.optional:
                users = [one.name for one in table.METHODS.values() if name in one.optional]
                raise ValueError(f"the table {name} belongs to {' and '.join(users)}")
        if row.goes_on_from in row.frozen and not begun:
            raise ValueError(f"{row.name} changes a model; name it with base.model")
        if self.shard and not row.shards:
            raise ValueError(f"shard does not go with {row.name}")
        if "subject" in row.optional and not self.subject.word:
            raise ValueError("subject.word is empty; take a word that means nothing yet, as sks")
        if "subject" in row.optional and self.subject.prior != "none" and not self.subject.kind:
            raise ValueError("subject.kind is empty: say what it is one of, as dog")

    @model_validator(mode="after")
    def _net(self) -> RunConfig:
        known = self.row.net
        if self.net and not known:
            raise ValueError(f"the net of {self.row.name} is that of its base; leave net out")
        for key, value in self.net.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.4) or list(known)
                raise ValueError(f"net has no {printable(key)} here; did you mean {near[0]}?")
            low, high = known[key]
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                kinds = (int, float) if isinstance(low, float) else (type(low),)
                fits = type(number) in kinds and low <= float(number) <= high
                if not fits:
                    raise ValueError(f"net.{key} must lie between {low} and {high}")
            if isinstance(value, tuple) != (key == "channels"):
                raise ValueError(f"net.{key} is {'a list' if key == 'channels' else 'one number'}")
        if {"heads", "head_dim"} <= set(self.net):
            width = int(self.net["heads"]) * int(self.net["head_dim"])  # type: ignore[arg-type]
            if width % 4:
                raise ValueError("heads x head_dim must be divisible by 4")
            if self.net.get("micro_conditions") and width % 3:
                raise ValueError("with micro_conditions, heads x head_dim must be divisible by 3")
        channels = self.net.get("channels", (32, 64, 128, 128))
        groups = self.net.get("norm_num_groups", 16)
        if isinstance(channels, tuple) and isinstance(groups, int):
            if len(channels) != 4:
                raise ValueError("net.channels has four numbers: one latent is 8 pixels wide")
            if "norm_num_groups" in known and any(c % groups for c in channels):
                raise ValueError(f"every one of net.channels must be divisible by {groups}")
        return self

    @property
    def row(self) -> TrainingMethod:
        """The method's row of the table."""
        return table.METHODS[self.method]

    @property
    def bases(self) -> dict[str, str]:
        """Where each base comes from, by name; those that `base.model` stands for among them."""
        own = {name: getattr(self.base, name) for name in ("transformer", "vae", "text")}
        named = {name: value for name, value in own.items() if value is not None}
        if self.base.model is None:
            return named
        return {name: MODEL_PREFIX + self.base.model for name in self.row.bases} | named

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """What the sample pictures show."""
        names = {"{subject}": self.subject.subject, "{kind}": self.subject.kind}
        prompts = []
        for prompt in self.preview.prompts:
            for name, meant in names.items():
                prompt = prompt.replace(name, meant)
            prompts.append(prompt)
        return tuple(prompts)

    @property
    def pictures_per_update(self) -> int:
        """Pictures that one process reads for one update."""
        return self.batch * self.accumulate


class PublishConfig(RecipeTable):
    """How the result is called: a model of the catalog, or a LoRA of the library.

    Without this table nothing is published. `bins`, `size`, `max_side` and `precision` are those
    of a model; `trigger` are the words that call up what a LoRA has learned.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    title: str = Field(max_length=80)
    summary: str = Field(default="", max_length=400)
    licence: str = Field(default="not stated", max_length=200)
    bins: str = "1024"
    size: str = "1024x1024"
    max_side: int = Field(default=2048, ge=64, le=4096)
    examples: tuple[str, ...] = ()
    trigger: str = Field(default="", max_length=200)
    precision: Literal["float32", "float16", "bfloat16"] = "float16"


class TrainingRecipe(RecipeTable):
    """The stages of a recipe in order, and how their result is called."""

    title: str
    stages: tuple[RunConfig, ...]
    publish: PublishConfig | None = None

    def stage(self, name: str) -> RunConfig:
        """The stage called `name`. Raises UnknownNameError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UnknownNameError("stage", "stage", name, [s.name for s in self.stages])


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What changed between two runs, as `key: old -> new`; a longer run is not a difference."""
    free = {"steps", "log_every", "checkpoints", "preview", "workers", "title"}
    before, after = old.model_dump(), new.model_dump()
    changed = []
    for key in before:
        if key not in free and before[key] != after[key]:
            changed += _changes(key, before[key], after[key])
    return changed


def _changes(key: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        return [
            line
            for name in names
            if old.get(name) != new.get(name)
            for line in _changes(f"{key}.{name}", old.get(name), new.get(name))
        ]
    return [f"{key}: {old} -> {new}"]
