"""Batches for training: captions and region features of different photos, with what is left out of them at random."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..regions.grid import grid_boxes
from .data import CachedPhotos

Tokens = list[list[list[int]]]
"""Token ids of every photo's captions."""


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[list[str]], limit: int) -> Tokens:
    """Token ids of every photo's captions, each cut to ``limit``."""
    flat = tokenizer([text for texts in captions for text in texts], truncation=True, max_length=limit)["input_ids"]
    ids = iter(flat)
    return [[next(ids) for _ in texts] for texts in captions]


def pad(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token lists to ids (B, T) and mask (B, T), padded with 0 on the right."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(sequence) for sequence in sequences], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return ids, mask


def by_length(sequences: list[list[int]], groups: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """``sequences`` in ``groups`` of about one length, so that little padding is computed: indices, ids, mask."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    size = math.ceil(len(order) / groups)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, *pad([sequences[row] for row in rows])


def caption_batches(tokens: Tokens, size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of different photos (rows), each with one of its captions (which one).

    Captions of all lengths meet in a batch: were batches of one length, the model would never learn to compare a
    short one with a long one.
    """
    rounds = min(map(len, tokens))
    while True:
        turns = np.stack([rng.permutation(len(captions))[:rounds] for captions in tokens])
        for turn in turns.T:
            order = rng.permutation(len(tokens))
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size]
                yield rows, turn[rows]


def drop_words(tokens: list[int], share: float, rng: np.random.Generator) -> list[int]:
    """``tokens`` without a random share of the words; [CLS] and [SEP] stay."""
    kept = rng.random(len(tokens)) >= share
    kept[[0, -1]] = True
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def drop_features(shape: Sequence[int], share: float, rng: np.random.Generator) -> Tensor:
    """Factors of dropout; from random bytes, since torch's own takes a tenth of a step on a CPU."""
    cut = round(256 * share)
    kept = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape) >= cut
    return torch.from_numpy(kept).float() * (256 / (256 - cut))


def sample_view(photos: CachedPhotos, rows: np.ndarray, keep: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Features (B, keep, d) and boxes (B, keep, 7): a random view of each photo, ``keep`` random regions of it."""
    regions = photos.views[0].shape[1]
    choices = np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(len(photos.views), size=len(rows)))
    cells = rng.random((len(rows), regions)).argsort(1)[:, :keep]
    features = np.stack([photos.views[view][row] for view, row in zip(choices, rows, strict=True)])
    features = np.take_along_axis(features, cells[:, :, None], axis=1)
    boxes = grid_boxes(math.isqrt(regions))[cells]
    return torch.from_numpy(photos.standardised(features)), torch.from_numpy(boxes)


def fast_precision() -> torch.autocast:
    """bfloat16 where the processor has it; elsewhere it is emulated, and sixty times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())
