"""Which of many known pictures a painted thing is nearest to.

The features are those that the judge reads (VGG16 of assets/hed), which were never trained on what
is compared: no layer is fitted here. A reference is a view of a sprite, drawn and sent through the
VAE of the model that paints, so that both sides are equally soft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.progress import Progress, Report, ShouldStop, Stage
from training.evaluation import judge, segmentation
from training.perceptual import Features
from training.scenes.compose import draw, sample_scene
from training.scenes.grounds import PLAIN
from training.scenes.objects import SceneObject

VIEWS = 2
"""Drawn views of each sprite; each also counts mirrored."""
_KINDS = ("single", "placed")

Soften = Callable[[Image.Image], Image.Image]
"""A picture as the model's VAE has it."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one picture shows: the colour of its ground (None: no plain one of a named colour), the
    place of what stands on it, the emoji of the nearest reference ("" for nothing), and how like
    the sprite that was asked about it is: a cosine, 0 for nothing."""

    colour: str | None
    place: str
    nearest: str
    likeness: float


class References:
    """Views of sprites as unit vectors (V, D) around the mean of them all; `emoji` names each."""

    def __init__(self, emoji: Sequence[str], vectors: Tensor, features: Features) -> None:
        self.emoji = tuple(emoji)
        self._features = features
        self._mean, self._scale = vectors.mean(0), vectors.std(0) + 1e-3
        self._units = self._unit(vectors)

    def _unit(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.normalize((vectors - self._mean) / self._scale, dim=1)

    def look(self, picture: Image.Image, emoji: str) -> Look:
        """What `picture` shows, and how like the sprite `emoji` that is."""
        found = segmentation.segment(picture)
        crop = None if found.empty else segmentation.crop(found)
        if crop is None:
            return Look(colour=found.colour, place=found.place, nearest="", likeness=0.0)
        near = self._units @ self._unit(judge.vectors(self._features, [crop]))[0]
        own = torch.tensor([name == emoji for name in self.emoji])
        return Look(
            colour=found.colour,
            place=found.place,
            nearest=self.emoji[int(near.argmax())],
            likeness=float(near[own].max()),
        )


def references(
    things: Sequence[SceneObject],
    soften: Soften,
    *,
    side: int,
    report: Report,
    should_stop: ShouldStop,
) -> References | None:
    """The references of all sprites of `things`; None where it was stopped."""
    features = Features()
    alone = [
        (thing.only(sprite.emoji), sprite.emoji) for thing in things for sprite in thing.sprites
    ]
    emoji: list[str] = []
    found: list[Tensor] = []
    for number, (thing, name) in enumerate(alone, 1):
        if should_stop():
            return None
        report(
            Progress(stage=Stage.FEATURES, done=number, total=len(alone), note="of the references")
        )
        crops = [_crop(thing, view, soften, side) for view in range(VIEWS)]
        crops += [ImageOps.mirror(crop) for crop in crops]
        emoji += [name] * len(crops)
        found.append(judge.vectors(features, crops))
    return References(emoji, torch.cat(found), features)


def _crop(thing: SceneObject, view: int, soften: Soften, side: int) -> Image.Image:
    """The thing of one view, cut out as painted ones are; drawn again where nothing is seen."""
    for attempt in range(200):
        scene = sample_scene(_KINDS[view % len(_KINDS)], f"reference/{view}/{attempt}", [thing])
        if scene.ground.kind != PLAIN:
            continue
        crop = segmentation.crop(segmentation.segment(soften(draw(scene, side, side))))
        if crop is not None:
            return crop
    return Image.new("RGB", (segmentation.CROP_SIDE, segmentation.CROP_SIDE), "gray")
