"""How much the dot product counts beside the cross-attention's score, found on photos that trained neither."""

from __future__ import annotations

import logging

from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.rerank import RERANKED, crossed_first

log = logging.getLogger(__name__)

DOT_WEIGHTS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80)


def best_dot_weight(bundle: Bundle, dev: CaptionedPhotos, first: int = RERANKED) -> float:
    """The weight of the dot product in re-ranking that gives the best R@1 of both directions on ``dev``."""
    crossed = crossed_first(LightningDOTEmbedder(bundle), dev, first)
    log.info("dot product alone: %s", crossed.found.recall())
    best = (-1.0, 0.0)
    for weight in DOT_WEIGHTS:
        recall = crossed.recall(first, weight)
        log.info("re-ranked, weight %s: %s", weight, recall)
        best = max(best, (sum(way["R@1"] for way in recall.values()), float(weight)))
    return best[1]
