"""What a layer adds to the tokens, and the norm that follows it.

Beside the products, this is most of what a GPU moves through its memory: apart, adding and norming
read and write every token several times. `Joined` has torch.compile make one kernel of both, which
the tokens pass once. It sees all tokens as one long matrix, so that one graph serves every size and
any number of texts. Why so: docs/decisions/0013.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import printable
from pipelines.memory.planning import is_out_of_memory

log = logging.getLogger(__name__)

EPS = 1e-6
"""That of every PixArt; a graph holds it as a number."""

Compiler = str | Callable[..., Any]
"""A back end of torch.compile, by name or itself."""

_Join = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Residual(Protocol):
    """The tokens x (B, N, D), which are used up, -> (x', norm(x') * scale + shift).

    `gate`, `shift` and `scale` are (D,).
    """

    def gated(
        self, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x' = x + gate * y."""
        ...

    def cross_attended(
        self, x: Tensor, outputs: Sequence[Tensor], shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x' is x with output b of cross-attention, (1, N, D) or (1, 1, D), added to row b."""
        ...

    def added(self, x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """x' = x + y, with y (B, N, D) or (1, N, D)."""
        ...


class Apart:
    """One kernel after the other."""

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def gated(
        self, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Residual`."""
        return x.addcmul_(gate, y), norm(x, shift, scale, self._eps)

    def cross_attended(
        self, x: Tensor, outputs: Sequence[Tensor], shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Residual`."""
        for row, output in enumerate(outputs):
            x[row : row + 1].add_(output)
        return x, norm(x, shift, scale, self._eps)

    def added(self, x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See `Residual`."""
        x.add_(y)
        return x, norm(x, shift, scale, self._eps)


class Joined:
    """One kernel for both, for tokens of `width` and norms with `EPS`.

    The first use compiles, which takes seconds; where that fails, it is said in the log and both
    are done apart. `compiler` is a back end of torch.compile.
    """

    def __init__(self, width: int, like: Tensor, compiler: Compiler) -> None:
        self._join = _compiled(width, compiler)
        # Not at the start of its tensor, like every other gate: a graph tells these apart.
        self._one = like.new_ones(2, width)[1]
        self._apart = Apart(EPS)
        self._failed = False

    def gated(
        self, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Residual`."""
        if self._failed:
            return self._apart.gated(x, y, gate, shift, scale)
        try:
            grown, normed = self._join(x.flatten(0, 1), y.flatten(0, 1), gate, shift, scale)
        # A seam: compilers and fresh kernels fail in ways of their own. x has not grown yet.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.warning("Kernels cannot be joined here: %s", printable(error, 300))
            self._failed = True
            return self._apart.gated(x, y, gate, shift, scale)
        return grown.view_as(x), normed.view_as(x)

    def cross_attended(
        self, x: Tensor, outputs: Sequence[Tensor], shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Residual`. Apart with guidance: a part of x would need a graph of its own."""
        if len(outputs) == 1 and outputs[0].shape == x.shape:
            return self.gated(x, outputs[0], self._one, shift, scale)
        return self._apart.cross_attended(x, outputs, shift, scale)

    def added(self, x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See `Residual`."""
        if y.shape == x.shape:
            return self.gated(x, y, self._one, shift, scale)
        return self._apart.added(x, y, shift, scale)


def norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """The layer norm of tokens (..., D), scaled and shifted."""
    return functional.layer_norm(x, x.shape[-1:], scale, shift, eps)


def _compiled(width: int, compiler: Compiler) -> _Join:
    # As Python's numbers they would be inputs of the graph. Two widths are told apart by the shapes
    # that a graph asserts; nothing would tell two EPS apart.
    known = torch.compiler.assume_constant_result(lambda: (width, EPS))

    def join(
        x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, D) each; growing x itself is what inductor fails at for processors."""
        wide, eps = known()
        grown = torch.addcmul(x, gate, y)
        return grown, functional.layer_norm(grown, (wide,), scale, shift, eps)

    # Dynamic from the start: otherwise the first size would get a graph of its own.
    compiled: _Join = torch.compile(join, dynamic=True, fullgraph=True, backend=compiler)
    return compiled
