"""T5: a prompt -> features without padding.

The null caption is T5("") with its own one-token mask, in painting as in training. Features are
kept without padding; padding appears only where two texts of different length share a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import T5EncoderModel

from pipelines.catalog import ModelSpec
from pipelines.tokens import tokenize

MAX_CACHED = 64


@dataclass(frozen=True, kw_only=True)
class PromptFeatures:
    """Embeddings (B, T, C) and mask (B, T), 1 where a token is read."""

    embeds: Tensor
    mask: Tensor


class TextEncoder:
    """The text side of one model, with the features of the last prompts."""

    def __init__(self, model: ModelSpec, encoder: T5EncoderModel) -> None:
        self._model = model
        self._encoder = encoder
        self._cache: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def features(self, text: str) -> Tensor:
        """The features (T, C) of the tokens that the model reads. Raises ModelError."""
        ids = tokenize(text, self._model).ids
        if ids not in self._cache:
            device = next(self._encoder.parameters()).device
            batch = torch.tensor([ids], device=device)
            self._cache[ids] = self._encoder(batch).last_hidden_state[0]
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(ids)
        return self._cache[ids]

    def conditions(self, prompt: str, negative: str | None) -> list[Tensor]:
        """Features (T, C) of the prompt, or of negative and prompt where guidance is computed."""
        texts = [prompt] if negative is None else [negative, prompt]
        return [self.features(text) for text in texts]


def batch(features: list[Tensor]) -> PromptFeatures:
    """Features of different length, padded to the longest."""
    longest = max(len(f) for f in features)
    embeds = torch.stack([_padded(f, longest) for f in features])
    mask = torch.zeros(embeds.shape[:2], dtype=embeds.dtype, device=embeds.device)
    for row, f in enumerate(features):
        mask[row, : len(f)] = 1
    return PromptFeatures(embeds=embeds, mask=mask)


def _padded(features: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(features, (0, 0, 0, length - len(features)))
