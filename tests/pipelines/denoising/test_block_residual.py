"""What is added behind blocks from outside, as by a ControlNet: the numbers are diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.denoising.transformer import BlockResidual, Transformer
from tests.pipelines.denoising.test_transformer import Net, Seen, latents, make, stock, texts

LAYERS = 4


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def stock_with(
    net: Net, residual: BlockResidual, given: list[Tensor], x: Tensor, timestep: float
) -> Tensor:
    """What diffusers computes where hooks add the residual to the output of each block."""

    def hook(index: int) -> Any:
        def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
            added = residual(index, output, timestep)
            return output if added is None else output + added

        return add

    handles = [
        block.register_forward_hook(hook(index))
        for index, block in enumerate(net.transformer_blocks)
    ]
    try:
        return stock(net, given, x, timestep)
    finally:
        for handle in handles:
            handle.remove()


def constant(rows: int, tokens: int, width: int = 48) -> BlockResidual:
    """A tensor for each block but the second, for every row its own or for all the same."""
    made = torch.randn(LAYERS, rows, tokens, width, generator=torch.Generator().manual_seed(2))
    return lambda index, x, timestep: None if index == 1 else made[index]


def of_the_tokens(index: int, x: Tensor, timestep: float) -> Tensor | None:
    """A ControlNet's first block reads the tokens behind the first block of the net."""
    return None if index == LAYERS - 1 else 0.3 * torch.tanh(x.roll(1, -1)) + timestep / 1000


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
@pytest.mark.parametrize("lengths", [(6,), (1, 6), (5, 20)])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_numbers_are_those_of_stock_blocks_with_a_residual(
    lengths: tuple[int, ...], size: tuple[int, int], compiler: str | None
) -> None:
    net, given, x = make(LAYERS), texts(*lengths), latents(*size)
    tokens = size[0] * size[1] // 4
    fast = Transformer(net, compiler=compiler)
    plain = stock(net, given, x, 321.0)
    for residual in (constant(1, tokens), constant(len(given), tokens), of_the_tokens):
        predict = fast.predictor(given, size, variance=True, residual=residual)
        for timestep in (999.0, 321.0):
            expected = stock_with(net, residual, given, x, timestep)
            torch.testing.assert_close(predict(x, timestep), expected, rtol=0, atol=2e-5)
        assert (expected - plain).abs().max() > 0.05
    # Nothing of it stays in the net.
    without = fast.predictor(given, size, variance=True)
    torch.testing.assert_close(without(x, 321.0), plain, rtol=0, atol=1e-5)


def test_the_residual_may_have_another_precision_and_is_not_changed() -> None:
    net, given, x = make(LAYERS).to(torch.bfloat16), [t.bfloat16() for t in texts(6)], latents()
    added = torch.randn(1, 64, 48, generator=torch.Generator().manual_seed(2))
    before = added.clone()
    predict = Transformer(net).predictor(given, (16, 16), residual=lambda i, x, t: added)
    assert predict(x, 400.0).isfinite().all()
    assert torch.equal(added, before)


def test_without_a_residual_no_bit_and_no_operation_changes() -> None:
    net, given, x = make(LAYERS), texts(1, 6), latents()
    fast = Transformer(net)
    counts, results = [], []
    for predict in (
        fast.predictor(given, (16, 16)),
        fast.predictor(given, (16, 16), residual=None),
    ):
        predict(x, 400.0)
        with Seen() as seen:
            results.append(predict(x, 400.0))
        counts.append(seen.ops)
    nothing = fast.predictor(given, (16, 16), residual=lambda index, x, timestep: None)
    assert counts[0] == counts[1]
    assert counts[0]["addcmul_"] == LAYERS, "the end of a block grows the tokens in place"
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], nothing(x, 400.0))


def test_residuals_come_block_by_block_with_their_timestep() -> None:
    seen: list[tuple[int, tuple[int, ...], float]] = []

    def look(index: int, x: Tensor, timestep: float) -> None:
        seen.append((index, tuple(x.shape), timestep))

    predict = Transformer(make(LAYERS)).predictor(texts(1, 6), (16, 16), residual=look)
    predict(latents(), 400.0)
    assert seen == [(index, (2, 64, 48), 400.0) for index in range(LAYERS)]
