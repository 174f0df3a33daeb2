"""Recall@K as the field reports it (Karpathy's protocol)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CUTS = (1, 5, 10)


def recall_at(ranks: NDArray[np.int64], cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Percentage of ``ranks`` (0 = first) below each cut: ``{"R@1": ..., ...}``."""
    return {f"R@{cut}": round(100 * float((ranks < cut).mean()), 2) for cut in cuts}


def best_ranks(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rank of each query's best right answer among the wrong ones; a tie counts against the model, and so does NaN.

    Args:
        scores: (queries, candidates), higher is better.
        right: (queries, candidates), at least one a row.
    """
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    ranks: NDArray[np.int64] = (~(scores < best) & ~right).sum(1)
    return ranks


def text_to_image_ranks(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each caption's own photo.

    Args:
        scores: (captions, photos), higher is better.
        owner: (captions,) index of the photo that a caption describes.
    """
    return best_ranks(scores, owner[:, None] == np.arange(scores.shape[1]))


def image_to_text_ranks(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each photo's best own caption among all captions of others; arguments as above."""
    return best_ranks(scores.T, np.arange(scores.shape[1])[:, None] == owner)


def both_ways(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 text to image and image to text of a score matrix (captions, photos), in percent."""
    return {
        "text_to_image": recall_at(text_to_image_ranks(scores, owner)),
        "image_to_text": recall_at(image_to_text_ranks(scores, owner)),
    }
