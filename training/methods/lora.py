"""A model learns a little more: a LoRA on captions, or a subject from a handful of pictures.

Dreambooth (arXiv 2208.12242) teaches a rare word. Its prior may need no pictures of the kind: of a
share of the pictures the net is asked about the kind, and its answer is held to what it was before
it learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from lora_manager import card, files
from pipelines.text.encoder import batch as padded
from training.adapter_config import SubjectConfig
from training.config import RunConfig
from training.data import features
from training.data.sources import Sources
from training.loop.devices import computes_in
from training.loop.rng import drawn, generator
from training.loop.task import Batch, Samples, Task
from training.methods import adapted, subject_check
from training.methods import subject_photos as photos
from training.methods.adapted import lora_of, with_lora, without
from training.methods.kind_pictures import OF_KIND, with_kind
from training.methods.text_to_image import CaptionData, CaptionLoss, predicted, replaced

RESULT = "lora.safetensors"


def task(config: RunConfig, sources: Sources) -> Task:
    """A LoRA that learns the captions of the manifest."""
    torch.manual_seed(config.seed)
    # What no layer can have is said before the captions are encoded.
    adapted.parameters(sources.unfilled_transformer(), config.lora)
    data = CaptionData.read(config, sources, tells_bucket=True)
    net = with_lora(sources.transformer(computes_in(config)), config.lora)
    loss = CaptionLoss(net, data.null, config)
    return data.task(config, loss, sources.square, _publisher(config, sources, net))


def subject_task(config: RunConfig, sources: Sources) -> Task:
    """A LoRA that learns a subject."""
    torch.manual_seed(config.seed)
    adapted.parameters(sources.unfilled_transformer(), config.lora)
    data, samples, plain = _of_subject(config, sources, computes_in(config))
    net = with_lora(plain, config.lora)
    loss = SubjectLoss(net, data, config)
    made = data.task(config, loss, sources.square, _publisher(config, sources, net))
    return replace(made, samples=samples)


def whole_task(config: RunConfig, sources: Sources) -> Task:
    """A whole net that learns a subject."""
    torch.manual_seed(config.seed)
    data, samples, net = _of_subject(config, sources, torch.float32)
    before = None
    if config.subject.prior == "base":
        before = sources.transformer(computes_in(config))
    net.requires_grad_(True).train()

    def publish(folder: Path) -> Mapping[str, Any]:
        net.save_pretrained(folder / "transformer")
        return {"parameters": sum(p.numel() for p in net.parameters())}

    made = data.task(config, SubjectLoss(net, data, config, before), sources.square, publish)
    return replace(made, samples=samples)


def _of_subject(
    config: RunConfig, sources: Sources, dtype: torch.dtype
) -> tuple[CaptionData, Samples, PixArtTransformer2DModel]:
    """What is read, what is learned from, and the net that has not learned yet."""
    subject = config.subject
    subject_check.check(config, sources)
    plain = photos.colours(sources) if subject.wordings or subject.places else {}
    moved = [photos.moved_captions(subject, colour) for colour in sorted(set(plain.values()))]
    data = CaptionData.read(
        config,
        sources,
        otherwise=lambda sample: photos.captions(subject, plain.get(sample.path)),
        more=(
            subject.of_the_kind,
            *subject.keep,
            *(text for places in moved for texts in places.values() for text in texts),
        ),
        tells_bucket=True,
    )
    net = sources.transformer(dtype)
    samples: Samples = data.samples
    if subject.prior == "pictures":
        samples = with_kind(config, sources, data, net)
    return data, photos.with_moved(config, sources, data, samples, plain), net


class SubjectLoss(CaptionLoss):
    """The loss of a subject, and of what its kind was before.

    `before` is the net as it was; without one, `transformer` has a LoRA that can be left out.
    """

    def __init__(
        self,
        transformer: PixArtTransformer2DModel,
        data: CaptionData,
        config: RunConfig,
        before: PixArtTransformer2DModel | None = None,
    ) -> None:
        super().__init__(transformer, data.null, config)
        self._subject: SubjectConfig = config.subject
        self._before = before
        subject = config.subject
        asked = padded([data.captions.features(c) for c in (subject.of_the_kind, *subject.keep)])
        self.register_buffer("asked", asked.embeds, persistent=False)
        self.register_buffer("asked_mask", asked.mask, persistent=False)

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        """Per picture; "prior" is the error about the kind, 0 for pictures of which it was not
        asked."""
        # Validation is about the subject.
        if self._subject.prior == "none" or timestep is not None:
            return super().forward(batch, seed, timestep)
        if OF_KIND in batch:
            losses = super().forward(batch, seed, timestep)
            prior = torch.where(batch[OF_KIND], losses["loss"], torch.zeros_like(losses["loss"]))
            weighted = self._subject.weight * losses["loss"]
            losses["loss"] = torch.where(batch[OF_KIND], weighted, losses["loss"])
            return losses | {"prior": prior}
        latents: Tensor = batch["latents"]
        draw = generator(seed)
        noise, timesteps = drawn(latents, draw, timestep, middle=self.objective.middle)
        dropped = torch.rand(len(latents), generator=draw) < self.objective.dropout
        asked = torch.rand(len(latents), generator=draw) < self._subject.share
        null: Tensor = self.null  # type: ignore[assignment]
        embeds, mask = replaced(batch["embeds"], batch["mask"], null, dropped)
        embeds, mask = self._questions(embeds, mask, asked, draw)
        noised = self.diffusion.noised(latents, noise, timesteps)
        given = (batch, noised, timesteps)
        # First: turning the layers off touches their gradients.
        answered = self._answered(asked, given, embeds, mask)
        output = predicted(self.transformer, *given, embeds=embeds, mask=mask)
        losses = self.diffusion.losses(
            output, latents, noise, timesteps, **self.objective.weights
        ).by_name()
        channels = latents.shape[1]
        chosen = asked.to(latents.device)
        error = (output[:, :channels].float() - answered).square().flatten(1).mean(1)
        prior = torch.where(chosen, error, torch.zeros_like(error))
        # As much as the same error about a picture would count at that noise.
        objective = self.objective
        scale = self.diffusion.weight(timesteps, min_snr=objective.min_snr, clean=objective.clean)
        weighted = self._subject.weight * scale * prior
        losses["loss"] = torch.where(chosen, weighted, losses["loss"])
        return losses | {"prior": prior}

    def _questions(
        self, embeds: Tensor, mask: Tensor, asked: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Texts (B, T, C) with their mask (B, T), and for those `asked` what is asked instead."""
        others: Tensor = self.asked  # type: ignore[assignment]
        masks: Tensor = self.asked_mask  # type: ignore[assignment]
        for row in range(len(asked)):
            which = int(torch.randint(0, len(others), (1,), generator=draw))
            if asked[row]:
                text = others[which][: int(masks[which].sum())]
                chosen = torch.arange(len(asked)) == row
                embeds, mask = replaced(embeds, mask, text, chosen)
        return embeds, mask

    @torch.no_grad()
    def _answered(
        self, asked: Tensor, given: tuple[Batch, Tensor, Tensor], embeds: Tensor, mask: Tensor
    ) -> Tensor:
        """The noise that the net saw before it learned (B, C, h, w), 0 where nobody asks."""
        batch, noised, timesteps = given
        result = torch.zeros_like(noised, dtype=torch.float32)
        rows = asked.nonzero().flatten().to(noised.device)
        if not len(rows):
            return result
        some = {name: batch[name][rows] for name in ("resolution", "aspect_ratio")}
        texts = {"embeds": embeds[rows], "mask": mask[rows]}
        noised, timesteps = noised[rows], timesteps.to(rows.device)[rows]
        if self._before is not None:
            output = predicted(self._before, some, noised, timesteps, **texts)
        else:
            with without(self.transformer):
                output = predicted(self.transformer, some, noised, timesteps, **texts)
        result[rows] = output[:, : noised.shape[1]].float()
        return result


