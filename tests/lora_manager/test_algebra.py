"""Several LoRAs as one, smaller ones, and how far two are apart: against the whole matrices."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_manager import algebra, attach, files
from lora_manager.errors import LoraError
from lora_manager.files import Lora, LoraPair
from tests import tiny
from tests.lora_manager import made

Q = "transformer_blocks.1.attn1.to_q"


def loaded(folder: Path, seed: int, rank: int = 4, *, outer: bool = True) -> Lora:
    folder.mkdir(exist_ok=True)
    return files.read(made.f2(made.reference(seed, rank=rank, alpha=5.0, outer=outer), folder))


def summed(parts: list[tuple[Lora, float]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for lora, weight in parts:
        for path, pair in lora.pairs.items():
            change = weight * (pair.up.flatten(1).double() @ pair.down.flatten(1).double())
            found[path] = found.get(path, torch.zeros(())) + change
    return found


def flat(pair: LoraPair) -> Tensor:
    return pair.up.flatten(1).double() @ pair.down.flatten(1).double()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (-1.5, 2.0), (0.0, 1.0)])
def test_a_merged_lora_is_the_sum(weights: tuple[float, float], tmp_path: Path) -> None:
    one, two = loaded(tmp_path / "a", 0), loaded(tmp_path / "b", 1, rank=7, outer=False)
    made_ = algebra.merged([("a", one, weights[0]), ("b", two, weights[1])])
    wanted = summed([p for p in ((one, weights[0]), (two, weights[1])) if p[1]])
    assert set(made_.pairs) == set(wanted)
    for path, change in wanted.items():
        assert (flat(made_.pairs[path]) - change).norm() / change.norm() < 1e-5, path
    both = made_.pairs[Q]
    assert both.rank == (11 if weights[0] else 7)


def test_a_merged_lora_paints_as_both_do(tmp_path: Path) -> None:
    one, two = loaded(tmp_path / "a", 0), loaded(tmp_path / "b", 1, rank=7, outer=False)
    parts = [("a", one, 0.7), ("b", two, -0.4)]
    base = tiny.transformer()
    stacked, single = copy.deepcopy(base), copy.deepcopy(base)
    attach.merge(stacked, parts)
    attach.merge(single, [("c", algebra.merged(parts), 1.0)])
    for one_, other in zip(stacked.parameters(), single.parameters(), strict=True):
        assert (one_ - other).abs().max() < 1e-5


def test_what_cannot_be_merged_is_said(tmp_path: Path) -> None:
    one = loaded(tmp_path / "a", 0)
    wide = Lora(pairs={Q: LoraPair(down=torch.ones(1, 96), up=torch.ones(96, 1))})
    with pytest.raises(LoraError, match=f"“a” and “w” were made .* “{Q}” of 48×48, .* of 96×96"):
        algebra.merged([("a", one, 1.0), ("w", wide, 1.0)])
    with pytest.raises(LoraError, match="would change nothing"):
        algebra.merged([("a", one, 0.0)])
    none = Lora(pairs={Q: LoraPair(down=torch.ones(1, 48), up=torch.zeros(48, 1))})
    with pytest.raises(LoraError, match="“z” changes nothing: its numbers, or its strength"):
        algebra.merged([("a", one, 1.0), ("z", none, 0.5)])
    assert set(algebra.merged([("a", one, 1.0), ("z", none, 0.0)]).pairs) == set(one.pairs)
    strong = Lora(pairs={Q: LoraPair(down=torch.ones(1, 48), up=torch.full((48, 1), 3e38))})
    with pytest.raises(LoraError, match="not finite"):
        algebra.merged([("s", strong, 2.0)])


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_a_smaller_rank_is_the_nearest_one(rank: int, tmp_path: Path) -> None:
    """Against torch's SVD of the whole matrices, layer by layer."""
    lora = loaded(tmp_path, 3, rank=9)
    found = algebra.reduced(lora, rank)
    lost, whole = 0.0, 0.0
    for path, pair in lora.pairs.items():
        u, values, v = torch.linalg.svd(flat(pair), full_matrices=False)
        wanted = u[:, :rank] * values[:rank] @ v[:rank]
        smaller = found.lora.pairs[path]
        assert smaller.rank == min(rank, pair.rank)
        assert smaller.shape == pair.shape
        assert (flat(smaller) - wanted).norm() / values.norm() < 1e-5, path
        lost += float(values[rank:].square().sum())
        whole += float(values.square().sum())
    # 9 is its own rank, where the sums above hold only rounding.
    assert found.error == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    measured = algebra.compared(lora, found.lora).total.difference
    assert found.error == pytest.approx(measured, abs=1e-6)
    assert found.error <= found.worst_error <= 1 or rank == 9


