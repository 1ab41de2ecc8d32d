"""How near our forward pass is to that of diffusers, on the same weights: told beside its speed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from pipelines.denoising import kernels
from pipelines.denoising.transformer import Transformer

_TOKENS = 120
_TIMESTEP = 500.0


def told(fast: Transformer, texts: Sequence[Tensor], side: int) -> dict[str, float | bool]:
    """The distance of one prediction for latents of `side` from the truth, ours and stock's, and
    what is the same to the bit.

    In float32 the truth is stock's prediction; else that of the same weights in float32.
    """
    net = fast.net
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(2))
    latents = latents.to(net.device)
    mine = fast.predictor(texts, (side, side))(latents, _TIMESTEP)
    alone = fast.predictor(texts[-1:], (side, side))(latents, _TIMESTEP)
    same: dict[str, float | bool] = {
        "joined products equal single ones": _joined_is_single(net),
        "guided row equals unguided": torch.equal(mine[-1:], alone),
    }
    theirs = _stock(net, texts, latents)
    if net.dtype == torch.float32:
        return {"mean difference": (mine - theirs).abs().mean().item(), **same}
    # The rounded weights are the truth: both begin with them.
    truth = _stock(copy.deepcopy(net).float(), [text.float() for text in texts], latents)
    return {
        "mean error, ours": (mine - truth).abs().mean().item(),
        "mean error, stock": (theirs - truth).abs().mean().item(),
        **same,
    }


def padded(prefix: str, text: Tensor) -> dict[str, Tensor]:
    """Embeddings and mask (1, 120, ...) as stock pipelines want them; `text` is (T, C)."""
    embeds = text.new_zeros(1, _TOKENS, text.shape[1])
    embeds[0, : len(text)] = text
    mask = torch.zeros(1, _TOKENS, dtype=torch.long, device=text.device)
    mask[0, : len(text)] = 1
    return {f"{prefix}prompt_embeds": embeds, f"{prefix}prompt_attention_mask": mask}


def _joined_is_single(net: PixArtTransformer2DModel) -> bool:
    """Query, key and value in one product, against one product each."""
    own = net.transformer_blocks[0].attn1
    layers = [own.to_q, own.to_k, own.to_v]
    tokens = torch.randn(1, 256, own.to_q.in_features, generator=torch.Generator().manual_seed(3))
    tokens = tokens.to(net.device, net.dtype)
    single = torch.cat([kernels.linear(layer)(tokens) for layer in layers], dim=-1)
    return torch.equal(kernels.linear(layers)(tokens), single)


def _stock(net: PixArtTransformer2DModel, texts: Sequence[Tensor], latents: Tensor) -> Tensor:
    given = [padded("", text) for text in texts]
    rows = len(texts)
    output: Tensor = net(
        latents.repeat(rows, 1, 1, 1).to(net.dtype),
        encoder_hidden_states=torch.cat([row["prompt_embeds"] for row in given]),
        encoder_attention_mask=torch.cat([row["prompt_attention_mask"] for row in given]),
        timestep=torch.tensor([_TIMESTEP], device=latents.device).expand(rows),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return output[:, : latents.shape[1]].float()
