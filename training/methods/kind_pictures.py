"""Pictures of the kind of a subject, painted by the model before it learns.

The prior of Dreambooth as it was published (arXiv 2208.12242, section 3.2): the model goes on
learning what it paints of the kind itself. They are kept as latents, painted once and read again
by every training of the same model, words and sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from pipelines.progress import Progress, Stage
from training.config import RunConfig
from training.data import features
from training.data.features import FeatureStore
from training.data.sources import Sources, Stopped
from training.loop.devices import lent
from training.loop.order import Pick
from training.methods.latent_data import LatentSamples
from training.methods.text_to_image import CaptionData
from training.objective import LINEAR
from training.sampling import SamplingOptions, sampled

OF_KIND = "of_kind"
_STEPS, _GUIDANCE = 20, 4.5


@dataclass(frozen=True, kw_only=True)
class WithKind:
    """`samples`, of which a `share` is replaced by pictures of the kind of the same size.

    `names` are those of the pictures in `latents` by the shape of a latent (h, w), `embeds` (T, C)
    the words about them.
    """

    samples: LatentSamples
    latents: FeatureStore
    names: Mapping[tuple[int, int], tuple[str, ...]]
    embeds: Tensor
    share: float

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        item = self.samples[pick]
        dice = random.Random(f"{pick.key} of the kind")
        chosen = dice.random() < self.share
        if chosen:
            height, width = item["latents"].shape[-2:]
            name = dice.choice(self.names[height, width])
            item |= {
                "ids": f"of the kind: {name}",
                "latents": self.latents.read(name) * self.samples.scale,
                "embeds": self.embeds,
            }
        return item | {OF_KIND: torch.tensor(chosen)}


def with_kind(
    config: RunConfig, sources: Sources, data: CaptionData, net: PixArtTransformer2DModel
) -> WithKind:
    """The samples of a subject among those of its kind, which `net` paints where they are missing.

    Raises StudioError, Stopped.
    """
    subject, samples = config.subject, data.samples
    words = data.captions.features(subject.of_the_kind)
    store = sources.store(f"kind-{_digest(config, sources)}")
    names: dict[tuple[int, int], tuple[str, ...]] = {}
    wanted = []
    for bucket in samples.buckets:
        count = math.ceil(subject.pictures * len(bucket.samples) / len(samples))
        own = [(f"{number:05d}@{bucket.size}", number, bucket.size) for number in range(count)]
        names[bucket.size.height // 8, bucket.size.width // 8] = tuple(name for name, _, _ in own)
        wanted += [one for one in own if one[0] not in store]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted:
        with lent(net, device), torch.inference_mode():
            for done, (name, number, size) in enumerate(wanted):
                if sources.should_stop():
                    raise Stopped
                sources.report(
                    Progress(
                        stage=Stage.FEATURES, done=done, total=len(wanted), note=subject.of_the_kind
                    )
                )
                options = SamplingOptions(
                    seed=config.seed + number, steps=_STEPS, guidance=_GUIDANCE, size=size
                )
                (latents,) = sampled(net, [words], data.null, options, LINEAR)
                store.add({name: latents[0].float().cpu() / samples.scale})
    return WithKind(samples=samples, latents=store, names=names, embeds=words, share=subject.share)


def _digest(config: RunConfig, sources: Sources) -> str:
    base = sources.base("transformer")
    assert base is not None
    told = [
        features.weights_digest(base.part("transformer")),
        features.weights_digest(base.part("vae")),
        [config.subject.of_the_kind, config.seed, _STEPS, _GUIDANCE, config.text_precision],
        config.precision,
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
