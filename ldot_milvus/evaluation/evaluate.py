"""Recall of a model in both directions, by dot product and re-ranked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.evaluation.photos import Caption, Pair
from ldot_milvus.evaluation.ranking import Indices, Scores, search_both_ways
from ldot_milvus.images import decode
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.models.base import Embedder, KeptImage, Reranker

log = logging.getLogger(__name__)

PHOTO_BLOCK, PAIR_BLOCK = 32, 2000

Recall = dict[str, dict[str, float]]
"""Of each direction, in percent: ``{"text_to_image": {"R@1": ...}, "image_to_text": {...}}``."""


def evaluate(
    embedder: Embedder, pairs: Sequence[Pair], *, reranker: Reranker | str | None = None, rerank: int = 0,
    curve: Sequence[int] = (), folds: int = 1, pool: Sequence[Pair] = (), vocabulary: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Recall@1/5/10 in percent: every caption finds its photo, every photo finds one of its captions.

    Args:
        reranker: what re-ranks: None for the embedder's own, a folder or hub id, or one that is loaded.
        rerank: M, how many of the first are re-ranked in each direction; 0 for none.
        curve: more such numbers. One pass scores the first of the largest, and every M is told from it.
        folds: cut the photos into so many equal parts, in their order, and average (COCO 1K: five of the 5,000).
        pool: photos and captions that are searched too, and not asked for.
        vocabulary: entries of the vocabulary that captions are token ids of, to be held against the model's.

    Returns:
        ``{"images", "captions", "text_to_image", "image_to_text", "reranked"?, "curve"?, "folds"?, "pool"?,
        "seconds"}``, the form that ``ldot eval --json`` prints.

    Raises:
        UsageError: no re-ranker where one is needed, folds that are not equal, a photo in both ``pairs`` and ``pool``,
            token ids of another vocabulary.
        InputError: a photo or its regions cannot be used; the record is named.
    """
    numbers = sorted({0, rerank, *curve})
    second = load_reranker(reranker, embedder) if numbers[-1] else None
    if numbers[-1] and second is None:
        raise UsageError("this model has no re-ranker: evaluate with --rerank 0 and no --curve")
    reads = embedder.vocabulary_size
    if vocabulary not in (None, reads):
        raise UsageError(
            f"the captions are token ids of a vocabulary of {vocabulary:,} entries and the model's has {reads or 0:,}: "
            "give it texts, as in Karpathy's JSON"
        )
    if len(pairs) % folds:
        raise UsageError(f"{len(pairs)} photos cannot be cut into {folds} equal folds")
    if folds > 1 and pool:
        raise UsageError("folds are searched each by itself: give no pool with them")
    known = {pair.name for pair in pairs}
    for pair in pool:
        if pair.name in known:
            raise UsageError(f"{printable(pair.name)} is there twice: asked for, and in the pool")
    started = time.perf_counter()
    encoded = _encode(embedder, [*pairs, *pool], second)
    captions = sum(len(pair.captions) for pair in pairs)
    size = (len(pairs) + len(pool)) // folds
    asked = (captions, len(pairs)) if pool else None
    parts = [
        _recall(second, encoded.part(start, start + size), asked, numbers) for start in range(0, size * folds, size)
    ]
    recall = {number: _mean([part[number] for part in parts]) for number in numbers}
    result: dict[str, Any] = {"images": len(pairs), "captions": captions, **recall[0]}
    if rerank:
        result["reranked"] = {"M": rerank, **recall[rerank]}
    if curve:
        result["curve"] = [{"M": number, **recall[number]} for number in numbers]
    if folds > 1:
        result["folds"] = folds
    if pool:
        result["pool"] = {"images": len(encoded.images), "captions": len(encoded.captions)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


@dataclass(frozen=True)
class _Encoded:
    """P photos and their captions in order of photo; ``owner`` (captions,) is the photo that each describes."""

    captions: list[Caption]
    owner: Indices
    texts: Scores
    images: Scores
    kept: list[KeptImage]

    def part(self, start: int, stop: int) -> _Encoded:
        """The photos from ``start`` to ``stop``, with their captions."""
        first, last = np.searchsorted(self.owner, [start, stop])
        return _Encoded(self.captions[first:last], self.owner[first:last] - start, self.texts[first:last],
                        self.images[start:stop], self.kept[start:stop])  # fmt: skip


def _encode(embedder: Embedder, pairs: Sequence[Pair], reranker: Reranker | None) -> _Encoded:
    captions = [caption for pair in pairs for caption in pair.captions]
    owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
    images = np.empty((len(pairs), embedder.dim), np.float32)
    kept: list[KeptImage] = []
    for start in range(0, len(pairs), PHOTO_BLOCK):
        loaded = [_load(embedder, pair) for pair in pairs[start : start + PHOTO_BLOCK]]
        features = embedder.image_features(loaded)
        images[start : start + len(loaded)] = embedder.encode_features(features)
        if reranker is not None:
            kept += reranker.keep(features)
        if start % (10 * PHOTO_BLOCK) == 0:
            log.info("photos: %d of %d", start, len(pairs))
    log.info("texts: %d", len(captions))
    return _Encoded(captions, owner, embedder.encode_texts(captions), images, kept)


def _load(embedder: Embedder, pair: Pair) -> Image | Regions:
    loaded = pair.load()
    if isinstance(loaded, bytes):
        return decode(loaded, name=pair.name, draft_to=embedder.least_side).image
    try:
        embedder.image_features([loaded])  # refuses another extractor's
    except InputError as error:
        raise InputError(f"{printable(pair.name)}: {error}") from error
    return loaded


def _recall(
    reranker: Reranker | None, encoded: _Encoded, asked: tuple[int, int] | None, numbers: Sequence[int]
) -> dict[int, Recall]:
    """Recall with the first M re-ranked, for each M of ``numbers``."""
    found = search_both_ways(encoded.texts, encoded.images, encoded.owner, numbers[-1], asked=asked)
    if reranker is None:
        return {0: found.recall()}
    crossed = found.cross(pair_scores(reranker, encoded.captions, encoded.kept))
    return {number: crossed.recall(number, reranker.dot_weight) for number in numbers}


def pair_scores(
    reranker: Reranker, captions: Sequence[Caption], kept: Sequence[KeptImage]
) -> Callable[[Indices, Indices], Scores]:
    """What :meth:`~ldot_milvus.evaluation.ranking.BothWays.cross` asks: the re-ranker's scores of some pairs.

    Args:
        kept: what the re-ranker keeps of photo i.
    """

    def score(rows: Indices, columns: Indices) -> Scores:
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), PAIR_BLOCK):
            block = slice(start, start + PAIR_BLOCK)
            texts = [captions[row] for row in rows[block]]
            scores[block] = reranker.score(texts, [kept[photo] for photo in columns[block]])
            if start % (10 * PAIR_BLOCK) == 0:
                log.info("re-ranking: %d of %d pairs", start, len(rows))
        return scores

    return score


def _mean(parts: Sequence[Recall]) -> Recall:
    """The mean of each figure over the folds."""
    return {
        way: {cut: round(float(np.mean([part[way][cut] for part in parts])), 2) for cut in figures}
        for way, figures in parts[0].items()
    }
