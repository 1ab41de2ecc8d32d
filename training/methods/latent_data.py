"""Latents with captions or labels, in aspect buckets: the data of both transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.text.encoder import batch as padded
from training.data.buckets import Bucket, batches
from training.data.features import FeatureStore, latent_key
from training.data.manifest import Sample
from training.loop.order import Pick, ReadingOrder
from training.loop.task import Batch


@dataclass(frozen=True, kw_only=True)
class LatentSamples:
    """Pictures as scaled latents (4, h, w), with what `describe` says of a sample.

    `describe` gets the sample and the dice of the pick, to choose among captions. The model is told
    the size of the original, as PixArt-α was, or with `tells_bucket` the one that it paints: what
    is told when somebody paints, so a model that only learns a little more is told that.
    """

    buckets: Sequence[Bucket]
    latents: FeatureStore
    scale: float
    describe: Callable[[Sample, random.Random], dict[str, Any]]
    tells_bucket: bool = False

    def __len__(self) -> int:
        return sum(len(bucket.samples) for bucket in self.buckets)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        sample, bucket = self._find(pick.index)
        shown = bucket.size if self.tells_bucket else sample
        return {
            "ids": sample.path,
            "latents": self.latents.read(latent_key(sample, bucket)) * self.scale,
            "resolution": torch.tensor([float(shown.height), float(shown.width)]),
            "aspect_ratio": torch.tensor([bucket.size.height / bucket.size.width]),
            **self.describe(sample, random.Random(pick.key)),
        }

    def _find(self, index: int) -> tuple[Sample, Bucket]:
        for bucket in self.buckets:
            if index < len(bucket.samples):
                return bucket.samples[index], bucket
            index -= len(bucket.samples)
        raise IndexError(index)

    def plan(self, batch: int, seed: int) -> ReadingOrder:
        """Full batches of one size each."""
        firsts = [0]
        for bucket in self.buckets:
            firsts.append(firsts[-1] + len(bucket.samples))

        def epoch(number: int) -> list[tuple[int, ...]]:
            made = batches(self.buckets, batch_size=batch, seed=seed, epoch=number)
            return [tuple(firsts[b] + i for i in inside) for b, inside in made]

        return epoch

    def held_out_batches(self, batch: int, count: int) -> list[tuple[int, ...]]:
        """The first pictures of the buckets in turn, `count` in all, in batches of one size."""
        share = max(1, count // max(1, len(self.buckets)))
        found, first = [], 0
        for bucket in self.buckets:
            numbers = range(first, first + min(share, len(bucket.samples)))
            found += [tuple(numbers[i : i + batch]) for i in range(0, len(numbers), batch)]
            first += len(bucket.samples)
        return found


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stacked; text features are padded to the longest, with a mask."""
    result: Batch = {"ids": [sample["ids"] for sample in samples]}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "embeds":
            together = padded(values)
            result["embeds"], result["mask"] = together.embeds, together.mask
        elif isinstance(values[0], Tensor):
            result[name] = torch.stack(values)
    return result
