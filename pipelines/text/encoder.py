"""T5: a prompt -> features without padding.

The null caption is T5("") with its own one-token mask, in painting as in training. Features are
kept without padding; padding appears only where two texts of different length share a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import T5EncoderModel

from pipelines.catalog import Cleaning, ModelSpec
from pipelines.text.prompt_cache import PromptCache
from pipelines.text.tokens import tokenize

MAX_CACHED = 64


@dataclass(frozen=True, kw_only=True)
class PromptFeatures:
    """Embeddings (B, T, C) and mask (B, T), 1 where a token is read."""

    embeds: Tensor
    mask: Tensor


class TextEncoder:
    """The text side of one model. T5 is loaded by the first text that is not known yet.

    `load` gives the encoder, which works on `device`; `identity` names it and its precision for
    the cache on disk. Texts are cleaned as `cleaning` says, else as the model's row does.
    """

    def __init__(
        self,
        model: ModelSpec,
        load: Callable[[], T5EncoderModel],
        *,
        device: torch.device,
        identity: str,
        cache: PromptCache | None = None,
    ) -> None:
        self._model = model
        self._load = load
        self._device = device
        self._identity = identity
        self._on_disk = cache
        self._encoder: T5EncoderModel | None = None
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def knows(self, *texts: str, cleaning: Cleaning | None = None) -> bool:
        """True where T5 is not needed for `texts`."""
        return all(self._known_ids(tokenize(text, self._model, cleaning).ids) for text in texts)

    def remember(self, *texts: str, cleaning: Cleaning | None = None) -> None:
        """Encodes `texts` for later. Raises ModelError."""
        for text in texts:
            self.features(text, cleaning)

    def _known_ids(self, ids: tuple[int, ...]) -> bool:
        if ids not in self._known and self._on_disk is not None:
            features = self._on_disk.find(ids, self._identity)
            if features is not None:
                self._known[ids] = features
        return ids in self._known

    def release(self) -> None:
        """Frees T5; what is known stays known."""
        self._encoder = None

    def features(self, text: str, cleaning: Cleaning | None = None) -> Tensor:
        """The features (T, C) of the tokens that the model reads. Raises ModelError."""
        ids = tokenize(text, self._model, cleaning).ids
        if ids not in self._known:
            self._known[ids] = self._found(ids)
            if len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        self._known.move_to_end(ids)
        return self._known[ids]

    def _found(self, ids: tuple[int, ...]) -> Tensor:
        if self._on_disk is None:
            return self._encoded(ids)
        features = self._on_disk.find(ids, self._identity)
        if features is None:
            features = self._encoded(ids)
            self._on_disk.keep(ids, self._identity, features)
        return features

    def _encoded(self, ids: tuple[int, ...]) -> Tensor:
        if self._encoder is None:
            self._encoder = self._load()
        batch = torch.tensor([ids], device=self._device)
        result: Tensor = self._encoder(batch).last_hidden_state[0]
        return result


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
