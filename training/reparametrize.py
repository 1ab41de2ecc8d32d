"""Stage 1 -> stage 2: a class-conditional DiT (adaLN-Zero) becomes a PixArt (adaLN-single).

PixArt-α, section 2.3 (arXiv 2310.00426): all blocks share one modulation f(t), and a table E_i per
block takes up the difference, E_i = S_i(t, c) - f(t), at one timestep and without a class. There
the two nets are equal as long as cross-attention adds nothing.
"""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import Tensor
from torch.nn import functional

from pipelines.errors import TrainingError

ANCHOR = 500
"""The timestep at which both nets agree."""
_BLOCK = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")


@torch.no_grad()
def reparametrize(dit: DiTTransformer2DModel, model: PixArtTransformer2DModel) -> None:
    """Fills `model`, which was made for text, with the weights of `dit`.

    The shared modulation is that of the first block. The class embedding is dropped: c = 0. Raises
    TrainingError where the shapes differ.
    """
    mine, theirs = model.config, dit.config
    for name in ("num_attention_heads", "attention_head_dim", "patch_size", "in_channels"):
        if mine[name] != theirs[name]:
            raise TrainingError(
                f"The class-conditional net has {name} {theirs[name]}, the new one {mine[name]}."
            )
    scales = (dit.pos_embed.interpolation_scale, mine.interpolation_scale)
    if scales[0] != scales[1]:
        raise TrainingError(
            f"The class-conditional net has interpolation_scale {scales[0]}, the new one"
            f" {scales[1]}: its positions would mean something else.",
            "Give both stages the same net.interpolation_scale.",
        )
    if len(dit.transformer_blocks) != len(model.transformer_blocks):
        raise TrainingError("The class-conditional net has another number of blocks.")
    first = dit.transformer_blocks[0].norm1
    _copy(dit.pos_embed.proj, model.pos_embed.proj)
    time = model.adaln_single
    for layer in ("linear_1", "linear_2"):
        _copy(
            getattr(first.emb.timestep_embedder, layer),
            getattr(time.emb.timestep_embedder, layer),
        )
    _copy(first.linear, time.linear)
    for old, new in zip(dit.transformer_blocks, model.transformer_blocks, strict=True):
        for path in _BLOCK:
            _copy(old.get_submodule(path), new.get_submodule(path))
    _copy(dit.proj_out_2, model.proj_out)

    before = _embedded(dit, ANCHOR)
    activated = functional.silu(before)
    shared = time.linear(activated)
    for old, new in zip(dit.transformer_blocks, model.transformer_blocks, strict=True):
        difference = old.norm1.linear(activated) - shared
        new.scale_shift_table.copy_(difference.view_as(new.scale_shift_table))
    final = dit.proj_out_1(activated).view(2, -1)
    # The output of PixArt is modulated by the raw embedding of the timestep.
    model.scale_shift_table.copy_(final - before)


def _embedded(dit: DiTTransformer2DModel, timestep: int) -> Tensor:
    """The embedding (1, H) of a timestep without a class."""
    embedder = dit.transformer_blocks[0].norm1.emb
    weight = embedder.timestep_embedder.linear_1.weight
    sinusoids = embedder.time_proj(torch.tensor([timestep], device=weight.device))
    result: Tensor = embedder.timestep_embedder(sinusoids.to(weight.dtype))
    return result


def _copy(source: torch.nn.Module, target: torch.nn.Module) -> None:
    target.load_state_dict(source.state_dict())
