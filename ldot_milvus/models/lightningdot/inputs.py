"""Texts and regions as the networks read them: token ids and padded batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Array, Text
from ldot_milvus.regions import Regions


class TextTokens:
    """Texts to token ids. Threads may share one.

    Args:
        tokenizer: of the network that reads the ids.
        device: where padded batches are put.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._device = device
        # A fast tokenizer keeps truncation state between calls and refuses two threads at once.
        self._lock = threading.Lock()

    def ids(self, texts: Sequence[Text], limit: int) -> list[list[int]]:
        """Token ids of each text, cut to ``limit`` tokens.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
        """
        if isinstance(texts, str):
            raise UsageError("give a list of texts, not one string")
        if any(isinstance(text, str) and not text.strip() for text in texts):
            raise UsageError("the text is empty: describe what to look for")
        with self._lock:
            return token_ids(self._tokenizer, texts, limit)

    def padded(self, tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, T) and mask (B, T), 1 = a token, padded on the right."""
        length = max(map(len, tokens))
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[padding] * (length - len(row))] for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
        return ids.to(self._device), mask.to(self._device)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], limit: int) -> list[list[int]]:
    """Token ids of texts, or the ids that they are, cut to ``limit`` with [CLS] and [SEP] in place."""
    words = [text for text in texts if isinstance(text, str)]
    tokenized = iter(tokenizer(words, truncation=True, max_length=limit)["input_ids"] if words else [])
    return [next(tokenized) if isinstance(text, str) else [*text[:limit][:-1], text[-1]] for text in texts]


def pad_regions(regions: Sequence[Regions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (B, R, d) and boxes (B, R, 7) of several photos, and a mask (B, R) that is true for a region."""
    shape = len(regions), max(map(len, regions))
    features = np.zeros((*shape, regions[0].features.shape[1]), np.float32)
    boxes, mask = np.zeros((*shape, 7), np.float32), np.zeros(shape, bool)
    for row, one in enumerate(regions):
        features[row, : len(one)], boxes[row, : len(one)], mask[row, : len(one)] = one.features, one.boxes, True
    return torch.from_numpy(features), torch.from_numpy(boxes), torch.from_numpy(mask)


def by_length(
    tokens: Sequence[Sequence[int]], size: int, width: int, compute: Callable[[list[int]], torch.Tensor]
) -> Array:
    """Results float32 (n, width) of ``compute`` over at most ``size`` rows of ``tokens``, in the order of the rows.

    The longest texts go first, so that a batch is of about one length and little padding is computed.
    """
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
    result = np.empty((len(tokens), width), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            result[rows] = compute(rows).float().cpu().numpy()
    return result
