"""Short sequences are attended to by plain products on a processor, and the result is the same."""

from __future__ import annotations

import pytest
import torch

from training import nets
from training.devices import attention


@pytest.mark.parametrize(
    ("side", "patch", "fused"), [(8, 2, False), (32, 2, False), (34, 2, True), (8, 1, False)]
)
def test_the_kernel_follows_the_length(side: int, patch: int, fused: bool) -> None:
    assert torch.backends.cuda.flash_sdp_enabled()
    with attention(torch.zeros(1, 4, side, side), patch):
        assert torch.backends.cuda.flash_sdp_enabled() == fused
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


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
