"""One model in memory: its parts come when they are needed and go when the plan says so."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from pipelines.catalog import ModelSpec
from pipelines.denoising import active_loras
from pipelines.denoising.active_loras import ActiveLora
from pipelines.denoising.preview import Preview
from pipelines.denoising.transformer import Transformer
from pipelines.memory.planning import DevicePlan
from pipelines.models import loader
from pipelines.progress import Progress, Report, Stage
from pipelines.text import prompt_files, text_loader
from pipelines.text.encoder import TextEncoder
from pipelines.text.prompt_cache import PromptCache

ENCODERS = "encoders"


class Loaded:
    """A model under a plan. Its files were looked at; weights are read by the first use."""

    def __init__(self, model: ModelSpec, plan: DevicePlan, cache: Path | None) -> None:
        """`cache` is the folder of encoded prompts and quantised encoders.

        Raises ModelError for a model whose parts are damaged or do not fit together.
        """
        self.model = model
        self.plan = plan
        self.fingerprint = loader.fingerprint(model)
        self.betas: dict[str, Any] = loader.check(model)
        self.text = TextEncoder(
            model,
            lambda: text_loader.load(model, plan, cache and cache / ENCODERS),
            device=text_loader.device(plan),
            identity=text_loader.identity(model, plan),
            cache=PromptCache(cache / prompt_files.FOLDER) if cache else None,
        )
        self.weights = self._plain = loader.weights_hash(model)
        """What the weights are called that paint, those of LoRAs included."""
        self._active_loras: tuple[ActiveLora, ...] = ()
        self._transformer: Transformer | None = None
        self._vae: AutoencoderKL | None = None
        self._preview: Preview | None = None

    def with_loras(self, active: tuple[ActiveLora, ...]) -> Loaded:
        """The same, with these LoRAs on its transformer and no others. Raises ModelError."""
        if active != self._active_loras:
            weights = active_loras.digest(self._plain, active)
            self._active_loras, self.weights = active, weights
            # Read again by the next use: what was rounded away cannot be taken off.
            self._transformer = None
            free(self.device)
        return self

    @property
    def lora_hashes(self) -> tuple[tuple[str, str], ...]:
        """The LoRAs on its transformer by name, each with the SHA-256 of its file."""
        return tuple((one.use.name, one.content) for one in self._active_loras)

    @property
    def device(self) -> torch.device:
        """Where the transformer and the VAE work."""
        return torch.device(self.plan.device)

    @property
    def transformer(self) -> Transformer:
        """The transformer, read from its files if need be. Raises ModelError."""
        if self._transformer is None:
            net = loader.transformer(self.model, self.plan)
            active_loras.apply(net, self._active_loras)
            compiler = "inductor" if self.plan.compiled else None
            self._transformer = Transformer(net, owned=True, compiler=compiler)
        return self._transformer

    @property
    def vae(self) -> AutoencoderKL:
        """The VAE, read from its files if need be. Raises ModelError."""
        if self._vae is None:
            self._vae = loader.vae(self.model, self.plan)
        return self._vae

    @property
    def preview(self) -> Preview:
        """What shows latents while they are denoised."""
        if self._preview is None:
            with loader.faults(self.model, "vae"):
                self._preview = Preview(self.vae)
        return self._preview

    def read(self, report: Report, plan: DevicePlan) -> None:
        """Reads what denoises, with a word about it where that takes time."""
        if self._transformer is None or self._preview is None:
            report(Progress(stage=Stage.LOADING))
        # The preview first: it is made with the VAE, which may then have to go.
        assert self.preview is not None
        if plan.one_by_one:
            self._vae = None
            free(self.device)
        assert self.transformer is not None

    def before_text(self, plan: DevicePlan) -> None:
        """Makes room for T5 where the plan has the parts come one by one."""
        if plan.one_by_one:
            self.set_aside()

    def after_text(self) -> None:
        """Frees T5 unless the plan keeps it."""
        if not self.plan.keeps_text:
            self.text.release()
            free(self.device)

    def before_pixels(self, plan: DevicePlan) -> None:
        """Makes room for the VAE at full size where the plan says so."""
        if plan.decodes_alone:
            self._transformer = None
            free(self.device)

    def set_aside(self) -> None:
        """Frees what paints; it is read again by the next use."""
        self._transformer = self._vae = None
        free(self.device)


def free(device: torch.device) -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # Main memory that was pinned for streaming: a gigabyte with the real T5.
        torch._C._host_emptyCache()
