"""Measure a model's recall in both directions, by dot product and re-ranked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.evaluation.encoded_pairs import EncodedPair, LoadedPair, PairCache
from ldot_milvus.evaluation.photos import Caption, Pair
from ldot_milvus.evaluation.ranking import Indices, Scores, search_both_ways
from ldot_milvus.images import decode
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.models.passes import image_features, least_side
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.models.base import Embedder, KeptImage, Reranker

log = logging.getLogger(__name__)

PHOTO_BLOCK, PAIR_BLOCK = 32, 2000

Recall = dict[str, dict[str, float]]
"""Recall of each direction in percent: ``{"text_to_image": {"R@1": ...}, "image_to_text": {...}}``."""


def evaluate(
    embedder: Embedder, pairs: Sequence[Pair], *, reranker: Reranker | str | None = None, rerank: int = 0,
    curve: Sequence[int] = (), folds: int = 1, pool: Sequence[Pair] = (), vocabulary: int | None = None,
    cache: str | Path | None = None, precision: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Measure Recall@1/5/10 in percent: every caption searches its photo, every photo searches one of its captions.

    Args:
        embedder: encodes the photos and captions.
        pairs: the photos with their captions.
        reranker: None for the embedder's own re-ranker, a folder or hub id, or a loaded re-ranker.
        rerank: M, the number of candidates of a query that are re-ranked; 0 turns re-ranking off.
        curve: more values of M. The candidates of the largest M are scored once, for all values.
        folds: divide the photos, in their order, into this number of equal folds, and average over them (COCO 1K: five
            folds of the 5,000 photos).
        pool: further photos and captions that are searched, but are not queries.
        vocabulary: size of the vocabulary if captions are token ids, to be compared with the model's.
        cache: a folder that keeps the encoded pairs, from which a later evaluation reads them.
        precision: device and dtype of the models; pairs in the cache are used for the same ones only.

    Returns:
        ``{"images", "captions", "text_to_image", "image_to_text", "reranked"?, "curve"?, "folds"?, "pool"?,
        "seconds"}``, the output of ``ldot eval --json``.

    Raises:
        UsageError: there is no re-ranker but one is needed, the folds are not equal, a photo is in ``pairs`` and in
            ``pool``, or token ids belong to another vocabulary.
        InputError: a photo or its regions cannot be read. The message names the record.
    """
    numbers = sorted({0, rerank, *curve})
    loaded_reranker = load_reranker(reranker, embedder) if numbers[-1] else None
    if numbers[-1] and loaded_reranker is None:
        raise UsageError("this model has no re-ranker: evaluate with --rerank 0 and no --curve")
    model_vocabulary = embedder.vocabulary_size
    if vocabulary not in (None, model_vocabulary):
        raise UsageError(
            f"the captions are token ids of a vocabulary of {vocabulary:,} entries, and the model's has "
            f"{model_vocabulary or 0:,}: give captions as texts, as in Karpathy's JSON"
        )
    if len(pairs) % folds:
        raise UsageError(f"{len(pairs)} photos cannot be divided into {folds} equal folds: give a divisor")
    if folds > 1 and pool:
        raise UsageError("each fold is searched alone: give no pool with folds")
    known = {pair.name for pair in pairs}
    for pair in pool:
        if pair.name in known:
            raise UsageError(f"{printable(pair.name)} is both a query and in the pool: remove it from one of the two")
    started = time.perf_counter()
    stored = None if cache is None else PairCache(cache, embedder, loaded_reranker, precision)
    encoded = _encode(embedder, [*pairs, *pool], loaded_reranker, stored)
    captions = sum(len(pair.captions) for pair in pairs)
    size = (len(pairs) + len(pool)) // folds
    queries = (captions, len(pairs)) if pool else None
    recall_of_folds = [
        _recall(loaded_reranker, encoded.fold(start, start + size), queries, numbers)
        for start in range(0, size * folds, size)
    ]
    recall = {number: _mean([fold[number] for fold in recall_of_folds]) for number in numbers}
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
    """P photos and their captions, encoded.

    Attributes:
        captions: C captions in order of photo.
        owner: (C,), the index of each caption's photo.
        texts: (C, dim), the captions' vectors.
        images: (P, dim), the photos' vectors.
        kept: the photos' region data; empty without a re-ranker.
    """

    captions: list[Caption]
    owner: Indices
    texts: Scores
    images: Scores
    kept: list[KeptImage]

    def fold(self, start: int, stop: int) -> _Encoded:
        """Return the photos from ``start`` to ``stop`` with their captions."""
        first, last = np.searchsorted(self.owner, [start, stop])
        return _Encoded(self.captions[first:last], self.owner[first:last] - start, self.texts[first:last],
                        self.images[start:stop], self.kept[start:stop])  # fmt: skip


