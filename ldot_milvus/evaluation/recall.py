"""Recall@K by Karpathy's protocol (Karpathy and Fei-Fei, CVPR 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CUTS = (1, 5, 10)


def recall_at(ranks: NDArray[np.int64], cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Return the percentage of ``ranks`` (0 = first) below each cut: ``{"R@1": ..., ...}``."""
    return {f"R@{cut}": round(100 * float((ranks < cut).mean()), 2) for cut in cuts}


def best_ranks(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Compute the rank of each query's best correct answer among the wrong ones.

    Ties and NaN count against the model.

    Args:
        scores: (queries, candidates), higher is better.
        right: (queries, candidates), True = correct; at least one in each row.

    Returns:
        int64 (queries,), 0 = first.
    """
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    ranks: NDArray[np.int64] = (~(scores < best) & ~right).sum(1)
    return ranks


def text_to_image_ranks(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compute the rank of each caption's photo.

    Args:
        scores: (captions, photos), higher is better.
        owner: (captions,), the index of each caption's photo.

    Returns:
        int64 (captions,), 0 = first.
    """
    return best_ranks(scores, owner[:, None] == np.arange(scores.shape[1]))


def image_to_text_ranks(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compute the rank of each photo's best caption among the captions of other photos.

    Args:
        scores, owner: see :func:`text_to_image_ranks`.

    Returns:
        int64 (photos,), 0 = first.
    """
    return best_ranks(scores.T, np.arange(scores.shape[1])[:, None] == owner)


def both_ways(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Compute Recall@1/5/10 in percent, text to image and image to text.

    Args:
        scores, owner: see :func:`text_to_image_ranks`.
    """
    return {
        "text_to_image": recall_at(text_to_image_ranks(scores, owner)),
        "image_to_text": recall_at(image_to_text_ranks(scores, owner)),
    }
