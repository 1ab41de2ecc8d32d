"""Pictures to learn from and pictures held out, decided by content and seed."""

from __future__ import annotations

from training.data.manifest import Manifest, Sample
from training.loop.draws import key


def split(manifest: Manifest, share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(learning, held out); a picture stays on its side however the folder is ordered or grows.

    At least one picture is left to learn from.
    """
    ranked = sorted(manifest.samples, key=lambda s: key(seed, "held out", s.id))
    count = min(round(share * len(ranked)), len(ranked) - 1)
    held = {s.path for s in ranked[: max(0, count)]}
    learning = [s for s in manifest.samples if s.path not in held]
    return learning, [s for s in manifest.samples if s.path in held]
