"""The fixed positions of a PixArt transformer, and what a stored copy of them tells.

Sines and cosines of the coordinates of each patch, as in DiT (arXiv 2212.09748): a quarter of the
width each for sin and cos of the column, then of the row. A coordinate is the index of the patch
divided by the interpolation scale, with which PixArt-α stretches positions over larger pictures.
"""

from __future__ import annotations

from math import atan2, isqrt, pi

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ModelError

MAX_SAMPLE_SIZE = 512
_KNOWN_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# The farthest that two neighbouring numbers of a format lie apart between -1 and 1, with room for
# sines that were computed in single precision.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}


def _along(width: int, grid: int, scale: float) -> NDArray[np.float32]:
    """The half (grid, width / 2) that one coordinate takes.

    Computed in double precision and rounded once, as the original code does.
    """
    quarter = width // 4
    frequencies = 1.0 / 10_000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    coordinates = (np.arange(grid, dtype=np.float32) / np.float32(scale)).astype(np.float64)
    angles = np.outer(coordinates, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sincos(width: int, grid: int, scale: float) -> NDArray[np.float32]:
    """The positions (1, grid², width) of a square picture of `grid` patches a side."""
    along = _along(width, grid, scale)
    columns = np.tile(along, (grid, 1))
    rows = np.repeat(along, grid, axis=0)
    return np.concatenate([columns, rows], axis=1)[None]


def _error(stored: NDArray[np.float32], grid: int, scale: float) -> float:
    """The largest difference of stored positions (1, grid², width) from those of `scale`."""
    width = stored.shape[2]
    along = _along(width, grid, scale)
    table = stored.reshape(grid, grid, width)
    columns = np.abs(table[:, :, : width // 2] - along[None]).max()
    rows = np.abs(table[:, :, width // 2 :] - along[:, None]).max()
    return float(max(columns, rows))


def derive(stored: NDArray[np.float32], patch: int, tolerance: float) -> tuple[int, float] | None:
    """(sample_size, interpolation_scale) of stored positions (1, grid², width).

    Every number is compared with what the answer would give. None for a buffer that was never
    filled. Raises ModelError for anything that is no such table.
    """
    if stored.ndim != 3 or stored.shape[0] != 1 or stored.shape[2] % 4:
        raise ModelError(f"Its positions have the shape {'×'.join(map(str, stored.shape))}.")
    _, count, width = stored.shape
    grid = isqrt(count)
    if grid**2 != count or not 1 <= grid * patch <= MAX_SAMPLE_SIZE:
        raise ModelError(f"Its {count:,} positions are not those of a square picture.")
    if not stored.any():
        return None
    if grid == 1:
        return patch, 1.0
    # The second patch of the first row lies at 1/scale; the first frequency is 1.
    angle = atan2(float(stored[0, 1, 0]), float(stored[0, 1, width // 4])) % (2 * pi)
    # Rounded more or less, because half precision tells it only roughly.
    near = {round(1 / angle, digits) for digits in (1, 2, 4)} - {0.0} if angle > 1e-3 else set()
    errors = {scale: _error(stored, grid, scale) for scale in (*_KNOWN_SCALES, *near)}
    best = min(errors, key=lambda scale: errors[scale])
    # Not ">", which is false for NaN.
    if not errors[best] <= tolerance:
        raise ModelError(
            "Its stored positions fit no interpolation scale, so it was changed by another program."
        )
    return grid * patch, best
