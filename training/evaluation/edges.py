"""Line drawings: what the edge detector in assets/hed sees, dark on white paper.

Holistically-Nested Edge Detection (Xie and Tu, 2015): every block of a VGG16 says where it sees an
edge, and their mean decides (the fuse layer lies in the projections).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from pipelines.denoising.latents import to_tensor
from training.perceptual import WEIGHTS, Features

_DEPTH = 5


class Edges:
    """The edge detector."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._features = Features(_DEPTH, weights)
        tensors = load_file(weights)
        self._projections = [
            (
                tensors[f"block{block}.projection.weight"].float(),
                tensors[f"block{block}.projection.bias"].float(),
            )
            for block in range(1, _DEPTH + 1)
        ]

    @torch.inference_mode()
    def drawing(self, picture: Image.Image) -> Image.Image:
        """The edges of `picture`, dark on white, RGB and of the same size."""
        maps = self._features(to_tensor(picture.convert("RGB")))
        size = (picture.height, picture.width)
        seen = [
            functional.interpolate(
                functional.conv2d(one, weight, bias), size, mode="bilinear", align_corners=False
            )
            for one, (weight, bias) in zip(maps, self._projections, strict=True)
        ]
        edge = torch.stack(seen).mean(0).sigmoid()[0, 0].numpy()
        return Image.fromarray((255 * (1 - edge)).astype(np.uint8)).convert("RGB")
