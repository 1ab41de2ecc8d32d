"""Aspect buckets: pictures of about the same shape are trained together at one size."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from PIL import Image, ImageOps

from pipelines import sizes
from pipelines.errors import RequestError
from pipelines.sizes import Size
from training.data.manifest import Sample

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Samples that are scaled to cover `size` (pixels) and cropped around their centre."""

    size: Size
    samples: tuple[Sample, ...]

    @property
    def lost(self) -> float:
        """The share of the pixels that is cut off, from 0 to 1, on average."""
        return math.fsum(lost(s, self.size) for s in self.samples) / max(1, len(self.samples))


def assign(samples: Iterable[Sample], table: Iterable[Size], *, minimum: int) -> list[Bucket]:
    """The buckets of `samples` by the nearest aspect ratio of `table`, tallest first.

    A bucket of fewer than `minimum` samples is merged into the one of the next ratio, the smallest
    first, until all have enough or one is left. Raises RequestError for an empty table.
    """
    known = sorted(set(table), key=_shape)
    if not known:
        raise RequestError("data", "There is no size to train at.", "Give at least one size.")
    found: defaultdict[Size, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sizes.nearest(Size(sample.width, sample.height), known)].append(sample)
    filled = sorted(found, key=_shape)
    while len(filled) > 1:
        at = min(range(len(filled)), key=lambda i: len(found[filled[i]]))
        if len(found[filled[at]]) >= minimum:
            break
        beside = [i for i in (at - 1, at + 1) if 0 <= i < len(filled)]
        into = min(beside, key=lambda i: _distance(filled[i], filled[at]))
        found[filled[into]] += found.pop(filled[at])
        del filled[at]
    return [
        Bucket(size=size, samples=tuple(sorted(found[size], key=lambda s: s.id))) for size in filled
    ]


def _shape(size: Size) -> tuple[float, Size]:
    return size.width / size.height, size


def _distance(a: Size, b: Size) -> float:
    return abs(math.log((a.width * b.height) / (a.height * b.width)))


def lost(sample: Sample, size: Size) -> float:
    """The share of the pixels of `sample`, 0 to 1, that `crop` to `size` cuts off."""
    of_sample, of_size = sample.width * size.height, sample.height * size.width
    return 1 - min(of_sample, of_size) / max(of_sample, of_size)


def crop(picture: Image.Image, size: Size) -> Image.Image:
    """`picture` scaled to cover `size` and cropped around its centre, as painting does it."""
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


def sentences(buckets: Iterable[Bucket]) -> list[str]:
    """One sentence for each bucket: its size, its pictures, and how much of them is lost."""
    return [_sentence(bucket) for bucket in buckets]


def _sentence(bucket: Bucket) -> str:
    count = len(bucket.samples)
    pictures = f"{bucket.size}: {count:,} picture{'' if count == 1 else 's'}"
    if bucket.lost < 0.0005:
        return f"{pictures}, nothing of {'it' if count == 1 else 'them'} is cut off"
    share = f"{bucket.lost:.0%}"[:-1] if bucket.lost >= 0.005 else "less than 1"
    return f"{pictures}, you lose {share} % of {'it' if count == 1 else 'them on average'}"


def batches(
    buckets: Sequence[Bucket], *, batch_size: int, seed: int, epoch: int
) -> list[tuple[int, tuple[int, ...]]]:
    """All batches of an epoch: (number of the bucket, numbers of samples in it).

    Every batch is full and of one bucket; where samples are left over, the bucket's first ones of
    this epoch fill up. Every sample comes at least once. Decided by the arguments alone, the same
    for any number of processes, which take their part of each batch.
    """
    if batch_size < 1:
        raise ValueError(f"a batch of {batch_size}")
    # Sorting by random() is promised to stay the same in later versions of Python; shuffle is not.
    draw = random.Random(f"buckets/{seed}/{epoch}").random
    made: list[tuple[int, tuple[int, ...]]] = []
    for number, bucket in enumerate(buckets):
        count = len(bucket.samples)
        order = _shuffled(range(count), draw)
        for batch in range(ceil(count / batch_size)):
            places = range(batch * batch_size, (batch + 1) * batch_size)
            made.append((number, tuple(order[place % count] for place in places)))
    return _shuffled(made, draw)


def _shuffled(items: Iterable[_Item], draw: Callable[[], float]) -> list[_Item]:
    return sorted(items, key=lambda _: draw())
