"""The fast forward against diffusers' own: the same numbers, less work, nothing stale."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.denoising import kernels, transformer
from pipelines.denoising.transformer import Transformer

CAPTION = 20
Net: TypeAlias = PixArtTransformer2DModel


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(layers: int = 2, *, heads: int = 4, each: int = 12, conditions: bool = False) -> Net:
    """A net with nothing at zero; heads x each is divisible by 3 for the conditions."""
    torch.manual_seed(3)
    net = Net(
        num_attention_heads=heads,
        attention_head_dim=each,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        cross_attention_dim=heads * each,
        sample_size=16,
        patch_size=2,
        caption_channels=CAPTION,
        interpolation_scale=1.0,
        use_additional_conditions=conditions,
    )
    for weight in net.parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight, std=0.2)
    return net.eval()


def texts(*lengths: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, CAPTION, generator=generator).to(dtype) for n in lengths]


def latents(h: int = 16, w: int = 16) -> Tensor:
    return torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(1))


def stock(net: Any, given: list[Tensor], x: Tensor, timestep: float) -> Tensor:
    """What diffusers computes for texts that are padded to 24 tokens and masked."""
    rows = len(given)
    embeds = torch.zeros(rows, 24, CAPTION, dtype=net.dtype)
    mask = torch.zeros(rows, 24, dtype=net.dtype)
    for row, text in enumerate(given):
        embeds[row, : len(text)] = text
        mask[row, : len(text)] = 1
    size = (x.shape[2], x.shape[3])
    output: Tensor = net(
        x.repeat(rows, 1, 1, 1).to(net.dtype),
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        timestep=torch.tensor([timestep]).expand(rows),
        added_cond_kwargs=transformer.conditions(net, size, rows),
        return_dict=False,
    )[0]
    return output.float()


# 4 heads of 12: up to 11 tokens are attended to in two small products, more by attention.
@pytest.mark.parametrize("lengths", [(1,), (6,), (20,), (1, 6), (5, 20), (24, 1), (2, 3, 1)])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("conditions", [False, True])
def test_the_numbers_are_those_of_diffusers(
    lengths: tuple[int, ...], size: tuple[int, int], conditions: bool
) -> None:
    net, given, x = make(conditions=conditions), texts(*lengths), latents(*size)
    fast = Transformer(net)
    both = fast.predictor(given, size, variance=True)
    noise = fast.predictor(given, size)
    for timestep in (999.0, 321.0, 0.0):
        expected = stock(net, given, x, timestep)
        assert expected.std() > 0.1
        torch.testing.assert_close(both(x, timestep), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(noise(x, timestep), expected[:, :4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 6), (5, 20)])
def test_bf16_is_no_further_from_the_truth_than_diffusers(lengths: tuple[int, ...]) -> None:
    """256 tokens: attention goes block by block. Mean errors over several inputs and timesteps."""
    net = make(4, heads=8, each=24)
    rounded = make(4, heads=8, each=24).to(torch.bfloat16)
    errors: defaultdict[str, float] = defaultdict(float)
    given = texts(*lengths)
    predict = Transformer(rounded).predictor([t.bfloat16() for t in given], (32, 32), variance=True)
    for seed, timestep in enumerate((900.0, 500.0, 100.0)):
        x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
        truth = stock(net, given, x, timestep)
        theirs = stock(rounded, [t.bfloat16() for t in given], x, timestep)
        errors["ours"] += (predict(x, timestep) - truth).abs().mean().item()
        errors["stock"] += (theirs - truth).abs().mean().item()
    assert 0 < errors["ours"] <= 1.05 * errors["stock"]


class Seen(TorchDispatchMode):
    """Counts what runs: everything that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.ops[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def count(net: Net, given: list[Tensor]) -> Counter[str]:
    """The operations of a second step."""
    predict = Transformer(net).predictor(given, (16, 16))
    predict(latents(), 700.0)
    predict(latents(), 600.0)
    with Seen() as seen:
        predict(latents(), 600.0)
    return seen.ops


PRODUCTS = ("linear", "addmm", "mm", "bmm", "baddbmm", "_linear_pointwise", "convolution")


def test_a_step_has_few_kernels_and_no_product_of_the_text() -> None:
    short = texts(1, 6)
    for given in (short, texts(1, 20)):
        two, three = (count(make(layers), given) for layers in (2, 3))
        block = three - two
        # qkv, out, up, down and two for the prompt: its keys and values are not made again.
        assert sum(block[name] for name in PRODUCTS) == 6
        # With an empty negative prompt: 28 blocks and the rest stay below 440; diffusers runs 926.
        assert sum(block.values()) <= 15, dict(block)
        assert sum(two.values()) - 2 * sum(block.values()) <= 20
    # With a typed one, its own three products instead of a constant.
    two, three = (count(make(layers), texts(5, 20)) for layers in (2, 3))
    assert sum((three - two).values()) <= 18, dict(three - two)
    with Seen() as seen:
        stock(make(3), short, latents(), 600.0)
    assert sum(count(make(3), short).values()) < 0.6 * sum(seen.ops.values())


def test_nothing_in_a_step_waits_for_a_number() -> None:
    for given in (texts(1, 6), texts(5, 20)):
        assert count(make(), given)["_local_scalar_dense"] == 0


def test_no_number_is_copied_to_the_device_in_a_step() -> None:
    """A GPU would have to finish all that is queued before such a copy; also in a first step."""
    predict = Transformer(make(conditions=True)).predictor(texts(1, 6), (16, 16))
    x = latents()
    with Seen() as seen:
        predict(x, 700.0)
    assert seen.ops["full"] == 1
    assert seen.ops["lift_fresh"] == 0


def test_positions_are_built_once_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = transformer.get_2d_sincos_pos_embed

    def counted(**given: Any) -> Tensor:
        built.append(given["grid_size"])
        table: Tensor = original(**given)
        return table

    monkeypatch.setattr(transformer, "get_2d_sincos_pos_embed", counted)
    fast = Transformer(make())
    sizes = [(16, 16), *((4 + 2 * i, 20) for i in range(10))]
    for _ in range(2):
        for size in sizes:
            fast.predictor(texts(1), size)(latents(*size), 5.0)
    # The first is the net's own.
    assert built == [(h // 2, w // 2) for h, w in sizes[1:]]


def test_tables_of_positions_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Transformer(make())
    for size in ((16, 16), (12, 20), (16, 16), (20, 12)):
        fast.predictor(texts(1), size)
        monkeypatch.setattr(transformer, "_MAX_POSITIONS", 2 * fast._table_bytes())
    monkeypatch.setattr(transformer, "_MAX_POSITIONS", 1)
    fast.predictor(texts(1), (8, 8))
    # What is in use stays, however large it is.
    assert list(fast._positions) == [(8, 8)]


def test_changed_weights_are_seen() -> None:
    net, given, x = make(), texts(1, 6), latents()
    fast = Transformer(net)
    before = fast.predictor(given, (16, 16), variance=True)(x, 400.0)
    for name in ("attn1.to_k", "attn2.to_v", "ff.net.2"):
        net.transformer_blocks[1].get_submodule(name).weight.mul_(1.5)
        after = fast.predictor(given, (16, 16), variance=True)(x, 400.0)
        torch.testing.assert_close(after, stock(net, given, x, 400.0), rtol=0, atol=1e-5)
        assert (after - before).abs().max() > 1e-3
        before = after


def test_a_new_weight_at_an_old_address_is_seen() -> None:
    net, given, x = make(), texts(1), latents()
    fast = Transformer(net)
    layer = net.transformer_blocks[0].ff.net[2]
    kept = layer.weight
    for number in range(6):
        layer.weight = nn.Parameter(kept.detach() * (2 + number))
        torch.testing.assert_close(
            fast.predictor(given, (16, 16), variance=True)(x, 400.0),
            stock(net, given, x, 400.0),
            rtol=0,
            atol=1e-4,
        )
        layer.weight = kept


def test_joined_weights_of_an_owned_net_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nothing is packed; the numbers and a later change stay right."""
    monkeypatch.setattr(kernels, "_can_pack", lambda weight: False)
    net, given, x = make(), texts(1, 6), latents()
    expected = stock(net, given, x, 400.0)
    fast = Transformer(net, owned=True)
    torch.testing.assert_close(
        fast.predictor(given, (16, 16), variance=True)(x, 400.0), expected, rtol=0, atol=1e-5
    )
    own = net.transformer_blocks[0].attn1
    q, k = (layer.weight.untyped_storage().data_ptr() for layer in (own.to_q, own.to_k))
    assert q == k
    own.to_k.weight.mul_(1.5)
    torch.testing.assert_close(
        fast.predictor(given, (16, 16), variance=True)(x, 400.0),
        stock(net, given, x, 400.0),
        rtol=0,
        atol=1e-5,
    )


class Adapted(nn.Module):
    """A layer with a low-rank addition, as adapters put around layers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        torch.manual_seed(7)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.up(self.down(x))
        return y


@pytest.mark.parametrize(
    "path",
    ["attn1.to_q", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_out.0", "ff.net.2"],
)
def test_layers_with_adapters_keep_their_own_way(path: str) -> None:
    net, given, x = make(), texts(1, 6), latents()
    fast = Transformer(net)
    before = fast.predictor(given, (16, 16), variance=True)(x, 400.0)
    block = net.transformer_blocks[0]
    block.set_submodule(path, Adapted(block.get_submodule(path)))
    after = fast.predictor(given, (16, 16), variance=True)(x, 400.0)
    torch.testing.assert_close(after, stock(net, given, x, 400.0), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-4


def test_changes_through_data_are_told() -> None:
    net, given, x = make(), texts(1), latents()
    fast = Transformer(net)
    fast.predictor(given, (16, 16))(x, 400.0)
    net.proj_out.weight.data *= 2
    fast.refresh()
    after = fast.predictor(given, (16, 16))(x, 400.0)
    torch.testing.assert_close(after, stock(net, given, x, 400.0)[:, :4], rtol=0, atol=1e-5)


def test_the_original_size_can_be_told() -> None:
    fast, given, x = Transformer(make(conditions=True)), texts(1, 6), latents()
    told = [
        fast.predictor(given, (16, 16), original_size=size)(x, 400.0)
        for size in (None, (128, 128), (1024, 1024))
    ]
    assert torch.equal(told[0], told[1])
    assert (told[0] - told[2]).abs().max() > 1e-3


def test_the_same_job_twice_is_the_same_to_the_bit() -> None:
    fast = Transformer(make())
    runs = [
        [fast.predictor(texts(1, 6), (16, 16))(latents(), t) for t in (900.0, 30.0)]
        for _ in range(3)
    ]
    for one, other in pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(1, 2, 130, 130), (2, 3, 600, 40), (1, 1, 128, 1030)])
def test_blocked_attention_is_attention(shape: tuple[int, int, int, int]) -> None:
    batch, heads, queries, keys = shape
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(batch, heads, queries, 24, generator=generator)
    k, v = (torch.randn(batch, heads, keys, 24, generator=generator) for _ in range(2))
    expected = (q @ k.transpose(2, 3) / 24**0.5).softmax(-1) @ v
    expected = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(kernels._blocked(q, k, v), expected, rtol=0, atol=1e-5)
    rough = kernels.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    torch.testing.assert_close(rough, expected, rtol=0, atol=3e-2)


def test_processors_without_tiles_attend_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 2, 256, 24).bfloat16()
    for tiles, name in ((False, "baddbmm"), (True, "_scaled_dot_product_flash_attention_for_cpu")):
        monkeypatch.setattr(kernels, "_has_tiles", lambda tiles=tiles: tiles)
        with torch.no_grad(), Seen() as seen:
            kernels.attention(q, q, q)
        assert seen.ops[name] > 0, dict(seen.ops)


def test_guidance_begins_at_the_first_cross_attention() -> None:
    """Before, both halves are one row: the first products of two texts are those of one."""
    net = make()
    shapes: list[list[tuple[int, ...]]] = []

    class Rows(Seen):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = super().__torch_dispatch__(func, types, args, kwargs)
            if func.overloadpacket.__name__ in PRODUCTS:
                shapes[-1].append(tuple(made.shape))
            return made

    for given in (texts(6), texts(1, 6)):
        predict = Transformer(net).predictor(given, (16, 16))
        predict(latents(), 600.0)
        shapes.append([])
        with torch.inference_mode(), Rows():
            predict(latents(), 600.0)
    one, two = shapes
    # Patches, then query, key and value.
    assert one[:2] == two[:2]
    assert one != two
