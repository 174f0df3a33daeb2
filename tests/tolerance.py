"""Compare recalls and rankings up to ties: bounds of the recall of a matrix of scores, and valid orders of results.

Processors, numbers of threads and batch sizes differ in the order of floating-point additions, and so in the last
digits of a score. Scores that differ by less are a tie, which may be broken either way. Everything else is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.evaluation.recall import CUTS

Scores = NDArray[np.floating]
Marks = NDArray[np.bool_]
Ranks = NDArray[np.int64]
Bounds = dict[str, tuple[float, float]]

NEAR = 1e-5
"""Scores that differ by at most this share of the largest are a tie: float32 sums of a few hundred terms."""
FEW = 1 / 8
"""Largest share of the queries whose result may depend on ties; with more of them, a recall means little."""


def slack(scores: Scores, near: float = NEAR) -> float:
    """Return the largest difference at which two of ``scores`` are a tie."""
    return near * float(np.abs(scores).max())


def rank_bounds(
    scores: Scores, right: Marks, *, crossed: Scores | None = None, count: int = 0, near: float = NEAR
) -> tuple[Ranks, Ranks]:
    """Bound the rank of each query's best relevant candidate under all ways to break ties; 0 is the first rank.

    Args:
        scores: (queries, candidates).
        right: (queries, candidates), whether a candidate is relevant.
        crossed: (queries, candidates), the scores by which the first ``count`` candidates are re-ranked.
        count: number of candidates to re-rank.
        near: see :data:`NEAR`; for both ``scores`` and ``crossed``.

    Returns:
        The lowest and the highest possible rank, each (queries,).
    """
    best, worst = _among(scores, right, right, ~right, ~right, slack(scores, near))
    if crossed is None or count == 0:
        return best, worst
    tie = slack(scores, near)
    ahead = (scores[:, None] > scores[:, :, None] + tie).sum(2)
    level = (scores[:, None] >= scores[:, :, None] - tie).sum(2) - 1  # without the candidate itself
    may, must = ahead < count, level < count  # whether a candidate can, or must, be among the first
    first = _among(crossed, right & may, right & must, ~right & must, ~right & may, slack(crossed, near))
    return (np.where((right & may).any(1), first[0], np.maximum(best, count)),
            np.where((right & must).any(1), np.minimum(first[1], count - 1), np.maximum(worst, count)))  # fmt: skip


def _among(scores: Scores, lucky: Marks, sure: Marks, least: Marks, most: Marks, tie: float) -> tuple[Ranks, Ranks]:
    """Return the rank of the best of ``lucky`` among ``least``, and that of the best of ``sure`` among ``most``."""
    best, safe = (np.where(right, scores, -np.inf).max(1, keepdims=True) for right in (lucky, sure))
    return (least & (scores > best + tie)).sum(1), (most & (scores >= safe - tie)).sum(1)


def recall_bounds(
    scores: Scores, right: Marks, *, crossed: Scores | None = None, count: int = 0, near: float = NEAR
) -> Bounds:
    """Bound the recall in percent at each cut, with ties broken against the model and in its favour.

    The arguments are those of :func:`rank_bounds`.

    Raises:
        AssertionError: the result of more than :data:`FEW` of the queries depends on ties.
    """
    best, worst = rank_bounds(scores, right, crossed=crossed, count=count, near=near)
    bounds = {}
    for cut in CUTS:
        least, most = worst < cut, best < cut
        assert (least != most).sum() <= max(1, FEW * len(scores)), f"{(least != most).sum()} of {len(scores)} are ties"
        bounds[f"R@{cut}"] = round(100 * float(least.mean()), 2), round(100 * float(most.mean()), 2)
    return bounds


def both_bounds(
    scores: Scores, owner: Ranks, *, crossed: Scores | None = None, count: int = 0, near: float = NEAR
) -> dict[str, Bounds]:
    """Bound the recall of both directions.

    Args:
        scores: (captions, photos).
        owner: (captions,), the photo that each caption describes.
        crossed: (captions, photos), see :func:`rank_bounds`.
        count: number of candidates to re-rank.
        near: see :data:`NEAR`.
    """
    right = owner[:, None] == np.arange(scores.shape[1])
    other = None if crossed is None else crossed.T
    return {"text_to_image": recall_bounds(scores, right, crossed=crossed, count=count, near=near),
            "image_to_text": recall_bounds(scores.T, right.T, crossed=other, count=count, near=near)}  # fmt: skip


def mean_bounds(parts: Sequence[dict[str, Bounds]]) -> dict[str, Bounds]:
    """Average bounds, for the mean of several recalls."""
    return {
        way: {cut: tuple(round(float(np.mean([part[way][cut][end] for part in parts])), 2) for end in (0, 1))
              for cut in cuts}
        for way, cuts in parts[0].items()
    }  # fmt: skip


def assert_recall(figures: dict[str, dict[str, float]], bounds: dict[str, Bounds]) -> None:
    """Assert that the recalls of both directions are within their bounds."""
    for way, cuts in bounds.items():
        assert figures[way].keys() == cuts.keys()
        for cut, (least, most) in cuts.items():
            assert least <= figures[way][cut] <= most, f"{way} {cut} is {figures[way][cut]}, not {least} to {most}"


def assert_first(found: Sequence[str], scores: dict[str, float], near: float = NEAR) -> None:
    """Assert that ``found`` are the names of the highest ``scores`` in descending order, ties in any order."""
    tie = slack(np.array(list(scores.values())), near)
    found_scores = [scores[name] for name in found]
    assert len(set(found)) == len(found)
    assert all(later <= earlier + tie for earlier, later in pairwise(found_scores)), (found, found_scores)
    missed = [name for name in scores.keys() - set(found) if scores[name] > min(found_scores, default=np.inf) + tie]
    assert not missed, (missed, found)
