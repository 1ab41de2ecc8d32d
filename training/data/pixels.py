"""Pixels for the VAE: random crops of the pictures of a manifest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines import pictures
from training.data.manifest import Manifest, Sample
from training.loop.draws import full_batches
from training.loop.order import Pick, ReadingOrder

_CACHE_BYTES = 1_000_000_000


class Crops:
    """Square crops of `side` pixels, half of them mirrored; what is cut depends on the pick."""

    def __init__(self, manifest: Manifest, samples: Sequence[Sample], side: int) -> None:
        self._manifest = manifest
        self._samples = list(samples)
        self._side = side
        self._cache: dict[int, np.ndarray] = {}
        self._cached = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        """{"pixels": (3, side, side) float32 in [-1, 1], "ids": the picture's path}."""
        pixels = self._pixels(pick.index)
        dice = random.Random(pick.key)
        height, width = pixels.shape[:2]
        top, left = dice.randint(0, height - self._side), dice.randint(0, width - self._side)
        crop = pixels[top : top + self._side, left : left + self._side]
        if dice.random() < 0.5:
            crop = crop[:, ::-1]
        return {"pixels": _tensor(crop), "ids": self._samples[pick.index].path}

    def plan(self, batch: int, seed: int) -> ReadingOrder:
        """Full batches of shuffled pictures; the last one is filled up from the front."""
        return lambda epoch: full_batches(len(self), batch, seed, "epoch", epoch)

    def _pixels(self, index: int) -> np.ndarray:
        """The picture as (H, W, 3) uint8, scaled up where it is smaller than a crop."""
        found = self._cache.get(index)
        if found is not None:
            return found
        picture = pictures.load(self._manifest.file(self._samples[index]))
        short = min(picture.size)
        if short < self._side:
            scale = self._side / short
            size = [max(self._side, round(edge * scale)) for edge in picture.size]
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture)
        if self._cached + pixels.nbytes <= _CACHE_BYTES:
            self._cache[index] = pixels
            self._cached += pixels.nbytes
        return pixels


def _tensor(pixels: np.ndarray) -> Tensor:
    values = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1.0)