def _encode(embedder: Embedder, pairs: Sequence[Pair], reranker: Reranker | None, cache: PairCache | None) -> _Encoded:
    def encode(some: Sequence[LoadedPair]) -> list[EncodedPair]:
        features, own = image_features(embedder, reranker, [_image(embedder, reranker, *one) for one in some])
        images = embedder.encode_features(features)
        kept = [None] * len(some) if reranker is None else reranker.keep(own)
        texts = embedder.encode_texts([caption for pair, _ in some for caption in pair.captions])
        ends = np.cumsum([len(pair.captions) for pair, _ in some])
        return list(map(EncodedPair, images, np.split(texts, ends[:-1]), kept))

    encoded: list[EncodedPair] = []
    for number, block in enumerate(batched(pairs, PHOTO_BLOCK)):
        loaded = [(pair, pair.load()) for pair in block]
        encoded += encode(loaded) if cache is None else cache.encoded(loaded, encode)
        if number % 10 == 0:
            log.info("photos: %d of %d", len(encoded), len(pairs))
    return _Encoded(
        [caption for pair in pairs for caption in pair.captions],
        np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs]),
        np.concatenate([one.texts for one in encoded]),
        np.stack([one.image for one in encoded]),
        [one.kept for one in encoded if one.kept is not None],
    )


def _image(embedder: Embedder, reranker: Reranker | None, pair: Pair, loaded: bytes | Regions) -> Image | Regions:
    if isinstance(loaded, bytes):
        return decode(loaded, name=pair.name, draft_to=least_side(embedder, reranker)).image
    try:
        image_features(embedder, reranker, [loaded])  # refuses regions of another extractor
    except InputError as error:
        raise InputError(f"{printable(pair.name)}: {error}") from error
    return loaded


def _recall(
    reranker: Reranker | None, encoded: _Encoded, queries: tuple[int, int] | None, numbers: Sequence[int]
) -> dict[int, Recall]:
    """Measure the recall with the first M candidates re-ranked, for each M of ``numbers``."""
    result = search_both_ways(encoded.texts, encoded.images, encoded.owner, numbers[-1], queries=queries)
    if reranker is None:
        return {0: result.recall()}
    reranked = result.rerank(pair_scores(reranker, encoded.captions, encoded.kept))
    return {number: reranked.recall(number, reranker.dot_weight) for number in numbers}


def pair_scores(
    reranker: Reranker, captions: Sequence[Caption], kept: Sequence[KeptImage]
) -> Callable[[Indices, Indices], Scores]:
    """Return the scoring function that :meth:`~ldot_milvus.evaluation.ranking.BidirectionalResult.rerank` needs.

    Args:
        reranker: scores the pairs.
        captions: the captions.
        kept: the region data of the photos.
    """

    def score(texts: Indices, photos: Indices) -> Scores:
        scores = np.empty(len(texts), np.float32)
        for start in range(0, len(texts), PAIR_BLOCK):
            block = slice(start, start + PAIR_BLOCK)
            scores[block] = reranker.score(
                [captions[text] for text in texts[block]], [kept[photo] for photo in photos[block]]
            )
            if start % (10 * PAIR_BLOCK) == 0:
                log.info("re-ranking: %d of %d pairs", start, len(texts))
        return scores

    return score


def _mean(folds: Sequence[Recall]) -> Recall:
    """Return the mean of each figure over the folds."""
    return {
        way: {cut: round(float(np.mean([fold[way][cut] for fold in folds])), 2) for cut in figures}
        for way, figures in folds[0].items()
    }
