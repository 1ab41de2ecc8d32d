"""What can be said of photos of a subject that nobody has described, and shown besides.

A photo on a plain background of a named colour says so in its caption, so that the background is
not learned as a part of the subject. And since what is behind the subject is plain, it can be shown
small and at a side, with the background continued: half a dozen photos seldom show that, and a
small model does not guess it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines import pictures
from pipelines.denoising import latents
from training.adapter_config import SubjectConfig
from training.config import RunConfig
from training.data import buckets, features
from training.data.buckets import Bucket
from training.data.features import FeatureStore
from training.data.manifest import Sample
from training.data.sources import Sources, Stopped
from training.evaluation import segmentation
from training.loop.devices import lent
from training.loop.order import Pick
from training.loop.task import Samples
from training.methods.kind_pictures import OF_KIND
from training.methods.text_to_image import CaptionData

PLACES = ("left", "right", "top", "bottom")
_PARTS = (0.36, 0.46)
"""How large the subject becomes, as parts of the picture's shorter side."""
_ROOM = 0.12
"""How much of the background stays around it, as a part of its own longer side."""


def colours(sources: Sources) -> dict[str, str]:
    """The colour of the background by the path of a photo, for those where that is plain."""
    manifest = sources.manifest
    found = {
        sample.path: segmentation.ground_colour(pictures.load(manifest.file(sample)))
        for sample in manifest.samples
    }
    return {path: colour for path, colour in found.items() if colour is not None}


def captions(subject: SubjectConfig, colour: str | None) -> tuple[str, ...]:
    """Those of a photo that has none, on a plain background of `colour`, or on any (None)."""
    if colour is None or not subject.wordings:
        return (subject.caption,)
    return tuple(subject.named(text, colour=colour) for text in subject.wordings)


def moved_captions(subject: SubjectConfig, colour: str) -> dict[str, tuple[str, ...]]:
    """By place, those of a photo that is shown smaller at that place."""
    return {
        place: tuple(subject.named(text, colour=colour, place=place) for text in subject.places)
        for place in PLACES
    }


def moved(photo: Image.Image, place: str, part: float) -> Image.Image | None:
    """What stands in `photo` at a side of a picture as large as before, its longer side `part` of
    the picture's shorter one; the background is continued. None where nothing stands there."""
    found = segmentation.segment(photo)
    if found.empty:
        return None
    rows, columns = (np.flatnonzero(found.mask.any(axis=axis)) for axis in (1, 0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    length = max(box[2] - box[0], box[3] - box[1])
    room = round(_ROOM * length)
    wide, high = photo.size
    around = (box[0] - room, box[1] - room, box[2] + room, box[3] + room)
    cut = photo.convert("RGB").crop(
        (max(0, around[0]), max(0, around[1]), min(wide, around[2]), min(high, around[3]))
    )
    scale = part * min(wide, high) / length
    size = [
        min(most, max(1, round(scale * side)))
        for most, side in zip(photo.size, cut.size, strict=True)
    ]
    small = cut.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    across, down = wide - small.width, high - small.height
    left = {"left": 0, "right": across}.get(place, across // 2)
    top = {"top": 0, "bottom": down}.get(place, down // 2)
    beside = ((top, down - top), (left, across - left), (0, 0))
    return Image.fromarray(np.pad(np.asarray(small), beside, mode="edge"))


@dataclass(frozen=True, kw_only=True)
class WithMoved:
    """`samples`, of which a `share` of the photos on plain backgrounds is shown smaller at a side.

    `shown` has, by the path of a photo, the names of such latents in `latents` with their captions.
    """

    samples: Samples
    data: CaptionData
    latents: FeatureStore
    shown: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]]
    share: float

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        item = self.samples[pick]
        dice = random.Random(f"{pick.key} moved")
        able = self.shown.get(item["ids"], ())
        if not able or dice.random() >= self.share or bool(item.get(OF_KIND, False)):
            return item
        name, texts = dice.choice(able)
        return item | {
            "ids": f"{item['ids']}, moved",
            "latents": self.latents.read(name) * self.data.samples.scale,
            "embeds": self.data.captions.features(dice.choice(texts)),
        }


def with_moved(
    config: RunConfig,
    sources: Sources,
    data: CaptionData,
    samples: Samples,
    plain: Mapping[str, str],
) -> Samples:
    """`samples` and their photos at a side, where the recipe wants that. `plain` has colours by
    paths. Raises StudioError, Stopped."""
    subject = config.subject
    if not subject.places or not subject.moved:
        return samples
    digest = features.weights_digest(_folder(sources))
    told = f"{digest} {_PARTS} {config.precision}"
    store = sources.store(f"moved-{hashlib.sha256(told.encode()).hexdigest()[:12]}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shown: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {}
    with lent(data.vae, device):
        for bucket in data.samples.buckets:
            for sample in bucket.samples:
                if sample.path not in plain:
                    continue
                if sources.should_stop():
                    raise Stopped
                texts = moved_captions(subject, plain[sample.path])
                _add(store, sources, data, sample, bucket)
                shown[sample.path] = tuple(
                    (name, texts[place])
                    for place in PLACES
                    for part in _PARTS
                    if (name := _name(sample, bucket, place, part)) in store
                )
    return WithMoved(samples=samples, data=data, latents=store, shown=shown, share=subject.moved)


def _add(
    store: FeatureStore, sources: Sources, data: CaptionData, sample: Sample, bucket: Bucket
) -> None:
    """The latents of one photo at every place, where they are missing."""
    names = {
        (place, part): _name(sample, bucket, place, part) for place in PLACES for part in _PARTS
    }
    if all(name in store for name in names.values()):
        return
    photo = buckets.crop(pictures.load(sources.manifest.file(sample)), bucket.size)
    made = {name: moved(photo, place, part) for (place, part), name in names.items()}
    scale = data.samples.scale
    coded = {
        name: latents.encode(data.vae, latents.to_tensor(picture))[0].float().cpu() / scale
        for name, picture in made.items()
        if picture is not None
    }
    if coded:
        store.add(coded)


def _name(sample: Sample, bucket: Bucket, place: str, part: float) -> str:
    return f"{features.latent_key(sample, bucket)}/{place}/{part:g}"


def _folder(sources: Sources) -> Any:
    base = sources.base("vae")
    assert base is not None
    return base.part("vae")
