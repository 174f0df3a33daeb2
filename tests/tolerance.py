"""What ties leave open: the recalls that a matrix of scores allows, and the orders of what was found.

Other instructions, numbers of threads and batches add floating-point numbers in another order, so processors disagree
about the last digits of a score. Two scores that are nearer to each other than that are a tie here, and a tie may fall
either way. Everything else is exact.
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
"""Two scores are a tie when they differ by at most this share of the largest: float32 sums of some hundred terms."""
FEW = 1 / 8
"""At most this share of the queries may hang on ties: with more of them a recall says too little."""


def slack(scores: Scores, near: float = NEAR) -> float:
    """The largest difference at which two of ``scores`` are a tie."""
    return near * float(np.abs(scores).max())


def rank_bounds(
    scores: Scores, right: Marks, *, crossed: Scores | None = None, count: int = 0, near: float = NEAR
) -> tuple[Ranks, Ranks]:
    """The lowest and the highest rank (queries,) that ties allow each query's best right candidate; 0 is the first.

    Args:
        scores, right: (queries, candidates); which of them are right.
        crossed: the scores by which the first ``count`` are re-ranked.
        near: see :data:`NEAR`; both for ``scores`` and for ``crossed``.
    """
    best, worst = _among(scores, right, right, ~right, ~right, slack(scores, near))
    if crossed is None or count == 0:
        return best, worst
    tie = slack(scores, near)
    ahead = (scores[:, None] > scores[:, :, None] + tie).sum(2)
    level = (scores[:, None] >= scores[:, :, None] - tie).sum(2) - 1  # itself is one of them
    may, must = ahead < count, level < count  # be among the first
    first = _among(crossed, right & may, right & must, ~right & must, ~right & may, slack(crossed, near))
    return (np.where((right & may).any(1), first[0], np.maximum(best, count)),
            np.where((right & must).any(1), np.minimum(first[1], count - 1), np.maximum(worst, count)))  # fmt: skip


def _among(scores: Scores, lucky: Marks, sure: Marks, least: Marks, most: Marks, tie: float) -> tuple[Ranks, Ranks]:
    """Ranks of the best of the ``lucky`` among ``least``, and of the best of those that are ``sure`` among ``most``."""
    best, safe = (np.where(right, scores, -np.inf).max(1, keepdims=True) for right in (lucky, sure))
    return (least & (scores > best + tie)).sum(1), (most & (scores >= safe - tie)).sum(1)


def recall_bounds(
    scores: Scores, right: Marks, *, crossed: Scores | None = None, count: int = 0, near: float = NEAR
) -> Bounds:
    """Recall in percent at each cut, ties decided against the model and for it; arguments as above.

    Raises:
        AssertionError: more than :data:`FEW` of the queries hang on ties.
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
    """Of both directions.

    Args:
        scores, crossed: (captions, photos); see above.
        owner: (captions,) the photo that each caption describes.
    """
    right = owner[:, None] == np.arange(scores.shape[1])
    other = None if crossed is None else crossed.T
    return {"text_to_image": recall_bounds(scores, right, crossed=crossed, count=count, near=near),
            "image_to_text": recall_bounds(scores.T, right.T, crossed=other, count=count, near=near)}  # fmt: skip


def mean_bounds(parts: Sequence[dict[str, Bounds]]) -> dict[str, Bounds]:
    """Of recalls that are averaged."""
    return {
        way: {cut: tuple(round(float(np.mean([part[way][cut][end] for part in parts])), 2) for end in (0, 1))
              for cut in cuts}
        for way, cuts in parts[0].items()
    }  # fmt: skip


def assert_recall(figures: dict[str, dict[str, float]], bounds: dict[str, Bounds]) -> None:
    """Every figure of both directions lies where ties let it."""
    for way, cuts in bounds.items():
        assert figures[way].keys() == cuts.keys()
        for cut, (least, most) in cuts.items():
            assert least <= figures[way][cut] <= most, f"{way} {cut} is {figures[way][cut]}, not {least} to {most}"


def assert_first(found: Sequence[str], scores: dict[str, float], near: float = NEAR) -> None:
    """What was found are the first of all that have ``scores``, in order; ties may come in any."""
    tie = slack(np.array(list(scores.values())), near)
    told = [scores[name] for name in found]
    assert len(set(found)) == len(found)
    assert all(later <= earlier + tie for earlier, later in pairwise(told)), (found, told)
    missed = [name for name in scores.keys() - set(found) if scores[name] > min(told, default=np.inf) + tie]
    assert not missed, (missed, found)
