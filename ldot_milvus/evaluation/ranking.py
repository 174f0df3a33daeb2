"""Search by dot product, re-rank the first candidates, and compute the ranks of the correct answers.

Memory is limited to a block of scores and M candidates per query, so that a complete data set can be searched (COCO:
123,287 photos, 616,767 captions).
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
"""Number of scores in a block."""


@dataclass(frozen=True)
class SearchResult:
    """The result of Q queries by dot product.

    Attributes:
        ranks: (Q,), the rank of each query's best correct answer among all wrong candidates, 0 = first.
        first: (Q, M), the first M candidates, best first; of equal scores, correct candidates come last.
        scores: (Q, M), their dot products.
        right: (Q, M), True = correct.
    """

    ranks: Indices
    first: Indices
    scores: Scores
    right: NDArray[np.bool_]

    def reranked(self, cross_scores: Scores, count: int, dot_weight: float = 0.0) -> Indices:
        """Compute the ranks (Q,) with the first ``count`` candidates re-ranked above all others.

        Args:
            cross_scores: (Q, M), the re-ranker's scores of the first M candidates.
            count: number of candidates to re-rank, at most M.
            dot_weight: weight of the dot product that is added to a score.
        """
        totals = (cross_scores + dot_weight * self.scores)[:, :count]
        right = self.right[:, :count]
        has_answer = right.any(1)
        ranks = np.maximum(self.ranks, min(count, self.first.shape[1]))
        ranks[has_answer] = best_ranks(totals[has_answer], right[has_answer])
        return ranks


def search(
    queries: Scores, candidates: Scores, query_photo: Indices, candidate_photo: Indices, count: int = 0
) -> SearchResult:
    """Compare every query with every candidate by dot product.

    Args:
        queries: (Q, dim).
        candidates: (N, dim).
        query_photo: (Q,), the photo of each query.
        candidate_photo: (N,), the photo of each candidate; a candidate is correct if it has the query's photo.
        count: M, the number of first candidates of each query to return, at most N.
    """
    count = min(count, len(candidates))
    ranks = np.empty(len(queries), np.int64)
    first, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    right = np.empty((len(queries), count), bool)
    rows = max(1, BLOCK // len(candidates))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        dots = queries[block] @ candidates.T
        correct = query_photo[block, None] == candidate_photo
        ranks[block] = best_ranks(dots, correct)
        if count:
            # Correct candidates are lowered by the smallest float32 step: a tie never counts in the model's favour.
            order = first_columns(np.where(correct, np.nextafter(dots, np.float32(-np.inf)), dots), count)
            first[block], scores[block] = order, np.take_along_axis(dots, order, 1)
            right[block] = np.take_along_axis(correct, order, 1)
    return SearchResult(ranks, first, scores, right)


def first_columns(scores: Scores, count: int) -> Indices:
    """Return the columns (rows, count) of the largest scores of each row, largest first."""
    columns = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


@dataclass(frozen=True)
class BidirectionalResult:
    """The results of captions that search photos (``by_text``) and of photos that search captions (``by_image``)."""

    by_text: SearchResult
    by_image: SearchResult

    def recall(self) -> dict[str, dict[str, float]]:
        """Return the recall by dot product, in percent."""
        return {"text_to_image": recall_at(self.by_text.ranks), "image_to_text": recall_at(self.by_image.ranks)}

    def rerank(self, score: Callable[[Indices, Indices], Scores]) -> RerankedResult:
        """Score the first candidates of both directions with a re-ranker; a pair in both directions is scored once.

        Args:
            score: returns the scores (n,) of caption ``i[n]`` with photo ``j[n]``, given i and j; i is sorted.
        """
        texts, images = self.by_text.first, self.by_image.first
        captions = np.concatenate([np.repeat(np.arange(len(texts)), texts.shape[1]), images.ravel()])
        photos = np.concatenate([texts.ravel(), np.repeat(np.arange(len(images)), images.shape[1])])
        width = int(photos.max()) + 1
        pairs, inverse = np.unique(captions * width + photos, return_inverse=True)
        scores = score(pairs // width, pairs % width)[inverse]
        by_text, by_image = scores[: texts.size].reshape(texts.shape), scores[texts.size :].reshape(images.shape)
        return RerankedResult(self, by_text, by_image)


@dataclass(frozen=True)
class RerankedResult:
    """A :class:`BidirectionalResult` with the re-ranker's scores of the first M candidates.

    Attributes:
        result: the result by dot product.
        by_text: (captions, M), the re-ranker's scores.
        by_image: (photos, M), the re-ranker's scores.
    """

    result: BidirectionalResult
    by_text: Scores
    by_image: Scores

    def recall(self, count: int, dot_weight: float = 0.0) -> dict[str, dict[str, float]]:
        """Return the recall with the first ``count`` candidates re-ranked, in percent; 0 is the dot product alone."""
        if count == 0:
            return self.result.recall()
        return {
            "text_to_image": recall_at(self.result.by_text.reranked(self.by_text, count, dot_weight)),
            "image_to_text": recall_at(self.result.by_image.reranked(self.by_image, count, dot_weight)),
        }


def search_both_ways(
    texts: Scores, images: Scores, owner: Indices, count: int = 0, *, queries: tuple[int, int] | None = None
) -> BidirectionalResult:
    """Search the photos by every caption, and the captions by every photo.

    Args:
        texts: (captions, dim).
        images: (photos, dim).
        owner: (captions,), the index of each caption's photo.
        count: M, the number of first candidates of each query to return.
        queries: number of captions and of photos that are queries, the first ones of each; the others are only
            searched. None makes all of them queries.
    """
    n_texts, n_images = queries or (len(texts), len(images))
    photos = np.arange(len(images))
    return BidirectionalResult(
        search(texts[:n_texts], images, owner[:n_texts], photos, count),
        search(images[:n_images], texts, photos[:n_images], owner, count),
    )
