"""Encode the queries of several searches together: texts in one batch, and photos in one pass over their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldot_milvus.models.base import Array, Embedder, KeptImage, Reranker
from ldot_milvus.models.passes import image_features
from ldot_milvus.search.query import Part, RowId, TextQuery, composed_query
from ldot_milvus.search.query_vectors import QueryVectors
from ldot_milvus.search.requests import Plan, Query
from ldot_milvus.stores import Record


@dataclass(frozen=True)
class Encoded:
    """An encoded query.

    Attributes:
        vector: float32 (dim,).
        texts: what photos are re-ranked by; None for a photo and a row.
        photo: what texts are re-ranked by: the photo's region data; None unless the search re-ranks texts.
    """

    vector: Array
    texts: TextQuery | None = None
    photo: KeptImage | None = None


def encode_queries(
    plans: Sequence[Plan],
    rows: Mapping[str, Record],
    embedder: Embedder,
    reranker: Reranker | None,
    cache: QueryVectors,
) -> list[Encoded]:
    """Encode the query of each search.

    Args:
        plans: the searches.
        rows: stored rows by id, of all ids in the queries, with their vectors.
        embedder: model of the vectors.
        reranker: model of the region data.
        cache: vectors of texts that are known.

    Raises:
        InputError: a photo cannot be read.
        UsageError: the parts of a query cancel each other, or a photo is in a form that the model does not read.
    """
    vectors = cache.encode(embedder, [text for plan in plans for text in _texts_in(plan.query)])
    photos = [plan for plan in plans if _is_photo(plan.query)]
    by_photo = dict(zip(map(id, photos), _encode_photos(photos, embedder, reranker), strict=True))

    def part(content: Any) -> Array:
        if isinstance(content, str):
            return vectors[content]
        return _stored(rows[content.id]) if isinstance(content, RowId) else embedder.encode_images([content])[0]

    def encode(plan: Plan) -> Encoded:
        query = plan.query
        if isinstance(query, list):
            composed = composed_query(query, [part(content) for _, content in query])
            return Encoded(composed.vector, composed)
        if isinstance(query, str):
            return Encoded(vectors[query], TextQuery(vectors[query], [query], [1.0], 1.0, composed=False))
        return Encoded(_stored(rows[query.id])) if isinstance(query, RowId) else by_photo[id(plan)]

    return [encode(plan) for plan in plans]


def _encode_photos(plans: Sequence[Plan], embedder: Embedder, reranker: Reranker | None) -> list[Encoded]:
    if not plans:
        return []
    reads = reranker if any(plan.rerank for plan in plans) else None
    features, own = image_features(embedder, reads, [plan.query for plan in plans])  # type: ignore[misc]
    kept: list[Any] = [None] * len(plans) if reads is None else reads.keep(own)
    return [
        Encoded(vector, photo=photo) for vector, photo in zip(embedder.encode_features(features), kept, strict=True)
    ]


def _texts_in(query: Query) -> list[str]:
    if isinstance(query, str):
        return [query]
    parts: list[Part] = query if isinstance(query, list) else []
    return [content for _, content in parts if isinstance(content, str)]


def _is_photo(query: Query) -> bool:
    return not isinstance(query, (str, list, RowId))


def _stored(row: Record) -> Array:
    assert row.embedding is not None
    return row.embedding
