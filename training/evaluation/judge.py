"""The judge: names what stands on the ground of a picture.

It knows sprites, and an object is any of its sprites. Features of a crop are the channels of the
VGG16 in assets/hed, averaged over quarters of the crop; their names come from a linear layer
(multinomial regression) that was fitted on drawn views of the same sprites that the training
pictures are made of, cut out in the same way as what is judged.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from pipelines import files
from pipelines.denoising.latents import to_tensor
from pipelines.errors import SaveError
from pipelines.progress import Progress, Report, ShouldStop, Stage
from training.evaluation import segmentation
from training.perceptual import WEIGHTS, Features
from training.scenes.build import FORMAT
from training.scenes.compose import draw, sample_scene
from training.scenes.grounds import PLAIN, all_colours
from training.scenes.objects import SceneObject, Sprite

# Raise it when the same sprites would give another judge.
VERSION = 2
VIEWS = 10
CHECKS = 2
"""Views per sprite: fitted on, and held out to measure the judge by."""
GUESSES = 5
_BATCH = 16
_QUARTERS = 2
_KINDS = ("plain", "placed")
# Both sizes that small models paint; every fourth view has any ground, the others a plain one.
_SIDES = (96, 272)
_CHECK_SIDES = (128, 256)
_ANY_GROUND = 4
# Mean colours that are nearer than this in Lab are one colour.
_LIKE = 22.0
_L2 = 0.01
_ITERATIONS = 60


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the judge sees in a picture: the ground's colour, the place of what stands on it.

    `colour` is None where there is no plain ground of a named colour; `guesses` hold, for each
    part that was asked for from left to right, up to five names, the likeliest first; none where
    there is nothing. `tints` tell for each part whether it has the colours of what was asked for,
    where that was given.
    """

    colour: str | None
    place: str
    guesses: tuple[tuple[str, ...], ...]
    tints: tuple[bool, ...] = ()


class Judge:
    """Knows `things`, whose sprites are loaded. `accuracy` (0..1) is how many held-out drawn views
    it names right.

    `weights`: "mean" and "scale" (D,), "layer" (D, S), "bias" (S,), where S are all sprites.
    """

    def __init__(
        self,
        things: Sequence[SceneObject],
        weights: dict[str, Tensor],
        features: Features,
        accuracy: float,
    ) -> None:
        self.names = tuple(thing.name for thing in things)
        self.weights = weights
        self.accuracy = accuracy
        self.things = tuple(things)
        self._owners = _owners(things)
        self._features = features
        self._shades = {
            sprite.emoji: _sprite_shade(sprite) for thing in things for sprite in thing.sprites
        }

    def see(
        self,
        picture: Image.Image,
        *,
        parts: int = 1,
        apart: bool = False,
        wanted: Sequence[SceneObject] = (),
    ) -> Seen:
        """Takes `picture` apart and names its one thing, or (`parts` 2, 3) those from left to
        right, or (`apart`) each that stands apart from the others, however many they are.

        `wanted` are the things that were asked for, with the sprites that they may be.
        """
        found = segmentation.segment(picture)
        if apart:
            masks = [] if found.empty else segmentation.pieces(found)
        else:
            masks = _masks(found, parts)
        crops = [None if found.empty else segmentation.crop(found, mask) for mask in masks]
        shown = [crop for crop in crops if crop is not None]
        named = iter(self.name(shown) if shown else [])
        guesses = tuple(() if crop is None else next(named) for crop in crops)
        tints = tuple(
            not found.empty and self._tinted(thing, segmentation.shade_of(found, mask))
            for thing, mask in zip(wanted, masks, strict=False)
        )
        return Seen(colour=found.colour, place=found.place, guesses=guesses, tints=tints)

    def name(self, crops: Sequence[Image.Image]) -> list[tuple[str, ...]]:
        """The likeliest names of each of `crops` (see `sight.crop`), the best first."""
        logits = _by_object(_logits(vectors(self._features, crops), self.weights), self._owners)
        best = logits.topk(min(GUESSES, len(self.names)), dim=1).indices
        return [tuple(self.names[index] for index in row) for row in best.tolist()]

    def _tinted(self, wanted: SceneObject, shade: segmentation.Floats | None) -> bool:
        """Whether `shade` is that of a sprite of `wanted`, and of no other of the same object."""
        if shade is None:
            return False
        whole = self.things[self.names.index(wanted.name)]
        allowed = {sprite.emoji for sprite in wanted.sprites}
        colours = {sprite.colour for sprite in wanted.sprites}
        far = {e: float(np.linalg.norm(self._shades[e] - shade)) for e in self._emoji(whole)}
        others = [
            far[sprite.emoji]
            for sprite in whole.sprites
            if sprite.emoji not in allowed and sprite.colour not in colours
        ]
        nearest = min(far[emoji] for emoji in allowed)
        return nearest <= _LIKE and nearest <= min(others, default=nearest)

    @staticmethod
    def _emoji(thing: SceneObject) -> list[str]:
        return [sprite.emoji for sprite in thing.sprites]


