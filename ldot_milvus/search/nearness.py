"""When two photos show the same: the cosine of their vectors, and the distance of their perceptual hashes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.search.perceptual_hash import PerceptualHash
from ldot_milvus.stores.base import Array, Filter, Record, VectorStore

THRESHOLD = 0.9
"""Default least cosine of two vectors."""

MAX_DISTANCE = 10
"""Largest number of different bits, of 64, between the hashes of two photos."""

_ROWS = 4096  # rows that one search may return for all its queries
_NEIGHBOURS = (8, 64, 512)  # rows that a search asks for: more if all of them might be duplicates
_SLACK = 0.99  # some indexes compute inner products from rounded vectors


def look_the_same(a: PerceptualHash, b: PerceptualHash) -> bool:
    """Whether the hashes of two photos agree."""
    return a.distance(b) <= MAX_DISTANCE


def neighbours(store: VectorStore, queries: Array, least: Array, filter: Filter | None) -> list[set[str]]:
    """Find the rows whose inner product with a query is not below a bound, as far as a search returns them.

    While the last row found has a larger product, more rows are asked for, up to 512.

    Args:
        store: the collection.
        queries: float32 (n, dim).
        least: float32 (n,), the bound of each query. It is lowered by a hundredth.
        filter: rows to search; None searches all.

    Returns:
        The ids for each query.
    """
    ids: list[set[str]] = [set() for _ in queries]
    pending = list(range(len(queries)))
    for k in _NEIGHBOURS:
        more = []
        for some in batched(pending, _ROWS // k):
            for i, matches in zip(some, store.search(queries[some], k, filter=filter), strict=True):
                bound = _SLACK * float(least[i])
                ids[i].update(match.record.id for match in matches if match.score >= bound)
                if len(matches) == k and matches[-1].score >= bound:
                    more.append(i)
        pending = more
    return ids


def vectors_of(records: Sequence[Record]) -> Array:
    """Return the embeddings of rows, float32 (n, dim)."""
    return np.stack([record.embedding for record in records if record.embedding is not None])


def unit(vectors: Array) -> Array:
    """Scale vectors to the length 1; a vector of zeros stays as it is, and its cosines are 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Array = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
