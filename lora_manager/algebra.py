"""Several LoRAs as one, one as a smaller one, and how far two are apart.

The change of a layer is `up @ down`, a product of two thin matrices; none of it needs the change
itself, which is a thousand times larger. All is computed in float64 on the processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_manager.attach import Weighted, check_strength
from lora_manager.errors import LoraError, printable
from lora_manager.files import Lora, LoraPair


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A LoRA of smaller rank. `error`: the size of all that was lost, relative to all changes
    (Frobenius norms); `worst` is the layer that lost the most of its own, `worst_error` how much.
    """

    lora: Lora
    error: float
    worst: str
    worst_error: float


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """How far apart the changes of one layer are.

    `norms`: the Frobenius norms of both changes. `difference`: the norm of their difference,
    relative to the larger one. `cosine`: 1 for the same direction, -1 for the opposite, 0 where one
    changes nothing.
    """

    path: str
    norms: tuple[float, float]
    difference: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two LoRAs side by side. `only`: the layers that one changes alone, of both. `misfits`: those
    that both change and that have other sizes in each. `total`: all that both change as one; its
    path is the empty text.
    """

    only: tuple[tuple[str, ...], tuple[str, ...]]
    misfits: tuple[str, ...]
    layers: tuple[LayerComparison, ...]
    total: LayerComparison


def merged(loras: Weighted) -> Lora:
    """One LoRA that changes a net as all of `loras` together do, exactly: ranks are added.

    Raises LoraError where two change the same layer in different sizes, where one changes nothing,
    where nothing is left to do, and for numbers beyond float32.
    """
    used = [(name, lora, weight) for name, lora, weight in loras if weight != 0]
    for name, lora, _ in used:
        _check_plain(lora, f"The LoRA “{printable(name)}”", "merged")
    if not used:
        raise LoraError("All weights are 0, so the merged LoRA would change nothing.")
    for name, lora, _ in used:
        check_strength(name, lora)
    paths = sorted({path for _, lora, _ in used for path in lora.pairs})
    pairs = {}
    for path in paths:
        parts = [(name, lora.pairs[path], w) for name, lora, w in used if path in lora.pairs]
        _check_sizes(path, [(name, pair) for name, pair, _ in parts])
        down = torch.cat([pair.down for _, pair, _ in parts])
        # The up half of the convolution has two more axes; ranks are the second one always.
        up = torch.cat([pair.up * weight for _, pair, weight in parts], dim=1)
        pairs[path] = _checked(path, down, up, "Take a smaller weight.")
    return Lora(pairs=pairs)


def _check_plain(lora: Lora, shown: str, what: str) -> None:
    """Raises LoraError for a DoRA: no product of two thin matrices is its change."""
    if lora.is_dora:
        raise LoraError(
            f"{shown} is a DoRA, whose change depends on the model that it is put on, so it cannot"
            f" be {what} as a file.",
            "Bake it into a model with: launch.py loras bake",
        )


def _check_sizes(path: str, parts: Sequence[tuple[str, LoraPair]]) -> None:
    first, one = parts[0]
    for name, pair in parts[1:]:
        if pair.shape != one.shape:
            sizes = ["×".join(map(str, shape)) for shape in (one.shape, pair.shape)]
            raise LoraError(
                f"The LoRAs “{printable(first)}” and “{printable(name)}” were made for models of"
                f" other sizes: the first changes “{path}” of {sizes[0]}, the second of"
                f" {sizes[1]}.",
                "Merge LoRAs of one model.",
            )


def _checked(path: str, down: Tensor, up: Tensor, way_out: str) -> LoraPair:
    if not up.isfinite().all() or not down.isfinite().all():
        raise LoraError(
            f"The LoRAs change “{path}” so strongly that the result is not finite.", way_out
        )
    return LoraPair(down=down.contiguous(), up=up.contiguous())


def reduced(lora: Lora, rank: int) -> Reduced:
    """The LoRA of at most `rank` that is nearest to `lora`, layer by layer (Eckart and Young).

    What has no larger rank stays as it is. Raises LoraError for a rank below 1, and for a DoRA.
    """
    if rank < 1:
        raise LoraError(f"A LoRA cannot have the rank {rank}.", "Take 1 or more.")
    _check_plain(lora, "This LoRA", "resized")
    pairs, lost, whole = {}, {}, {}
    for path, pair in lora.pairs.items():
        if pair.rank <= rank:
            pairs[path], lost[path] = pair, 0.0
            whole[path] = _norm(*_flat(pair))
            continue
        pairs[path], values = _truncated(path, pair, rank)
        lost[path], whole[path] = float(values[rank:].norm()), float(values.norm())
    own = {path: lost[path] / whole[path] if whole[path] else 0.0 for path in pairs}
    worst = max(own, key=own.__getitem__)
    total = math.hypot(*whole.values())
    return Reduced(
        lora=Lora(pairs=pairs, notes=lora.notes),
        error=math.hypot(*lost.values()) / total if total else 0.0,
        worst=worst,
        worst_error=own[worst],
    )


def losses(lora: Lora) -> list[float]:
    """What `reduced` to the rank n would lose, at the place n: from 1.0 at 0 down to 0.0.

    Raises LoraError for a DoRA.
    """
    _check_plain(lora, "This LoRA", "resized")
    squares = torch.zeros(max(pair.rank for pair in lora.pairs.values()) + 1, dtype=torch.float64)
    for pair in lora.pairs.values():
        values = _singular(pair)[1].square()
        # What is behind each rank: the sum of the tail from there on.
        squares[: len(values)] += values.flip(0).cumsum(0).flip(0)
    whole = float(squares[0])
    return [math.sqrt(float(value) / whole) if whole else 0.0 for value in squares]


def _truncated(path: str, pair: LoraPair, rank: int) -> tuple[LoraPair, Tensor]:
    """The nearest change of that rank, and all singular values of the change."""
    u, values, v = _singular(pair)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    new_up = (u[:, :kept] * roots).float()
    new_down = (roots[:, None] * v[:kept]).float()
    return (
        _checked(
            path,
            new_down.reshape(kept, *pair.down.shape[1:]),
            new_up.reshape(pair.up.shape[0], kept, *pair.up.shape[2:]),
            "Take another one: no picture can be painted with it.",
        ),
        values,
    )


def _singular(pair: LoraPair) -> tuple[Tensor, Tensor, Tensor]:
    """u (out, n), all singular values (n) and v (n, in) of the change, n no more than the rank."""
    up, down = _flat(pair)
    left, small = torch.linalg.qr(up)
    right, thin = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small @ thin.T, full_matrices=False)
    return left @ u, values, v @ right.T


def compared(one: Lora, other: Lora) -> Comparison:
    """How far two LoRAs are apart, layer by layer and as a whole. Raises LoraError for DoRAs."""
    for lora, shown in ((one, "The first LoRA"), (other, "The second LoRA")):
        _check_plain(lora, shown, "compared")
    shared = [path for path in sorted(one.pairs) if path in other.pairs]
    misfits = [path for path in shared if one.pairs[path].shape != other.pairs[path].shape]
    layers, products = [], []
    for path in shared:
        if path in misfits:
            continue
        first, second = _flat(one.pairs[path]), _flat(other.pairs[path])
        product = float(((first[0].T @ second[0]) * (first[1] @ second[1].T)).sum())
        products.append(product)
        # Of the difference itself: squares of norms would lose half of the digits.
        apart = _norm(torch.cat([first[0], -second[0]], dim=1), torch.cat([first[1], second[1]]))
        layers.append(_compared(path, (_norm(*first), _norm(*second)), apart, product))
    norms = [math.hypot(*(layer.norms[n] for layer in layers)) for n in (0, 1)]
    apart = math.hypot(*(layer.difference * max(layer.norms) for layer in layers))
    return Comparison(
        only=(
            tuple(path for path in sorted(one.pairs) if path not in other.pairs),
            tuple(path for path in sorted(other.pairs) if path not in one.pairs),
        ),
        misfits=tuple(misfits),
        layers=tuple(layers),
        total=_compared("", (norms[0], norms[1]), apart, math.fsum(products)),
    )


def _compared(
    path: str, norms: tuple[float, float], apart: float, product: float
) -> LayerComparison:
    largest, scale = max(norms), norms[0] * norms[1]
    return LayerComparison(
        path=path,
        norms=norms,
        difference=apart / largest if largest else 0.0,
        cosine=max(-1.0, min(1.0, product / scale)) if scale else 0.0,
    )


def _flat(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """up (out, r) and down (r, in) in float64."""
    return pair.up.flatten(1).double(), pair.down.flatten(1).double()


def _norm(up: Tensor, down: Tensor) -> float:
    """The Frobenius norm of up @ down."""
    return float((torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T).norm())
