"""Which of many known pictures a painted thing is nearest to.

The features are those that the judge reads (VGG16 of assets/hed). Nothing was ever fitted to what
is held out: it is one more reference, like every other picture that was never painted. A reference
is a sprite as it is drawn and sent through the VAE of the model that paints, so that both sides are
equally soft.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
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

VIEWS, SOFTENED = 2, 2
"""Drawn views of each sprite, and how often each is softened besides; each also counts mirrored."""
_DIRECTIONS, _SHRINKAGE = 256, 0.3
_KINDS = ("single", "placed")

Through = Callable[[Image.Image], Image.Image]
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
    """Where views of sprites lie in a space in which what blur and light change counts little.

    `rows` are pairs of an emoji and whether it is mirrored, each with its views (V, D). The space
    is that of the means of the `fitted` emoji, scaled by how views of one sprite differ among them
    (the linear discriminant of Fisher, 1936): of the others only the means are known.
    """

    def __init__(
        self,
        rows: Mapping[tuple[str, bool], Tensor],
        fitted: Collection[str],
        features: Features,
    ) -> None:
        self._features = features
        self.emoji = tuple(emoji for emoji, _ in rows)
        known = [views for (emoji, _), views in rows.items() if emoji in fitted]
        everything = torch.cat(known)
        self._mean, self._scale = everything.mean(0), everything.std(0) + 1e-3
        standard = [self._standard(views) for views in known]
        means = torch.stack([views.mean(0) for views in standard])
        count = min(_DIRECTIONS, len(means) - 1)
        directions = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:count].T
        within = torch.cat([(views - views.mean(0)) @ directions for views in standard])
        spread = within.T @ within / len(within)
        spread += _SHRINKAGE * spread.diagonal().mean() * torch.eye(count)
        values, axes = torch.linalg.eigh(spread)
        self._map = directions @ axes / values.sqrt()
        self._means = torch.stack([self._place(views).mean(0) for views in rows.values()])

    def _standard(self, vectors: Tensor) -> Tensor:
        shifted: Tensor = (vectors - self._mean) / self._scale
        return shifted

    def _place(self, vectors: Tensor) -> Tensor:
        """(M, D) -> (M, K)."""
        placed: Tensor = self._standard(vectors) @ self._map
        return placed

    def look(self, picture: Image.Image, emoji: str) -> Look:
        """What `picture` shows, and how like the sprite `emoji` that is."""
        found = segmentation.segment(picture)
        crop = None if found.empty else segmentation.crop(found)
        if crop is None:
            return Look(colour=found.colour, place=found.place, nearest="", likeness=0.0)
        place = self._place(judge.vectors(self._features, [crop]))
        far = torch.cdist(place, self._means)[0]
        like = torch.nn.functional.cosine_similarity(place, self._means)
        own = torch.tensor([name == emoji for name in self.emoji])
        return Look(
            colour=found.colour,
            place=found.place,
            nearest=self.emoji[int(far.argmin())],
            likeness=float(like[own].max()),
        )


def references(
    things: Sequence[SceneObject],
    through: Through,
    *,
    side: int,
    report: Report,
    should_stop: ShouldStop,
) -> References | None:
    """The references of all sprites of `things`; None where it was stopped.

    The space is fitted to those that are not held out.
    """
    features = Features()
    alone = [(thing.only(one.emoji), one.emoji) for thing in things for one in thing.sprites]
    rows: dict[tuple[str, bool], Tensor] = {}
    for number, (thing, emoji) in enumerate(alone, 1):
        if should_stop():
            return None
        report(
            Progress(stage=Stage.FEATURES, done=number, total=len(alone), note="of the references")
        )
        crops = [crop for view in range(VIEWS) for crop in _crops(thing, view, through, side)]
        rows[emoji, False] = judge.vectors(features, crops)
        rows[emoji, True] = judge.vectors(features, [ImageOps.mirror(crop) for crop in crops])
    fitted = {emoji for thing, emoji in alone if not thing.held_out}
    return References(rows, fitted, features)


def _crops(thing: SceneObject, view: int, through: Through, side: int) -> list[Image.Image]:
    """The thing of one view, cut out as painted ones are, as it is and softened; drawn again where
    nothing is seen."""
    kind = _KINDS[view % len(_KINDS)]
    for attempt in range(200):
        scene = sample_scene(kind, f"reference/{view}/{attempt}", [thing])
        if scene.ground.kind != PLAIN:
            continue
        picture = through(draw(scene, side, side))
        chance = random.Random(f"{thing.sprites[0].emoji}/{view}/{attempt}")
        shown = [picture, *(judge.softened(picture, chance) for _ in range(SOFTENED))]
        crops = [segmentation.crop(segmentation.segment(one)) for one in shown]
        found = [crop for crop in crops if crop is not None]
        if found:
            return found
    return [Image.new("RGB", (segmentation.CROP_SIDE, segmentation.CROP_SIDE), "gray")]
