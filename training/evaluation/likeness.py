"""How painted pictures look beside drawn ones, whatever they show: sharp or soft, alike or not.

The gradient energy of a picture is the mean square of the differences of neighbouring pixels' luma:
blur takes it away. The Fréchet distance (arXiv 1706.08500) is that of two normal distributions with
the mean and covariance of features; here those of the VGG16 in assets/hed, so its values compare
only with each other, and only for equally many pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pipelines.denoising.latents import to_tensor
from training.perceptual import Features

_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 2
"""Of the VGG16: deep enough for parts of things, with no more channels than there are pictures."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Of some pictures to others: `energy` of theirs over the others' gradients; `distance`."""

    energy: float
    distance: float


class Looks:
    """What is kept of pictures to compare them by."""

    def __init__(self) -> None:
        self._features = Features(_BLOCK + 1)
        self._energies: list[float] = []
        self._vectors: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._energies)

    @property
    def vectors(self) -> Tensor:
        """(N, D) float64: the features of each picture."""
        return torch.stack(self._vectors)

    @torch.inference_mode()
    def add(self, picture: Image.Image) -> None:
        """Takes in one RGB picture of any size."""
        pixels = to_tensor(picture)
        self._energies.append(gradient_energy(pixels))
        # Roots, as for the judge: single channels would be all of the distance.
        vector = self._features(pixels)[_BLOCK].mean(dim=(2, 3)).sqrt()
        self._vectors.append(vector[0].double())

    def against(self, others: Looks) -> Likeness | None:
        """These pictures beside `others`; None where either are fewer than two."""
        if min(len(self), len(others)) < 2:
            return None
        return Likeness(
            energy=sum(self._energies) / len(self) / (sum(others._energies) / len(others)),
            distance=frechet(self.vectors, others.vectors),
        )


def gradient_energy(pixels: Tensor) -> float:
    """Of (1, 3, H, W) in [-1, 1]."""
    luma = (pixels[0] * pixels.new_tensor(_LUMA)[:, None, None]).sum(0)
    return float(luma.diff(dim=0).square().mean() + luma.diff(dim=1).square().mean())


def frechet(one: Tensor, other: Tensor) -> float:
    """Of two sets of features (N, D) and (M, D): |m - m'|² + tr(C + C' - 2 (C C')^½)."""
    means = (one.mean(0) - other.mean(0)).square().sum()
    first, second = (_root(one), _root(other))
    # The trace of (C C')^½ is the sum of the singular values of C^½ C'^½.
    cross = torch.linalg.svdvals(first @ second).sum()
    return float(means + first.square().sum() + second.square().sum() - 2 * cross)


def _root(vectors: Tensor) -> Tensor:
    """The symmetric root (D, D) of the covariance of (N, D)."""
    values, directions = torch.linalg.eigh(torch.cov(vectors.T))
    root: Tensor = directions * values.clamp_min(0).sqrt() @ directions.T
    return root


def looks(pictures: Iterable[Image.Image | None]) -> Looks:
    """All of `pictures` up to the first None, where somebody stopped."""
    found = Looks()
    for picture in pictures:
        if picture is None:
            break
        found.add(picture)
    return found
