"""How much the dot product counts beside the cross-attention's score, found on photos that trained neither."""

from __future__ import annotations

import logging

import numpy as np

from ..embedder import LightningDOTEmbedder
from ..evaluation.evaluate import first_columns
from ..evaluation.recall import both_ways, image_to_text_ranks, recall_at, text_to_image_ranks
from .data import Photos
from .rerank import with_regions

log = logging.getLogger(__name__)

DOT_WEIGHTS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80)


def best_dot_weight(embedder: LightningDOTEmbedder, dev: Photos, first: int = 20) -> float:
    """The weight of the dot product in re-ranking that gives the best R@1 of both directions on ``dev``."""
    captions, owner = [caption for captions in dev.captions for caption in captions], dev.owner
    dot, regions = with_regions(embedder, dev)
    near_photos, near_captions = first_columns(dot, first), first_columns(dot.T, first).T
    rows, columns = np.nonzero(near_photos | near_captions)
    crossed = np.full_like(dot, -np.inf)
    crossed[rows, columns] = embedder.rerank([captions[row] for row in rows], [regions[column] for column in columns])
    log.info("dot product alone: %s", both_ways(dot, owner))
    best = (-1.0, 0.0)
    for weight in DOT_WEIGHTS:
        mixed = crossed + weight * dot
        by_text = recall_at(text_to_image_ranks(np.where(near_photos, mixed, dot - 1e4), owner))
        by_image = recall_at(image_to_text_ranks(np.where(near_captions, mixed, dot - 1e4), owner))
        log.info("re-ranked, weight %s: %s %s", weight, by_text, by_image)
        best = max(best, (by_text["R@1"] + by_image["R@1"], float(weight)))
    return best[1]
