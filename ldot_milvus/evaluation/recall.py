"""Recall@K as the field reports it (Karpathy's protocol)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CUTS = (1, 5, 10)


def recall_at(ranks: NDArray[np.int64], cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Percentage of ``ranks`` (0 = first) below each cut: ``{"R@1": ..., ...}``."""
    return {f"R@{cut}": round(100 * float((ranks < cut).mean()), 2) for cut in cuts}


def text_to_image_ranks(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each caption's own photo; a tie counts against the model.

    Args:
        scores: (captions, photos), higher is better.
        owner: (captions,) index of the photo that a caption describes.
    """
    own = scores[np.arange(len(owner)), owner]
    ranks: NDArray[np.int64] = (scores >= own[:, None]).sum(1) - 1
    return ranks


def image_to_text_ranks(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each photo's best own caption among all captions of others; a tie counts against the model."""
    ranks = np.empty(scores.shape[1], np.int64)
    for photo in range(scores.shape[1]):
        own = owner == photo
        ranks[photo] = (scores[~own, photo] >= scores[own, photo].max()).sum()
    return ranks


def both_ways(scores: NDArray[np.floating], owner: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 text to image and image to text of a score matrix (captions, photos), in percent."""
    return {
        "text_to_image": recall_at(text_to_image_ranks(scores, owner)),
        "image_to_text": recall_at(image_to_text_ranks(scores, owner)),
    }
