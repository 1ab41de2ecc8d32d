"""A LoRA for the small random nets, as a file of the user."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel

from lora_manager import files
from lora_manager.files import Lora, LoraPair
from tests.lora_manager import made

NANO = 384
"""How wide the layers of the model that ships are."""


def lora(file: Path, seed: int = 0, wide: int = made.WIDE) -> Path:
    """Writes a LoRA to `file`, which it returns: for `tiny.transformer()`, or for layers that are
    `wide`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return made.f1(made.reference(seed, wide=wide), file.parent).replace(file)


def dora(file: Path, model: Path, seed: int = 5) -> Path:
    """Writes a DoRA to `file`, which it returns, for the small random model in `model`."""
    net = PixArtTransformer2DModel.from_pretrained(model / "transformer")
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for path, one in made.reference(seed, outer=False).items():
        rows = net.get_submodule(path).weight.detach().norm(dim=1, keepdim=True)
        pairs[path] = LoraPair(
            down=one.a,
            up=one.b * (one.alpha / made.RANK),
            magnitude=rows * (0.7 + 0.6 * torch.rand(rows.shape, generator=generator)),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, Lora(pairs=pairs), {})
    return file
