"""Recall of a model in both directions, by dot product and re-ranked."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..images import decode
from .datasets import Caption, Pair
from .recall import both_ways, image_to_text_ranks, recall_at, text_to_image_ranks

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..embedder import LightningDOTEmbedder
    from ..regions import Regions

log = logging.getLogger(__name__)

Scores = NDArray[np.float32]


def evaluate(embedder: LightningDOTEmbedder, pairs: Sequence[Pair], *, rerank: int = 0) -> dict[str, Any]:
    """Recall@1/5/10 in percent: every caption finds its photo, every photo finds one of its captions.

    Args:
        pairs: the whole pool that is searched.
        rerank: M, how many of the first the cross-attention re-ranks in each direction; 0 for none.

    Returns:
        ``{"images", "captions", "text_to_image", "image_to_text", "reranked"?, "seconds"}``, the form that
        ``ldot eval --json`` prints.
    """
    if rerank and not embedder.can_rerank:
        raise UsageError("this model has no re-ranker: evaluate with --rerank 0")
    started = time.perf_counter()
    captions = [caption for pair in pairs for caption in pair.captions]
    owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
    vectors, regions = [], []
    for start in range(0, len(pairs), 32):
        part = pairs[start : start + 32]
        batch, kept = embedder.encode_for_store([_image(pair, embedder.least_side) for pair in part])
        vectors.append(batch)
        regions += kept
        if start % 320 == 0:
            log.info("photos: %d of %d", start, len(pairs))
    scores = embedder.encode_texts(captions) @ np.concatenate(vectors).T
    result: dict[str, Any] = {"images": len(pairs), "captions": len(captions), **both_ways(scores, owner)}
    if rerank:
        by_text, by_image = rerank_scores(embedder, captions, regions, scores, rerank)
        result["reranked"] = {
            "M": rerank,
            "text_to_image": recall_at(text_to_image_ranks(by_text, owner)),
            "image_to_text": recall_at(image_to_text_ranks(by_image, owner)),
        }
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def _image(pair: Pair, least_side: int | None) -> Image | Regions:
    loaded = pair.load()
    return decode(loaded, name=pair.name, draft_to=least_side).image if isinstance(loaded, bytes) else loaded


def rerank_scores(
    embedder: LightningDOTEmbedder, captions: Sequence[Caption], regions: Sequence[Regions], scores: Scores, first: int
) -> tuple[Scores, Scores]:
    """Scores (captions, photos) after re-ranking: the first photos of each caption, the first captions of each photo.

    What is not among the first keeps its dot product, below everything that is.
    """
    first_photos = first_columns(scores, first)
    first_captions = first_columns(scores.T, first).T
    rows, columns = np.nonzero(first_photos | first_captions)
    crossed = np.full_like(scores, -np.inf)
    block = 2000
    for start in range(0, len(rows), block):
        row, column = rows[start : start + block], columns[start : start + block]
        crossed[row, column] = embedder.rerank([captions[i] for i in row], [regions[j] for j in column])
        if start % (10 * block) == 0:
            log.info("re-ranking: %d of %d pairs", start, len(rows))
    crossed += embedder.dot_weight * scores
    lift = float(scores.max() - crossed[rows, columns].min()) + 1.0
    return (
        np.where(first_photos, crossed + lift, scores),
        np.where(first_captions, crossed + lift, scores),
    )


def first_columns(scores: Scores, first: int) -> NDArray[np.bool_]:
    """True where a column is among the ``first`` of its row."""
    first = min(first, scores.shape[1])
    marks = np.zeros(scores.shape, bool)
    np.put_along_axis(marks, np.argpartition(-scores, first - 1, axis=1)[:, :first], True, axis=1)
    return marks
