"""Pictures that look nearly the same, told by a fingerprint of 64 bits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from PIL import Image

DISTANCE = 2
"""Bits by which the fingerprints of two near duplicates may differ."""
_FLAT = 8
_BANDS = 4
_BAND_BITS = 16
_PAIRS = tuple(combinations(range(_BANDS), _BANDS - DISTANCE))
_MASKS = tuple(
    [1 << i for i in range(64)] + [1 << i | 1 << j for i, j in combinations(range(64), 2)]
)


def fingerprint(picture: Image.Image) -> int | None:
    """The difference hash of an RGB picture: is each of 9x8 grey fields brighter than the next?

    None for a picture that is nearly of one colour, of which the hash would tell nothing.
    """
    small = picture.resize((9, 8), Image.Resampling.BOX, reducing_gap=2).convert("L")
    fields = np.asarray(small, dtype=np.int16)
    if int(fields.max()) - int(fields.min()) < _FLAT:
        return None
    bits = np.packbits(fields[:, 1:] < fields[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


class Likenesses:
    """Fingerprints seen so far, found again within DISTANCE bits without looking at all of them.

    64 bits in 4 bands: where at most 2 bits differ, at least 2 bands are the same. So each
    fingerprint is filed under each pair of its bands. Where very many share a pair, the 2080
    neighbours of a fingerprint are looked up instead, which bounds the time for any pictures.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._filed: dict[int, list[int]] = {}

    def find(self, value: int) -> int | None:
        """The number of the earliest fingerprint within DISTANCE bits of `value`, or None."""
        if value in self._first:
            return self._first[value]
        filed = [self._filed.get(key, []) for key in _keys(value)]
        if sum(map(len, filed)) > len(_MASKS):
            near = {value ^ mask for mask in _MASKS} & self._first.keys()
        else:
            near = {v for group in filed for v in group if (v ^ value).bit_count() <= DISTANCE}
        return min((self._first[v] for v in near), default=None)

    def add(self, value: int, number: int) -> None:
        """Remembers `value` as that of picture `number`; the first of the same value counts."""
        if value in self._first:
            return
        self._first[value] = number
        for key in _keys(value):
            self._filed.setdefault(key, []).append(value)


def _keys(value: int) -> list[int]:
    """For each pair of bands: its number and both bands, in one number."""
    bands = [value >> (_BAND_BITS * i) & (1 << _BAND_BITS) - 1 for i in range(_BANDS)]
    return [
        (number << _BAND_BITS | bands[i]) << _BAND_BITS | bands[j]
        for number, (i, j) in enumerate(_PAIRS)
    ]
