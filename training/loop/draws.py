"""Random numbers that depend on where they are used and on nothing else.

Noise, timesteps, dropout and crops are drawn from generators that are keyed by (seed, place), so
that a resumed run draws what the undisturbed one would have drawn, without any stored state.
"""

from __future__ import annotations

import hashlib
import random


def key(*place: int | str) -> int:
    """A number below 2^63 that is decided by `place`."""
    text = "/".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def shuffled(count: int, *place: int | str) -> list[int]:
    """0 to `count` - 1 in an order that is decided by `place`, in every version of Python."""
    dice = random.Random(key(*place))
    return sorted(range(count), key=lambda _: dice.random())


def full_batches(count: int, batch: int, *place: int | str) -> list[tuple[int, ...]]:
    """All of 0 to `count` - 1 shuffled in full batches; the last is filled up from the front."""
    order = shuffled(count, *place)
    places = range(-(-count // batch) * batch)
    filled = [order[i % count] for i in places]
    return [tuple(filled[i : i + batch]) for i in range(0, len(filled), batch)]
