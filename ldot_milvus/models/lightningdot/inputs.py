"""Prepare the networks' input: token ids of texts, and padded batches of tokens and regions."""

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
    """Tokenizes texts and pads them to batches. Instances are thread-safe.

    Args:
        tokenizer: of the network that reads the ids.
        device: of the padded batches.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._device = device
        # A fast tokenizer stores its truncation settings between calls and fails if two threads use it at once.
        self._lock = threading.Lock()

    def ids(self, texts: Sequence[Text], limit: int) -> list[list[int]]:
        """Return the token ids of each text, truncated to ``limit`` tokens.

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
        """Pad token ids on the right: int64 ids (B, T) and mask (B, T), 1 = token, 0 = padding."""
        length = max(map(len, tokens))
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[padding] * (length - len(row))] for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
        return ids.to(self._device), mask.to(self._device)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], limit: int) -> list[list[int]]:
    """Tokenize texts, and truncate texts and given token ids to ``limit`` tokens, [CLS] and [SEP] included."""
    words = [text for text in texts if isinstance(text, str)]
    tokenized = iter(tokenizer(words, truncation=True, max_length=limit)["input_ids"] if words else [])
    return [next(tokenized) if isinstance(text, str) else [*text[:limit][:-1], text[-1]] for text in texts]


def pad_regions(regions: Sequence[Regions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad the regions of B photos.

    Returns:
        float32 features (B, R, d), float32 boxes (B, R, 7) and a bool mask (B, R), True = region.
    """
    shape = len(regions), max(map(len, regions))
    features = np.zeros((*shape, regions[0].features.shape[1]), np.float32)
    boxes, mask = np.zeros((*shape, 7), np.float32), np.zeros(shape, bool)
    for photo, its in enumerate(regions):
        features[photo, : len(its)], boxes[photo, : len(its)], mask[photo, : len(its)] = its.features, its.boxes, True
    return torch.from_numpy(features), torch.from_numpy(boxes), torch.from_numpy(mask)


def by_length(
    tokens: Sequence[Sequence[int]], size: int, width: int, compute: Callable[[list[int]], torch.Tensor]
) -> Array:
    """Run ``compute`` on batches of texts of similar length, so that little padding is computed.

    Args:
        tokens: token ids of n texts.
        size: texts in a batch.
        width: of the result.
        compute: called with the indices of a batch's texts; returns a tensor (batch, width).

    Returns:
        float32 (n, width), in the order of ``tokens``.
    """
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
    result = np.empty((len(tokens), width), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            result[rows] = compute(rows).float().cpu().numpy()
    return result