def _masks(found: segmentation.Segmented, parts: int) -> list[segmentation.Mask]:
    """One mask for each of one to three `parts` from left to right."""
    if parts == 1:
        return [found.mask]
    return list(segmentation.halves(found) if parts == 2 else segmentation.thirds(found))


def _owners(things: Sequence[SceneObject]) -> Tensor:
    """(S,): for each sprite of all `things` the place of its thing."""
    return torch.tensor([place for place, thing in enumerate(things) for _ in thing.sprites])


def _sprite_shade(sprite: Sprite) -> segmentation.Floats:
    """The mean Lab of what is not clear."""
    pixels = np.asarray(sprite.levels[0].convert("RGBA"))
    shade: segmentation.Floats = segmentation.lab(pixels[pixels[:, :, 3] > 127][:, :3]).mean(axis=0)
    return shade


def find(
    things: Sequence[SceneObject], cache: Path, report: Report, should_stop: ShouldStop
) -> Judge | None:
    """The judge of `things` (with sprites) out of the folder `cache`, else trained and kept there.

    None where it was stopped. Raises SaveError.
    """
    stem = f"judge-{_digest(things)}"
    kept = _read(cache / f"{stem}.safetensors", cache / f"{stem}.json", things)
    if kept is not None:
        return kept
    judge = train(things, report, should_stop, views=VIEWS, checks=CHECKS)
    if judge is None:
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"{cache} cannot be made ({error.strerror}).") from None
    card = {"names": _labels(things), "accuracy": judge.accuracy, "version": VERSION}
    files.write(cache / f"{stem}.safetensors", save(judge.weights))
    # Last: a judge without its card is none.
    files.write(cache / f"{stem}.json", (json.dumps(card, indent=1) + "\n").encode())
    return judge


def train(
    things: Sequence[SceneObject],
    report: Report,
    should_stop: ShouldStop,
    *,
    views: int,
    checks: int,
) -> Judge | None:
    """A judge of `things`, the same for the same sprites; None where it was stopped.

    `views` per sprite are for fitting, `checks` per sprite (at least 1) are held out.
    """
    features = Features()
    owners = _owners(things)
    crops: list[Image.Image] = []
    found: list[Tensor] = []
    total = len(owners) * (views + checks)
    for number, crop in enumerate(_views(things, views, checks), 1):
        crops.append(crop)
        if len(crops) == _BATCH or number == total:
            if should_stop():
                return None
            report(Progress(stage=Stage.FEATURES, done=number, total=total, note="for the judge"))
            found.append(vectors(features, crops))
            crops = []
    known, unknown = torch.cat(found).split([len(owners) * views, len(owners) * checks])
    weights = _fit(known, torch.arange(len(owners)).repeat_interleave(views))
    logits = _by_object(_logits(unknown, weights), owners)
    right = logits.argmax(1) == owners.repeat_interleave(checks)
    return Judge(things, weights, features, accuracy=float(right.float().mean()))


# ---- features and their layer ----


@torch.inference_mode()
def vectors(features: Features, crops: Sequence[Image.Image]) -> Tensor:
    """(M, D): what the judge reads of each of `crops`."""
    found = []
    for start in range(0, len(crops), _BATCH):
        pixels = torch.cat([to_tensor(crop) for crop in crops[start : start + _BATCH]])
        maps = [functional.adaptive_avg_pool2d(m, _QUARTERS).flatten(1) for m in features(pixels)]
        # Channels differ by orders of magnitude, and within one a few views stick out: roots even
        # that (93.8 % instead of 91.7 % right through the small model's VAE).
        found.append(torch.cat(maps, dim=1).sqrt())
    return torch.cat(found)


