"""What a small T5 is trained for: to fill masked spans, and to know in which order words stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel, T5ForConditionalGeneration

from training.loop.task import Batch

PAD = 0
IGNORED = -100
"""A label that counts for nothing."""
# Which tokens a feature tells: far enough for "a cat at the left".
_AROUND = (-3, -2, -1, 1, 2, 3)
# How far one distance stands out at first, in spreads of the attention scores; with less than
# _BLIND of them it does not.
_FIRST_LOOK = 3.0
_BLIND = 1.0


class SpanLoss(nn.Module):
    """The loss of filling masked spans of {"tokens", "labels"}, each (B, T), and of what else the
    features of "whole", the caption as it is, are asked for.

    `neighbours` weighs how well each feature tells the tokens around it, `keep` how far it is from
    that of `before`, the encoder that the training went on from.
    """

    def __init__(
        self,
        t5: T5ForConditionalGeneration,
        *,
        neighbours: float = 0.0,
        keep: float = 0.0,
        before: T5EncoderModel | None = None,
    ) -> None:
        super().__init__()
        self.t5 = t5
        self.neighbours = neighbours
        self.keep = keep
        self.before = before.eval().requires_grad_(False) if before is not None and keep else None
        width = t5.config.d_model
        self.towards = nn.ModuleList(
            nn.Linear(width, width) for _ in (_AROUND if neighbours else ())
        )

    def train(self, mode: bool = True) -> SpanLoss:
        """As usual, but `before` never learns: with its dropout on, targets would be noise."""
        super().train(mode)
        if self.before is not None:
            self.before.eval()
        return self

    def forward(self, batch: Batch, seed: int, timestep: int | None) -> dict[str, Tensor]:
        """Per caption: mean cross entropies over its tokens, in nats, and squared distances."""
        source, labels = batch["tokens"], batch["labels"]
        logits = self.t5(
            input_ids=source, attention_mask=(source != PAD).long(), labels=labels
        ).logits
        losses = {"loss": _entropy(logits, labels)}
        if not self.towards and self.before is None:
            return losses
        losses["spans"] = losses["loss"]
        whole = batch["whole"]
        mask = (whole != PAD).long()
        features = self.t5.encoder(input_ids=whole, attention_mask=mask).last_hidden_state
        if self.towards:
            losses["neighbours"] = self._told(features, whole)
            losses["loss"] = losses["loss"] + self.neighbours * losses["neighbours"]
        if self.before is not None:
            with torch.no_grad():
                old = self.before(input_ids=whole, attention_mask=mask).last_hidden_state
            apart = (features.float() - old.float()).square().mean(-1) * mask
            losses["keep"] = apart.sum(1) / mask.sum(1)
            losses["loss"] = losses["loss"] + self.keep * losses["keep"]
        return losses

    def _told(self, features: Tensor, whole: Tensor) -> Tensor:
        """(B,): how badly `features` (B, T, C) tell the tokens of `whole` (B, T) around them."""
        # T5's own scale for logits of shared embeddings.
        pieces = self.t5.shared.weight.T * self.t5.config.d_model**-0.5
        told = []
        for offset, head in zip(_AROUND, self.towards, strict=True):
            wanted = whole.roll(-offset, 1)
            # What was rolled around the ends is nobody's neighbour.
            edge = slice(None, -offset) if offset < 0 else slice(-offset, None)
            wanted[:, edge] = PAD
            wanted = wanted.masked_fill((wanted == PAD) | (whole == PAD), IGNORED)
            told.append(_entropy(head(features) @ pieces, wanted))
        return torch.stack(told).mean(0)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): the mean cross entropy of `labels` (B, T), as far as they are not ignored."""
    each = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    return each.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


@torch.no_grad()
def see_order(t5: T5ForConditionalGeneration) -> None:
    """Lets two heads of the encoder begin with a look at the tokens before and behind.

    T5's only sense of order is a bias of attention by distance. It starts near zero, where no
    distance stands out, and a few thousand updates at a rate that suits the rest do not move it.
    """
    blocks: Any = t5.encoder.block
    first = blocks[0].layer[0]
    attention, pieces = first.SelfAttention, first.layer_norm(t5.shared.weight)
    bias = attention.relative_attention_bias.weight
    # Bidirectional buckets: the first half for keys before the query, the second for those behind.
    for head, bucket in enumerate((1, bias.shape[0] // 2 + 1)[: attention.n_heads]):
        rows = slice(head * attention.key_value_proj_dim, (head + 1) * attention.key_value_proj_dim)
        spread = _spread(pieces @ attention.q.weight[rows].T, pieces @ attention.k.weight[rows].T)
        if float(bias[bucket, head] - bias[:, head].mean()) < _BLIND * spread:
            bias[bucket, head] += _FIRST_LOOK * spread


def _spread(queries: Tensor, keys: Tensor) -> float:
    """The standard deviation of all products of a row of `queries` (V, d) with one of `keys`."""
    count = len(queries)
    mean = queries.mean(0) @ keys.mean(0)
    square = ((queries.T @ queries / count) * (keys.T @ keys / count)).sum()
    return float((square - mean.square()).clamp(min=0).sqrt())