def _publisher(config: RunConfig, sources: Sources, net: nn.Module) -> Any:
    """What writes the LoRA into the result of a run."""
    base = sources.base("transformer")
    assert base is not None
    pictures = len(sources.manifest.samples)
    wanted = config.lora
    noted = {
        card.BASE: base.name,
        card.RUN: identity(config, sources.manifest.digest),
        "pixart_studio.base_weights": features.weights_digest(base.part("transformer")),
        "pixart_studio.steps": str(config.steps),
        "pixart_studio.pictures": str(pictures),
        "pixart_studio.seed": str(config.seed),
        "pixart_studio.rank": str(wanted.rank),
        "pixart_studio.alpha": f"{wanted.alpha or wanted.rank:g}",
        "pixart_studio.targets": wanted.targets,
        "pixart_studio.dora": str(wanted.dora).lower(),
    }

    def publish(folder: Path) -> Mapping[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        lora = lora_of(net)
        files.write(folder / RESULT, lora, noted)
        return {"layers": len(lora.pairs), "rank": wanted.rank}

    return publish


def identity(config: RunConfig, data: str) -> str:
    """What tells one training from another: its recipe, but for its length, and its pictures."""
    rest = {"steps", "log_every", "checkpoints", "preview"}
    # Without defaults: a key that a later version knows must not make another training of it.
    told = config.model_dump(mode="json", exclude=rest, exclude_defaults=True)
    return hashlib.sha256(json.dumps([told, data], sort_keys=True).encode()).hexdigest()[:16]
