"""The attention of transformers' BERT, by which a network tells which parts of an image a word found."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

ATTENTION_LAYERS = 3
"""Last layers whose attention tells which regions a word found."""


def attention_weights(attention: Any, states: Tensor, attended: Tensor) -> Tensor:
    """Compute how much each of ``states`` (B, T, H) attends to each of ``attended`` (B, N, W).

    Args:
        attention: an attention of transformers' BERT, with ``query`` and ``key``.
        states: they ask.
        attended: they are attended to.

    Returns:
        float32 (B, T, N), the mean over the heads; a row sums to 1.
    """
    heads = attention.num_attention_heads
    query, key = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (attention.query(states), attention.key(attended))
    )
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return logits.float().softmax(-1).mean(1)
