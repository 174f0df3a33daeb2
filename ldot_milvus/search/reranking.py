"""Re-rank the hits of several searches in one pass, from stored region data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ldot_milvus.errors import InputError, printable
from ldot_milvus.models.base import Array, KeptImage, Reranker
from ldot_milvus.models.calibration import MatchingReranker, calibration_of, sigmoid
from ldot_milvus.redaction import masked
from ldot_milvus.search.encoding import Encoded
from ldot_milvus.search.hits import Hit
from ldot_milvus.search.query import TextQuery
from ldot_milvus.stores.regions import RegionStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidates:
    """The hits of a search that are to be re-ranked, by its texts or by its photo."""

    query: Encoded
    hits: Sequence[Hit]


def rerank_all(reranker: Reranker, region_store: RegionStore | None, searches: Sequence[Candidates]) -> list[list[Hit]]:
    """Order the hits of each search by the scores of the re-ranker.

    Args:
        reranker: scores the pairs of all searches in one pass.
        region_store: region data of the photos that are hits; None if no search is by a text.
        searches: the searches, whose hits are photos if its query has texts, else texts.

    Returns:
        The hits of each search by ``rerank_score``, best first; then those whose region data are missing or damaged.
    """
    wanted = dict.fromkeys(hit.id for one in searches if one.query.texts is not None for hit in one.hits)
    kept = {} if region_store is None else _region_data(reranker, region_store, list(wanted))
    texts: list[str] = []
    photos: list[KeptImage] = []
    scored: list[list[Hit]] = []
    for one in searches:
        query = one.query.texts
        if query is None:
            assert one.query.photo is not None
            scored.append(list(one.hits))
            texts += [hit.caption for hit in one.hits]
            photos += [one.query.photo] * len(one.hits)
        else:
            scored.append([hit for hit in one.hits if hit.id in kept])
            texts += [text for text in query.texts for _ in scored[-1]]
            photos += [kept[hit.id] for hit in scored[-1]] * len(query.texts)
    scores, logits = _scores(reranker, texts, photos)
    ranked: list[list[Hit]] = []
    start = 0
    for one, hits in zip(searches, scored, strict=True):
        query = one.query.texts
        end = start + len(hits) * (1 if query is None else len(query.texts))
        own, own_logits = scores[start:end], None if logits is None else logits[start:end]
        if query is not None:
            own = np.asarray(query.shares) @ own.reshape(len(query.texts), len(hits))
        missing = [hit for hit in one.hits if query is not None and hit.id not in kept]
        if missing and region_store is not None:
            _tell_missing(region_store, missing, len(one.hits))
        ranked.append(_ordered(reranker, hits, own, own_logits, query) + missing)
        start = end
    return ranked


def _scores(reranker: Reranker, texts: Sequence[str], kept: Sequence[KeptImage]) -> tuple[Array, Array | None]:
    """Return the scores of pairs, and the logits of a match where the re-ranker has them."""
    if isinstance(reranker, MatchingReranker):
        return reranker.score_and_match(texts, kept)
    return reranker.score(texts, kept), None


def _region_data(reranker: Reranker, region_store: RegionStore, ids: Sequence[str]) -> dict[str, KeptImage]:
    """Return the region data of these ids, without ids whose data is missing, damaged or of another re-ranker."""
    kept: dict[str, KeptImage] = dict(region_store.get(ids))
    for id in list(kept):
        try:
            reranker.check(kept[id])
        except InputError as error:
            log.warning("region data of %s is damaged (%s): ingest the photo again", printable(id), error)
            del kept[id]
    return kept


def _tell_missing(region_store: RegionStore, missing: Sequence[Hit], of: int) -> None:
    log.warning(
        "%d of %d photos have no region data in %s and are ranked last: ingest them again, or set "
        "LDOT_REGION_STORE to the place of their region data (first: %s)",
        len(missing), of, region_store.address, printable(masked(missing[0].source)),
    )  # fmt: skip


def _ordered(
    reranker: Reranker, hits: Iterable[Hit], scores: Array, logits: Array | None, query: TextQuery | None
) -> list[Hit]:
    """Return hits by their scores; those of a composed query have no probability, since none was fitted."""
    dot_scale, calibrated = (1.0, True) if query is None else (query.dot_scale, not query.composed)
    weight, calibration = reranker.dot_weight * dot_scale, calibration_of(reranker)
    ranked: list[Hit] = []
    for row, hit in enumerate(hits):
        score, probability = float(scores[row]) + weight * hit.score, None
        if calibrated and logits is not None:
            probability = sigmoid(float(logits[row]))
        elif calibrated and calibration is not None:
            probability = calibration.probability(score)
        ranked.append(replace(hit, rerank_score=score, probability=probability))
    return sorted(ranked, key=lambda hit: -(hit.rerank_score or 0.0))
