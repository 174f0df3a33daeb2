"""Select the weight of the dot product in re-ranking on the dev split."""

from __future__ import annotations

import logging

from ldot_milvus.evaluation.ranking import RerankedResult
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.rerank import RERANKED, rerank_first

log = logging.getLogger(__name__)

DOT_WEIGHTS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 160, 200)


def best_dot_weight(bundle: Bundle, dev: CaptionedPhotos, first: int = RERANKED) -> float:
    """Return the weight of the dot product with the best R@1 of a model with a re-ranker; see :func:`best_weight`."""
    return best_weight(rerank_first(LightningDOTEmbedder(bundle), dev, first), first)


def best_weight(reranked: RerankedResult, first: int) -> float:
    """Return the weight of the dot product with the best R@1, summed over both directions.

    Args:
        reranked: the result on photos that were not used in training.
        first: M, the number of candidates that are re-ranked.
    """
    log.info("dot product alone: %s", reranked.result.recall())
    best = (-1.0, 0.0)
    for weight in DOT_WEIGHTS:
        recall = reranked.recall(first, weight)
        log.info("re-ranked, weight %s: %s", weight, recall)
        best = max(best, (sum(way["R@1"] for way in recall.values()), float(weight)))
    return best[1]
