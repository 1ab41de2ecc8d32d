"""Precisions that a machine has not; short sequences are attended to by plain products on a
processor, and the result is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.errors import RequestError
from tests.training import small
from tests.training.loop import toy
from training import nets, stages
from training.loop.devices import attention, make_accelerator
from training.recipes import resolve


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that takes bf16, but only by emulation."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({}, "Choose fp16, or fp32 where fp16 does not learn."),
        ({"optimizer": {"name": "muon"}}, "Choose fp32: fp16 goes neither with muon"),
        ({"shard": True}, "Choose fp32: fp16 goes neither with muon"),
    ],
)
def test_a_card_without_bf16_says_so(turing: None, changes: dict[str, Any], way_out: str) -> None:
    with pytest.raises(RequestError, match="This GPU does not compute in bf16") as caught:
        make_accelerator(toy.config(precision="bf16", **changes))
    assert caught.value.way_out.startswith(way_out)


def test_a_card_without_bf16_says_so_before_the_first_stage(turing: None, tmp_path: Path) -> None:
    values = small.recipe()
    values["stage"][-1]["precision"] = "bf16"
    small.pictures(tmp_path / "data" / "pictures")
    with pytest.raises(RequestError, match="This GPU does not compute in bf16"):
        stages.walk(
            resolve(values, name="small"),
            root=tmp_path / "run",
            data=tmp_path / "data",
            report=lambda _: lambda _: None,
            should_stop=lambda: False,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("side", "patch", "fused"),
    [(8, 2, False), (32, 2, False), (34, 2, False), (46, 2, True), (8, 1, False)],
)
def test_the_kernel_follows_the_length(side: int, patch: int, fused: bool) -> None:
    assert torch.backends.cuda.flash_sdp_enabled()
    with attention(torch.zeros(1, 4, side, side), patch):
        assert torch.backends.cuda.flash_sdp_enabled() == fused
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() != fused
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_both_kernels_learn_the_same() -> None:
    torch.manual_seed(0)
    net = nets.pixart({"layers": 1, "heads": 2}, channels=4, sample_size=8, caption_channels=16)
    torch.nn.init.normal_(net.proj_out.weight, std=0.1)
    latents, texts = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    gradients = []
    for patch in (2, 0):
        net.zero_grad()
        # Nothing is short in patches of 0 pixels.
        with attention(latents, patch):
            output = net(
                latents,
                encoder_hidden_states=texts,
                encoder_attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
                timestep=torch.tensor([10, 500]),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
        output.square().sum().backward()
        grad = net.transformer_blocks[0].attn1.to_q.weight.grad
        assert grad is not None
        gradients.append(grad.clone())
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


class CountDtypes(TorchDispatchMode):
    """Notes in which precision batched products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.matmul):
            self.products.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_short_attention_stays_in_bf16() -> None:
    """Half of its time; beside fp32 the gradients are within the noise of that precision."""
    torch.manual_seed(0)
    heads = [torch.randn(2, 6, 64, 64) for _ in range(3)]
    wanted = [tensor.clone().requires_grad_() for tensor in heads]
    above = torch.randn(2, 6, 64, 64)
    query, key, value = wanted
    nn.functional.scaled_dot_product_attention(query, key, value).backward(above)
    found = [tensor.to(torch.bfloat16).requires_grad_() for tensor in heads]
    query, key, value = found
    with attention(torch.zeros(1, 4, 16, 16), 2), CountDtypes() as seen:
        output = nn.functional.scaled_dot_product_attention(query, key, value)
    assert seen.products
    assert set(seen.products) == {torch.bfloat16}
    output.backward(above.to(torch.bfloat16))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert (mine.grad.float() - theirs.grad).norm() < 0.02 * theirs.grad.norm()
