"""Recall of a model in both directions, by dot product and re-ranked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.evaluation.photos import Caption, Pair
from ldot_milvus.evaluation.ranking import Indices, Scores, search_both_ways
from ldot_milvus.images import decode
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder

log = logging.getLogger(__name__)

PHOTO_BLOCK, PAIR_BLOCK = 32, 2000

Recall = dict[str, dict[str, float]]
"""Of each direction, in percent: ``{"text_to_image": {"R@1": ...}, "image_to_text": {...}}``."""


def evaluate(
    embedder: LightningDOTEmbedder, pairs: Sequence[Pair], *, rerank: int = 0, curve: Sequence[int] = (),
    folds: int = 1, pool: Sequence[Pair] = (), vocabulary: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Recall@1/5/10 in percent: every caption finds its photo, every photo finds one of its captions.

    Args:
        rerank: M, how many of the first the cross-attention re-ranks in each direction; 0 for none.
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
    if numbers[-1] and not embedder.can_rerank:
        raise UsageError("this model has no re-ranker: evaluate with --rerank 0 and no --curve")
    reads = embedder.bundle.encoder.config.text_config.vocab_size
    if vocabulary not in (None, reads):
        raise UsageError(
            f"the captions are token ids of a vocabulary of {vocabulary:,} entries and the model's has {reads:,}: give "
            "it texts, as in Karpathy's JSON"
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
    encoded = _encode(embedder, [*pairs, *pool], keep_regions=numbers[-1] > 0)
    captions = sum(len(pair.captions) for pair in pairs)
    size = (len(pairs) + len(pool)) // folds
    asked = (captions, len(pairs)) if pool else None
    parts = [
        _recall(embedder, encoded.part(start, start + size), asked, numbers) for start in range(0, size * folds, size)
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


class _Kept(NamedTuple):
    """Regions in half precision, as the region store gives them to a search."""

    features: NDArray[np.float16]
    boxes: Scores
    confidence: Scores

    def regions(self) -> Regions:
        return Regions(self.features.astype(np.float32), self.boxes, self.confidence)


@dataclass(frozen=True)
class _Encoded:
    """P photos and their captions in order of photo; ``owner`` (captions,) is the photo that each describes."""

    captions: list[Caption]
    owner: Indices
    texts: Scores
    images: Scores
    regions: list[_Kept]

    def part(self, start: int, stop: int) -> _Encoded:
        """The photos from ``start`` to ``stop``, with their captions."""
        first, last = np.searchsorted(self.owner, [start, stop])
        return _Encoded(self.captions[first:last], self.owner[first:last] - start, self.texts[first:last],
                        self.images[start:stop], self.regions[start:stop])  # fmt: skip


def _encode(embedder: LightningDOTEmbedder, pairs: Sequence[Pair], *, keep_regions: bool) -> _Encoded:
    captions = [caption for pair in pairs for caption in pair.captions]
    owner = np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])
    images = np.empty((len(pairs), embedder.dim), np.float32)
    regions: list[_Kept] = []
    for start in range(0, len(pairs), PHOTO_BLOCK):
        loaded = [_load(embedder, pair) for pair in pairs[start : start + PHOTO_BLOCK]]
        images[start : start + len(loaded)], kept = embedder.encode_for_store(loaded)
        if keep_regions:
            regions += [_Kept(one.features.astype(np.float16), one.boxes, one.confidence) for one in kept]
        if start % (10 * PHOTO_BLOCK) == 0:
            log.info("photos: %d of %d", start, len(pairs))
    log.info("texts: %d", len(captions))
    return _Encoded(captions, owner, embedder.encode_texts(captions), images, regions)


def _load(embedder: LightningDOTEmbedder, pair: Pair) -> Image | Regions:
    loaded = pair.load()
    if isinstance(loaded, bytes):
        if embedder.bundle.extractor is None:
            raise UsageError("this model has no region extractor: give the region features with --regions")
        return decode(loaded, name=pair.name, draft_to=embedder.least_side).image
    try:
        return embedder.regions([loaded])[0]
    except InputError as error:
        raise InputError(f"{printable(pair.name)}: {error}") from error


def _recall(
    embedder: LightningDOTEmbedder, encoded: _Encoded, asked: tuple[int, int] | None, numbers: Sequence[int]
) -> dict[int, Recall]:
    """Recall with the first M re-ranked, for each M of ``numbers``."""
    found = search_both_ways(encoded.texts, encoded.images, encoded.owner, numbers[-1], asked=asked)
    if not numbers[-1]:
        return {0: found.recall()}

    def regions(photo: int) -> Regions:
        return encoded.regions[photo].regions()

    crossed = found.cross(pair_scores(embedder, encoded.captions, regions))
    return {number: crossed.recall(number, embedder.dot_weight) for number in numbers}


def pair_scores(
    embedder: LightningDOTEmbedder, captions: Sequence[Caption], regions: Callable[[int], Regions]
) -> Callable[[Indices, Indices], Scores]:
    """What :meth:`~ldot_milvus.evaluation.ranking.BothWays.cross` asks: the re-ranker's scores of some pairs.

    Args:
        regions: what re-ranking needs of photo i.
    """

    def score(rows: Indices, columns: Indices) -> Scores:
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), PAIR_BLOCK):
            block = slice(start, start + PAIR_BLOCK)
            photos = columns[block].tolist()
            once = {photo: regions(photo) for photo in set(photos)}
            texts = [captions[row] for row in rows[block]]
            scores[block] = embedder.rerank(texts, [once[photo] for photo in photos])
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