def _standard(inputs: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return (inputs - weights["mean"]) / weights["scale"]


def _logits(inputs: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """(M, D) -> (M, S)."""
    return _standard(inputs, weights) @ weights["layer"] + weights["bias"]


def _by_object(logits: Tensor, owners: Tensor) -> Tensor:
    """(M, S) for sprites -> (M, N) for objects: that of the likeliest of its sprites."""
    places = owners.expand(len(logits), -1)
    result = torch.full((len(logits), int(owners.max()) + 1), float("-inf"))
    return result.scatter_reduce(1, places, logits, "amax")


def _fit(known: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Multinomial regression of `labels` (M,) on `known` (M, D); it starts at zero, no chance."""
    # Out of inference mode, where nothing learns.
    known = known.clone()
    weights = {"mean": known.mean(0), "scale": known.std(0) + 1e-3}
    inputs = _standard(known, weights)
    layer = torch.zeros(inputs.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = torch.zeros(layer.shape[1], requires_grad=True)
    search = torch.optim.LBFGS(
        [layer, bias], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = functional.cross_entropy(inputs @ layer + bias, labels)
        value = value + _L2 * layer.square().sum()
        value.backward()
        return value

    search.step(loss)
    return weights | {"layer": layer.detach(), "bias": bias.detach()}


# ---- views ----


def _views(things: Sequence[SceneObject], views: int, checks: int) -> Iterator[Image.Image]:
    """Crops: `views` softened ones of each sprite, then `checks` plain ones of each."""
    alone = [(thing.only(sprite.emoji), sprite) for thing in things for sprite in thing.sprites]
    for thing, sprite in alone:
        for view in range(views):
            yield _view(thing, f"view/{sprite.emoji}/{view}", view, soft=True)
    for thing, sprite in alone:
        for view in range(checks):
            yield _view(thing, f"check/{sprite.emoji}/{view}", view, soft=False)


def _view(thing: SceneObject, seed: str, number: int, *, soft: bool) -> Image.Image:
    """A crop of `thing` out of a drawn scene. A thing that its ground hides is drawn again."""
    kind = _KINDS[number % len(_KINDS)]
    crop = None
    for attempt in range(200):
        scene = sample_scene(kind, f"{seed}/{attempt}", [thing])
        if scene.ground.kind != PLAIN and number % _ANY_GROUND != _ANY_GROUND - 1:
            continue
        chance = random.Random(f"{seed}/{attempt}")
        side = chance.randint(*_SIDES) if soft else _CHECK_SIDES[number // 2 % 2]
        picture = draw(scene, side, side)
        crop = segmentation.crop(
            segmentation.segment(softened(picture, chance) if soft else picture)
        )
        if crop is not None:
            break
    return crop or Image.new("RGB", (segmentation.CROP_SIDE, segmentation.CROP_SIDE), "gray")


def softened(picture: Image.Image, chance: random.Random) -> Image.Image:
    """`picture` as a VAE or a young model might have it: coarse, blurred, blocky, blotchy."""
    wide, high = picture.size
    if chance.random() < 0.5:
        part = chance.uniform(0.3, 0.9)
        small = picture.resize((round(part * wide), round(part * high)), Image.Resampling.BILINEAR)
        picture = small.resize((wide, high), Image.Resampling.BICUBIC)
    if chance.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(chance.uniform(0.3, 1.5) * wide / 128))
    if chance.random() < 0.5:
        data = BytesIO()
        picture.save(data, format="JPEG", quality=chance.randint(25, 80))
        picture = Image.open(data).convert("RGB")
    pixels = np.asarray(picture, dtype=np.float32)
    if chance.random() < 0.5:
        noise = np.random.default_rng(chance.getrandbits(32))
        # One value per 4 x 4 pixels, for each channel.
        coarse = noise.normal(0, chance.uniform(2, 8), (-(-high // 4), -(-wide // 4), 3))
        pixels = pixels + np.kron(coarse, np.ones((4, 4, 1)))[:high, :wide]
    if chance.random() < 0.5:
        pixels = pixels * np.array([chance.uniform(0.88, 1.12) for _ in range(3)])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# ---- the cache ----


def _digest(things: Sequence[SceneObject]) -> str:
    """Changes when anything changes that a judge is made of."""
    colours = [(c.name, c.rgb, c.light, c.tint) for c in all_colours().values()]
    digest = hashlib.sha256(json.dumps([VERSION, FORMAT, colours]).encode())
    digest.update(hashlib.sha256(WEIGHTS.read_bytes()).digest())
    for thing in things:
        for sprite in thing.sprites:
            whole = sprite.levels[0]
            digest.update(f"{thing.name}/{sprite.emoji}/{whole.size}".encode() + whole.tobytes())
    return digest.hexdigest()[:16]


def _labels(things: Sequence[SceneObject]) -> list[str]:
    return [f"{thing.name}/{sprite.emoji}" for thing in things for sprite in thing.sprites]


def _read(weights: Path, card: Path, things: Sequence[SceneObject]) -> Judge | None:
    """The judge in two files, None where they are missing or damaged."""
    try:
        facts = json.loads(card.read_bytes())
        tensors = load(weights.read_bytes())
        names, accuracy = list(facts["names"]), float(facts["accuracy"])
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        long = shapes["mean"][0]
    except (OSError, ValueError, TypeError, KeyError, IndexError, SafetensorError):
        return None
    count = len(_owners(things))
    wanted = {"mean": (long,), "scale": (long,), "layer": (long, count), "bias": (count,)}
    if shapes != wanted or names != _labels(things):
        return None
    return Judge(things, tensors, Features(), accuracy)
