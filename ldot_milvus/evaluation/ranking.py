"""Search by dot product and re-ranking of the first, as ranks of the right answers.

Nothing here is larger than a block of scores or M candidates a query, so that a whole data set may be searched
(COCO: 123,287 photos, 616,767 captions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.evaluation.recall import best_ranks, recall_at

Scores = NDArray[np.float32]
Indices = NDArray[np.int64]

BLOCK = 1 << 23
"""Scores that are compared at a time."""


@dataclass(frozen=True)
class Found:
    """What Q queries find by dot product.

    Attributes:
        ranks: (Q,) of each query's best right answer among the wrong ones of all candidates.
        first: (Q, M) the first M candidates, best first; a right one comes after wrong ones of the same score.
        scores: (Q, M) their dot products.
        right: (Q, M) which of them are right.
    """

    ranks: Indices
    first: Indices
    scores: Scores
    right: NDArray[np.bool_]

    def reranked(self, crossed: Scores, count: int, dot_weight: float = 0.0) -> Indices:
        """Ranks (Q,) when the first ``count`` are ordered anew and the others stay below them.

        Args:
            crossed: (Q, M) the re-ranker's scores of all M; those of any smaller ``count`` are among them.
            dot_weight: how much the dot product counts beside them.
        """
        mixed = (crossed + dot_weight * self.scores)[:, :count]
        right = self.right[:, :count]
        found = right.any(1)
        ranks = np.maximum(self.ranks, min(count, self.first.shape[1]))
        ranks[found] = best_ranks(mixed[found], right[found])
        return ranks


def search(queries: Scores, candidates: Scores, asked: Indices, answer: Indices, count: int = 0) -> Found:
    """Compare every query with every candidate by dot product.

    Args:
        queries, candidates: (Q, dim) and (N, dim).
        asked, answer: (Q,) and (N,): a candidate is right where its photo is the query's.
        count: M, how many of the first to keep of each query; at most N are there to keep.
    """
    count = min(count, len(candidates))
    ranks = np.empty(len(queries), np.int64)
    first, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    right = np.empty((len(queries), count), bool)
    rows = max(1, BLOCK // len(candidates))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        dots = queries[block] @ candidates.T
        own = asked[block, None] == answer
        ranks[block] = best_ranks(dots, own)
        if count:
            # A right candidate is lowered by the smallest step there is: a tie never counts in the model's favour.
            order = first_columns(np.where(own, np.nextafter(dots, np.float32(-np.inf)), dots), count)
            first[block], scores[block] = order, np.take_along_axis(dots, order, 1)
            right[block] = np.take_along_axis(own, order, 1)
    return Found(ranks, first, scores, right)


def first_columns(scores: Scores, count: int) -> Indices:
    """(rows, count): the columns of the largest scores of each row, largest first."""
    found = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, found, 1), axis=1, kind="stable")
    return np.take_along_axis(found, order, 1)


@dataclass(frozen=True)
class BothWays:
    """Captions that search photos, and the photos that search captions."""

    by_text: Found
    by_image: Found

    def recall(self) -> dict[str, dict[str, float]]:
        """Recall by dot product, in percent."""
        return {"text_to_image": recall_at(self.by_text.ranks), "image_to_text": recall_at(self.by_image.ranks)}

    def cross(self, score: Callable[[Indices, Indices], Scores]) -> Crossed:
        """The re-ranker's scores of all pairs that either direction found, each computed once.

        Args:
            score: of caption ``i[n]`` with photo ``j[n]``; pairs come in order of caption.
        """
        texts, images = self.by_text.first, self.by_image.first
        captions = np.concatenate([np.repeat(np.arange(len(texts)), texts.shape[1]), images.ravel()])
        photos = np.concatenate([texts.ravel(), np.repeat(np.arange(len(images)), images.shape[1])])
        width = int(photos.max()) + 1
        pairs, place = np.unique(captions * width + photos, return_inverse=True)
        scores = score(pairs // width, pairs % width)[place]
        return Crossed(self, scores[: texts.size].reshape(texts.shape), scores[texts.size :].reshape(images.shape))


@dataclass(frozen=True)
class Crossed:
    """What :class:`BothWays` found, with the re-ranker's scores: (captions, M) and (photos, M)."""

    found: BothWays
    by_text: Scores
    by_image: Scores

    def recall(self, count: int, dot_weight: float = 0.0) -> dict[str, dict[str, float]]:
        """Recall with the first ``count`` re-ranked, in percent; 0 is the dot product alone."""
        if count == 0:
            return self.found.recall()
        return {
            "text_to_image": recall_at(self.found.by_text.reranked(self.by_text, count, dot_weight)),
            "image_to_text": recall_at(self.found.by_image.reranked(self.by_image, count, dot_weight)),
        }


def search_both_ways(
    texts: Scores, images: Scores, owner: Indices, count: int = 0, *, asked: tuple[int, int] | None = None
) -> BothWays:
    """Every caption searches the photos, every photo searches the captions.

    Args:
        texts, images: (captions, dim) and (photos, dim).
        owner: (captions,) index of the photo that each describes.
        count: M, how many of the first to keep.
        asked: how many captions and photos ask, the first of each; the rest is only searched. All where it is None.
    """
    n_texts, n_images = asked or (len(texts), len(images))
    everything = np.arange(len(images))
    return BothWays(
        search(texts[:n_texts], images, owner[:n_texts], everything, count),
        search(images[:n_images], texts, everything[:n_images], owner, count),
    )