@pytest.mark.parametrize("rank", [1, 4, 8, 9])
def test_what_smaller_ranks_lose_is_known_before(rank: int, tmp_path: Path) -> None:
    lora = loaded(tmp_path, 3, rank=9)
    lost = algebra.losses(lora)
    assert (len(lost), lost[0], lost[9]) == (10, pytest.approx(1.0), 0.0)
    assert lost[rank] == pytest.approx(algebra.reduced(lora, rank).error, abs=1e-9)
    zero = Lora(pairs={Q: LoraPair(down=torch.ones(2, 48), up=torch.zeros(48, 2))})
    assert algebra.losses(zero) == [0.0, 0.0, 0.0]


def test_one_that_is_far_too_strong_is_said() -> None:
    strong = Lora(pairs={Q: LoraPair(down=torch.full((2, 48), 3e38), up=torch.full((48, 2), 3e38))})
    with pytest.raises(LoraError, match=r"not finite\. Take another one"):
        algebra.reduced(strong, 1)


def test_what_is_small_enough_stays(tmp_path: Path) -> None:
    lora = loaded(tmp_path, 3, rank=4)
    found = algebra.reduced(lora, 4)
    assert (found.error, found.worst_error) == (0.0, 0.0)
    assert all(found.lora.pairs[path] is pair for path, pair in lora.pairs.items())
    with pytest.raises(LoraError, match="cannot have the rank 0"):
        algebra.reduced(lora, 0)


def test_an_exact_merge_can_be_cut_to_the_sum_of_ranks_for_nothing(tmp_path: Path) -> None:
    one, two = loaded(tmp_path / "a", 0), loaded(tmp_path / "b", 1)
    twice = algebra.merged([("a", one, 1.0), ("b", two, 0.5), ("c", one, 0.5)])
    found = algebra.reduced(twice, 8)
    assert max(pair.rank for pair in found.lora.pairs.values()) == 8
    assert found.error < 1e-12
    assert algebra.compared(twice, found.lora).total.difference < 1e-6


def test_a_lora_and_itself_are_the_same(tmp_path: Path) -> None:
    lora = loaded(tmp_path, 0)
    found = algebra.compared(lora, lora)
    assert found.only == ((), ())
    assert found.misfits == ()
    assert len(found.layers) == len(lora.pairs)
    assert found.total.difference < 1e-12
    assert found.total.cosine == pytest.approx(1)


def test_two_are_compared_as_whole_matrices(tmp_path: Path) -> None:
    one, two = loaded(tmp_path / "a", 0), loaded(tmp_path / "b", 1, rank=7)
    pairs = {path: pair for path, pair in one.pairs.items() if path != "proj_out"}
    pairs[Q] = LoraPair(down=torch.ones(1, 96), up=torch.ones(96, 1))
    first = Lora(pairs={**pairs, "caption_projection.linear_1": one.pairs["proj_out"]})
    second = Lora(pairs={p: v for p, v in two.pairs.items() if p != "pos_embed.proj"})
    found = algebra.compared(first, second)
    assert found.only == (("pos_embed.proj",), ("proj_out",))
    assert set(found.misfits) == {Q, "caption_projection.linear_1"}
    for layer in found.layers:
        a, b = flat(first.pairs[layer.path]), flat(second.pairs[layer.path])
        assert layer.norms == pytest.approx((float(a.norm()), float(b.norm())))
        largest = max(layer.norms)
        assert layer.difference == pytest.approx(float((a - b).norm()) / largest)
        assert layer.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-9)
    opposite = algebra.compared(one, algebra.merged([("a", one, -2.0)]))
    assert opposite.total.cosine == pytest.approx(-1)
    assert opposite.total.difference == pytest.approx(1.5)


def test_nothing_has_no_direction() -> None:
    zero = Lora(pairs={Q: LoraPair(down=torch.ones(2, 48), up=torch.zeros(48, 2))})
    found = algebra.compared(zero, zero)
    assert (found.total.difference, found.total.cosine) == (0.0, 0.0)
    assert algebra.reduced(zero, 1).error == 0.0
